"""Fold a batch norm or a scale behind a concatenation into the layers that it joins.

Before:
    y = BN(cat(conv₁(x₁), conv₂(x₂)))

After:
    y = cat(conv₁'(x₁), conv₂'(x₂))

Algebra:
    A scale and shift per channel acts on each part of the channels by itself.

Legal when:
    The parts lie side by side along the channels that are scaled.

Profitable when:
    All parts are convolutions or linear layers that nothing else reads.
"""

from reparam import Call, Replace, require, rewrite
from reparam.algebra import affine, exact
from reparam.composition import compose
from reparam.graph import Apply, same_dtype
from reparam.operator_laws import as_convolution
from reparam.operators import Cat
from reparam.region import diagonal
from reparam.values import BatchNorm, Conv


@rewrite(on=BatchNorm | Conv)
def fold_after_cat(call: Call) -> Replace | None:
    """Split what scales a concatenation among the layers that make its parts."""
    if not diagonal(call):
        return None
    (cat,) = call.inputs
    if not isinstance(cat.value, Cat):
        return None
    require(len(cat.readers) == 1, "something else reads the concatenation", cat.name)
    scale = as_convolution(call.value, None)
    require(scale.n == cat.value.n, "it is joined along another axis", cat.name)
    start = 0
    parts: list[Apply] = []
    for part in cat.inputs:
        conv = part.value
        layer = isinstance(conv, Conv) and conv.n == scale.n
        require(layer, f"{conv.__name__} is joined, which takes in no scale", part.name)
        assert isinstance(conv, Conv)
        require(len(part.readers) == 1, "something else reads what is joined", part.name)
        require(same_dtype(part, call), "the dtypes differ", part.name)
        rows = slice(start, start + conv.out_channels)
        shift = None if scale.bias is None else scale.bias[rows]
        own = affine(scale.weight.flatten()[rows], shift, scale.n)
        parts.append(Apply(compose(own, exact(conv)), part.inputs))
        start += conv.out_channels
    require(start == scale.out_channels, "it is joined along another axis", cat.name)
    return Replace(cat.value, *parts)
