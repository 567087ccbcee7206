"""Fold the gain of a scaled ReLU into the convolution before it.

Before:
    y = γ · relu(conv(x; W, b))

After:
    y = relu(conv(x; γW, γb))

Algebra:
    max(γz, 0) = γ max(z, 0), for γ > 0.

Legal when:
    The gain is positive, and nothing else reads the convolution or the ReLU.

Profitable when:
    Always: the gain is gone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from reparam import Apply, Call, Replace, require, rewrite
from reparam.algebra import exact, scale_output
from reparam.values import Conv, Opaque, Sum


@rewrite(on=Sum)
def fold_relu_gain(call: Call) -> Replace | None:
    """Merge a gain with the convolution before the ReLU that it scales."""
    if not isinstance(call.value, Sum) or len(call.value.coefficients) != 1:
        return None
    (relu,) = call.inputs
    if not isinstance(relu.value, Opaque) or not is_relu(relu.value):
        return None
    (source,) = relu.inputs
    conv, (gain,) = source.value, call.value.coefficients
    if not isinstance(conv, Conv):
        return None
    require(gain > 0, "only a positive factor commutes with a ReLU", relu.name)
    for between in (relu, source):
        alone = len(between.readers) == 1
        require(alone, "something else reads a tensor in between", between.name)
    return Replace(relu.value, Apply(scale_output(gain, exact(conv)), source.inputs))


def is_relu(value: Opaque) -> bool:
    """Whether it is torch's ReLU, and writes to nothing that others see."""
    plain = isinstance(value.target, nn.ReLU) or value.target in (F.relu, torch.relu)
    return plain and not value.pinned
