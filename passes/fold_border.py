"""Fold the border constant of a padding into the layer before it.

Before:
    y = pad(conv(x; W, b), c)

After:
    y = pad(conv(x; W, b − c), 0) + c

Algebra:
    pad(y, c) = pad(y − c, 0) + c. A layer takes c off in its bias, for nothing.

Legal when:
    Nothing else reads the layer, and the constant is no larger than what the layer makes of inputs
    of order one: what is taken off and added again costs as many bits as it is larger.

Profitable when:
    No kernel behind the padding has taken it in, and the constant differs between channels: one
    number for all is as cheap to pad with as zero.
"""

from dataclasses import replace

from reparam import Apply, Call, Replace, require, rewrite
from reparam.algebra import add_biases, affine, exact
from reparam.graph import same_dtype
from reparam.operators import Pad
from reparam.precision import modest
from reparam.region import diagonal
from reparam.values import Conv


@rewrite(on=Pad)
def fold_border(call: Call) -> Replace | None:
    """Pad with zeros in the place of a constant, which the layer before takes off."""
    pad = call.value
    if not isinstance(pad, Pad) or pad.border is None:
        return None
    (source,) = call.inputs
    layer = source.value
    if not isinstance(layer, Conv) or layer.n != pad.n or diagonal(source):
        return None
    require(len(source.readers) == 1, "something else reads the layer before it", source.name)
    require(same_dtype(source, call), "the dtypes differ")
    layer = exact(layer)
    border = pad.border.double().expand(layer.out_channels)
    fine = modest(border, layer)
    require(fine, "the constant is so large that to take it off would round all the rest")
    lower = replace(layer, bias=add_biases(layer.bias, -border))
    padded = Apply(replace(pad, border=None), (Apply(lower, source.inputs),))
    return Replace(affine(border.new_ones(border.shape), border, pad.n), padded)
