"""The laws of torch's other linear operators: what convolution they are, and what scales them.

A padding, a slice and an average act on each channel; how many there are, what stands beside them
tells. A transposed convolution is a convolution if its stride is 1, and has laws of its own if not.
"""

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from reparam.algebra import add_biases, batch_norm_affine, exact, span
from reparam.devices import CPU
from reparam.errors import require
from reparam.operators import AvgPool, ConvTranspose, Norm, Pad, Slice
from reparam.values import BatchNorm, Conv, Value


def as_convolution(value: Value, channels: int | None, like: Tensor | None = None) -> Conv:
    """A linear map of one tensor as a convolution in float64.

    Args:
        value: a convolution, transposed or not, batch norm, padding, slice or average pooling.
        channels: of its input, where the value does not say.
        like: a float64 tensor of what it stands beside, on whose device it is made.

    Raises:
        Declined: if it is none at the border, or if the number of channels is not known.
    """
    if isinstance(value, Conv):
        return exact(value)
    if isinstance(value, BatchNorm):
        return batch_norm_affine(value)
    if isinstance(value, ConvTranspose):
        return _flipped(value)
    if isinstance(value, AvgPool):
        _require_even_average(value)
    require(channels is not None, "the number of channels is not known")
    assert channels is not None
    if isinstance(value, Pad):
        return _pad_convolution(value, channels, like)
    if isinstance(value, Slice):
        return _slice_convolution(value, channels, like)
    assert isinstance(value, AvgPool), "nothing else is a convolution"
    return _average_convolution(value, channels, like)


def _pad_convolution(pad: Pad, channels: int, like: Tensor | None) -> Conv:
    """The identity, padded."""
    weight = _ones((channels, 1, *(1,) * pad.n), like)
    border = None if pad.border is None else pad.border.double().expand(channels)
    mode, padding = pad.padding_mode, pad.padding
    return Conv(weight, None, (), padding, (), channels, mode, border)


def _slice_convolution(rows: Slice, channels: int, like: Tensor | None) -> Conv:
    """The identity, at some rows."""
    weight = _ones((channels, 1, *(1,) * rows.n), like)
    sides = tuple((-first, -last) for first, last in zip(rows.start, rows.cut, strict=True))
    return Conv(weight, None, rows.stride, sides, groups=channels)


def _ones(shape: tuple[int, ...], like: Tensor | None) -> Tensor:
    return (
        torch.ones(shape, dtype=torch.float64, device=CPU) if like is None else like.new_ones(shape)
    )


def _flipped(conv: ConvTranspose) -> Conv:
    """A transposed convolution of stride 1: a convolution with each kernel back to front."""
    require(max(conv.stride) == 1, "a transposed convolution with a stride is no convolution")
    blocks = conv.weight.double().reshape(conv.groups, -1, *conv.weight.shape[1:])
    axes = tuple(range(3, blocks.ndim))
    weight = blocks.transpose(1, 2).flatten(0, 1).flip([axis - 1 for axis in axes])
    reach = span(conv.dilation, tuple(conv.weight.shape[2:]))
    sides = tuple(
        (far - side, far - side + more)
        for far, side, more in zip(reach, conv.padding, conv.output_padding, strict=True)
    )
    bias = None if conv.bias is None else conv.bias.double()
    return Conv(weight, bias, conv.stride, sides, conv.dilation, conv.groups)


def _require_even_average(pool: AvgPool) -> None:
    """Refuse a pooling that divides by different numbers at the border."""
    counted = pool.count_include_pad or not any(pool.padding) or pool.divisor is not None
    require(counted, "count_include_pad=False averages over fewer pixels at the padding")
    whole = not pool.ceil_mode or all(stride == 1 for stride in pool.stride)
    require(whole, "ceil_mode averages over fewer pixels where a window is partial")


def _average_convolution(pool: AvgPool, channels: int, like: Tensor | None) -> Conv:
    """An average pooling as a depthwise convolution: one over the divisor at every tap."""
    weight = _ones((channels, 1, *pool.kernel), like) / (pool.divisor or prod(pool.kernel))
    sides = tuple((side, side) for side in pool.padding)
    return Conv(weight, None, pool.stride, sides, groups=channels)


def scale_transposed_output(scale: Conv, conv: ConvTranspose) -> ConvTranspose:
    """A scale and shift per channel of what a transposed convolution makes, as one of these."""
    require(scale.n == conv.n, "the two differ in their number of spatial axes")
    s = scale.weight.flatten().reshape(conv.groups, -1)
    inputs = conv.in_channels // conv.groups
    rows = s.repeat_interleave(inputs, 0).reshape(conv.in_channels, -1, *(1,) * conv.n)
    bias = None if conv.bias is None else conv.bias.double() * s.flatten()
    if scale.bias is not None:
        bias = scale.bias if bias is None else bias + scale.bias
    return replace(conv, weight=conv.weight.double() * rows, bias=bias)


def scale_transposed_input(conv: ConvTranspose, scale: Conv) -> ConvTranspose:
    """A transposed convolution of what was scaled per channel, as one of these.

    Raises:
        Declined: if it was shifted too, since what that adds differs from pixel to pixel.
    """
    require(scale.n == conv.n, "the two differ in their number of spatial axes")
    still = scale.bias is None or not bool(scale.bias.any())
    require(still, "a shift is not constant over space behind a transposed convolution")
    columns = scale.weight.flatten().reshape(-1, 1, *(1,) * conv.n)
    bias: Tensor | None = None if conv.bias is None else conv.bias.double()
    return replace(conv, weight=conv.weight.double() * columns, bias=bias)


def norm_axes(norm: Norm, rank: int | None) -> int | None:
    """How many axes stand behind the channels of a norm over a tensor of so many axes."""
    if norm.kind != "group":
        return 0
    return None if rank is None else rank - 2


def scale_norm(scale: Conv, norm: Norm) -> Norm:
    """A scale and shift per channel of what a norm makes, as a norm.

    Raises:
        Declined: if it shifts an RMS norm, which has no bias.
    """
    s = scale.weight.flatten()
    weight = s if norm.weight is None else s * norm.weight.double()
    bias = None if norm.bias is None else s * norm.bias.double()
    bias = add_biases(bias, scale.bias)
    require(bias is None or norm.kind != "rms", "an RMS norm has no bias to take a shift in")
    return replace(norm, weight=weight, bias=bias)
