"""What values compute with: torch's convolutions, and what torch lacks beside them."""

import itertools
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Sides: TypeAlias = tuple[tuple[int, int], ...]
"""Padding before and after, one pair per spatial axis, first axis first."""

CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (F.linear, F.conv1d, F.conv2d, F.conv3d)
"""The torch function by number of spatial axes."""


def block_linear(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """A linear layer whose weight, (out, in/groups), is block-diagonal."""
    if groups == 1:
        return F.linear(x, weight, bias)
    blocks = weight.reshape(groups, -1, weight.shape[1])
    y = torch.einsum("...gi,goi->...go", x.unflatten(-1, (groups, -1)), blocks).flatten(-2)
    return y if bias is None else y + bias


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """A convolution over n > 0 spatial axes of x, (..., channels, *spatial), without padding."""
    n = weight.ndim - 2
    depthwise = weight.shape[1] == 1 and groups == weight.shape[0] > weight[0].numel()
    if type(x) is Tensor and x.dtype == torch.float64 and depthwise:
        return _convolve_taps(x, weight, bias, stride, dilation)
    return CONVOLUTIONS[n](x, weight, bias, stride, 0, dilation, groups)


def _convolve_taps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """A depthwise convolution, one tap after the other.

    In float64 torch does one channel after the other, which takes up to ten times as long.
    """
    n = weight.ndim - 2
    kernel, spatial = weight.shape[2:], x.shape[x.ndim - n :]
    axes = zip(spatial, kernel, stride, dilation, strict=True)
    sizes = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in axes]
    if min(sizes) < 1:
        raise RuntimeError("the kernel is larger than the input")
    x = x.movedim(-n - 1, -1).contiguous()
    y = x.new_zeros(*x.shape[: -n - 1], *sizes, x.shape[-1])
    for tap, place in zip(
        weight.flatten(1).t(), itertools.product(*map(range, kernel)), strict=True
    ):
        starts = (d * k for d, k in zip(dilation, place, strict=True))
        read = (slice(a, a + s * m, s) for a, s, m in zip(starts, stride, sizes, strict=True))
        y = y.addcmul_(x[(..., *read, slice(None))], tap)
    return (y if bias is None else y + bias).movedim(-1, -n - 1)


def pad(x: Tensor, sides: Sides, mode: str, border: Tensor | None) -> Tensor:
    """Continue x, (..., channels, *spatial), beyond its border.

    `border`, (channels,), is the constant of mode "zeros"; None stands for zero.
    """
    if not any(side for pair in sides for side in pair):
        return x
    last_axis_first = [side for pair in reversed(sides) for side in pair]
    if mode != "zeros":
        return F.pad(x, last_axis_first, mode)
    if border is None:
        return F.pad(x, last_axis_first)
    constant = border.to(x.dtype).reshape(-1, *(1,) * len(sides))
    # F.pad takes one constant for all channels, so the border is moved to zero and back.
    return F.pad(x - constant, last_axis_first) + constant
