"""Merge any region of linear calls, as far as that pays.

Before:
    y = Σᵢ Aᵢ(… Bᵢ(xᵢ))

After:
    y = Σⱼ Cⱼ(xⱼ), fewer maps

Algebra:
    Convolutions, batch norms, scales, multiples and sums are linear maps with a shift. They compose
    (kernels convolve), add (kernels add) and distribute over sums.

Legal when:
    No shift meets padding that would show another constant, no operand of a sum is broadcast, and
    all share a dtype.

Profitable when:
    Operations fall and multiply-adds per output pixel do not rise, over the whole region.
"""

from reparam import Call, Replace, rewrite
from reparam.operators import Operator
from reparam.region import merge
from reparam.values import BatchNorm, Conv, Sum


@rewrite(on=Conv | BatchNorm | Sum | Operator)
def merge_affine_region(call: Call) -> Replace | None:
    """Merge the linear region that ends in a call."""
    return merge(call)
