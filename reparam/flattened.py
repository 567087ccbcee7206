"""Convolutions over images of a fixed size, as matrices."""

import torch

from reparam.errors import require
from reparam.values import Conv


def compose_flattened(linear: Conv, conv: Conv, sizes: tuple[int, ...]) -> Conv:
    """A linear layer over what a convolution makes of an image, as one over the image.

    Args:
        linear: its weight is (out, channels * pixels), channels first.
        conv: a convolution over n axes.
        sizes: of the image that it reads.

    Raises:
        Declined: if the linear layer does not read all that the convolution makes.
    """
    image = torch.zeros(
        1, conv.in_channels, *sizes, dtype=conv.weight.dtype, device=conv.weight.device
    )
    # At zero the convolution is its shift; what is left of it is linear, and reverse-mode
    # differentiation applies the transpose of that to the rows of the linear layer.
    shift, transpose = torch.func.vjp(conv, image)[:2]
    require(shift.numel() == linear.in_channels, "the linear layer reads more than its channels")
    rows = torch.func.vmap(transpose)(linear.weight.reshape(-1, *shift.shape))[0]
    bias = linear.weight @ shift.flatten()
    if linear.bias is not None:
        bias = bias + linear.bias
    return Conv(rows.flatten(1), bias)
