"""What values compute with: torch's convolutions, and what torch lacks beside them."""

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
