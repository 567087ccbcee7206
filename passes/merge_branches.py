"""Merge parallel convolutions of one input into one.

Before:
    y = BN₁(conv k×k (x)) + BN₂(conv 1×1 (x)) + …

After:
    y = conv k×k (x)

Algebra:
    Σᵢ Aᵢ(x) = (Σᵢ Aᵢ)(x), each kernel set into the smallest that holds all, groups widened to
    what they share.

Legal when:
    The branches sample x alike: one stride, one output size, one padding mode.

Profitable when:
    The merged kernel takes no more multiply-adds than the branches.

Source: Ding et al., "RepVGG", CVPR 2021, section 3.3.
"""

from reparam import Call, Replace, rewrite
from reparam.region import diagonal, merge
from reparam.terms import Group
from reparam.values import Conv, Sum


def _through(call: Call) -> bool:
    """Sums, convolutions, and what scales the output of one."""
    if diagonal(call):
        source = call.inputs[0]
        return isinstance(source.value, Conv) and not diagonal(source)
    return isinstance(call.value, Sum | Conv)


def _merged(groups: list[Group]) -> bool:
    """Whether convolutions of one input have met, and no skip with them."""
    return any(group.convolutions > 1 and not group.skips for group in groups)


@rewrite(on=Sum)
def merge_branches(call: Call) -> Replace | None:
    """Merge the convolutions of one input that a sum adds up."""
    if not isinstance(call.value, Sum):
        return None
    return merge(call, _through, _merged)
