"""Fold what scales channels into the transposed convolution before it.

Before:
    y = BN(conv_transpose(x; W, b))

After:
    y = conv_transpose(x; sW, sb + t)

Algebra:
    s scales output channels, which stand on the second axis of the weight, group by group.

Legal when:
    Nothing else reads the transposed convolution.

Profitable when:
    Always: the scale is gone.
"""

import torch

from reparam import Call, Replace, require, rewrite
from reparam.algebra import affine
from reparam.expansion import diagonal, multiple
from reparam.graph import same_dtype
from reparam.operator_laws import as_convolution, scale_transposed_output
from reparam.operators import ConvTranspose
from reparam.values import BatchNorm, Conv, Sum


@rewrite(on=BatchNorm | Conv | Sum)
def fold_transposed(call: Call) -> Replace | None:
    """Merge a batch norm, a scale or a multiple with the transposed convolution that it reads."""
    value = call.value
    if not (multiple(call) or diagonal(call)):
        return None
    (source,) = call.inputs
    conv = source.value
    if not isinstance(conv, ConvTranspose):
        return None
    require(len(source.readers) == 1, "something else reads the convolution before it", source.name)
    require(same_dtype(source, call), "the dtypes differ")
    if isinstance(value, Sum):
        ones = conv.weight.new_ones(conv.out_channels, dtype=torch.float64)
        scale = affine(ones * value.coefficients[0], None, conv.n)
    else:
        scale = as_convolution(value, None)
    require(scale.n == conv.n, "its channels are not those of the convolution", source.name)
    return Replace(scale_transposed_output(scale, conv), *source.inputs)
