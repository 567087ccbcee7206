"""Fold what scales channels into the norm before it.

Before:
    y = s · LN(x; γ, β) + t

After:
    y = LN(x; sγ, sβ + t)

Algebra:
    A norm is one without γ and β, followed by a scale of γ and a shift of β.

Legal when:
    The norm and the scale run over the same channels, and nothing else reads the norm.

Profitable when:
    Always: a norm scales in passing.
"""

from reparam import Call, Replace, require, rewrite
from reparam.graph import same_dtype
from reparam.operator_laws import as_convolution, norm_axes, scale_norm
from reparam.operators import Norm
from reparam.region import diagonal
from reparam.values import BatchNorm, Conv


@rewrite(on=BatchNorm | Conv)
def fold_after_norm(call: Call) -> Replace | None:
    """Merge a layer scale or a batch norm with the norm that it reads."""
    if not diagonal(call):
        return None
    (source,) = call.inputs
    norm = source.value
    if not isinstance(norm, Norm):
        return None
    require(len(source.readers) == 1, "something else reads the norm before it", source.name)
    require(same_dtype(source, call), "the dtypes differ")
    scale = as_convolution(call.value, None)
    rank = len(source.shape.axes) if source.shape is not None and source.shape.exact else None
    same = scale.n == norm_axes(norm, rank) and scale.out_channels == norm.channels
    require(same, "its channels are not known to be those of the norm", source.name)
    return Replace(scale_norm(scale, norm), *source.inputs)
