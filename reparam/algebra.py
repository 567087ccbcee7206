"""The laws by which linear maps merge: values in, value out.

Each law is exact in real arithmetic, at most bilinear in its operands, and states when it holds;
where it does not, it declines and says why. Nothing here knows of graphs, and folding is in
float64: `exact` and `batch_norm_affine` widen, the other laws keep the dtype they are given.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from math import gcd
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from reparam.errors import Declined, require
from reparam.functions import Sides
from reparam.values import BatchNorm, Conv
from reparam.verify import ROUNDING


def exact(conv: Conv, scaled: bool = False) -> Conv:
    """The same convolution with its tensors in float64, in which all folding is done.

    If it is about to be `scaled` by a float64 number per channel, that product widens the weight,
    and there need be no copy of it before.
    """
    if scaled and conv.bias is None and conv.border is None:
        return conv
    tensors = (conv.bias, conv.border)
    bias, border = (None if tensor is None else tensor.double() for tensor in tensors)
    weight = conv.weight if scaled else conv.weight.double()
    return replace(conv, weight=weight, bias=bias, border=border)


def affine(
    scale: Shaped[Tensor, " channels"], shift: Shaped[Tensor, " channels"] | None, n: int
) -> Conv:
    """`scale * x + shift`, a number of each per channel, over n spatial axes."""
    ones = (1,) * n
    return Conv(scale.reshape(-1, 1, *ones), shift, ones, ((0, 0),) * n, ones, scale.numel())


def identity_like(conv: Conv, coefficient: float) -> Conv:
    """`coefficient * x` as a convolution over the input channels of another."""
    return affine(conv.weight.new_full((conv.in_channels,), coefficient), None, conv.n)


def batch_norm_affine(norm: BatchNorm) -> Conv:
    """A batch norm's scale `gamma / sqrt(variance + eps)` and shift `beta - scale * mean`."""
    n = norm.n
    require(n is not None, "whether its input has spatial axes is not known; pass example_inputs")
    assert n is not None
    return affine(norm.exact_scale, norm.exact_shift, n)


def input_columns(conv: Conv, start: int, count: int) -> Conv:
    """What a convolution does to some of its input channels, the others being zero.

    Raises:
        Declined: if it is grouped, since the others would have to stand as zeros.
    """
    require(conv.groups == 1, "a grouped convolution of a concatenation is not split")
    border = None if conv.border is None else conv.border[start : start + count]
    return replace(conv, weight=conv.weight[:, start : start + count], border=border)


def scale_output(coefficient: float, conv: Conv) -> Conv:
    """A multiple of a convolution."""
    bias = None if conv.bias is None else conv.bias * coefficient
    return replace(conv, weight=conv.weight * coefficient, bias=bias)


def widen_groups(conv: Conv, groups: int) -> Conv:
    """The same map in fewer, wider groups: the weight becomes block-diagonal.

    `groups` must divide the groups there are.
    """
    blocks = conv.groups // groups
    if blocks == 1:
        return conv
    out, per_group = conv.out_channels // conv.groups, conv.weight.shape[1]
    weight = conv.weight.new_zeros(groups, blocks, out, blocks, per_group, *conv.kernel)
    grouped = conv.weight.reshape(groups, blocks, out, per_group, *conv.kernel)
    weight.diagonal(0, 1, 3).copy_(grouped.movedim(1, -1))
    wide = weight.reshape(conv.out_channels, blocks * per_group, *conv.kernel)
    return replace(conv, weight=wide, groups=groups)


class Grid(NamedTuple):
    """Where a kernel's taps lie: padding before each axis, number of taps, and their distance."""

    before: tuple[int, ...]
    taps: tuple[int, ...]
    dilation: tuple[int, ...]


Geometry = tuple[Sides, tuple[int, ...], tuple[int, ...]]
"""Padding, dilation and extent of a kernel."""


def embed_kernel(conv: Conv, grid: Grid) -> Conv:
    """The same map with its kernel set into a larger or finer grid; the padding grows with it."""
    before = tuple(low for low, _ in conv.padding)
    if (before, conv.kernel, conv.dilation) == grid:
        return conv
    if conv.kernel == grid.taps:
        return replace(conv, padding=_grown_padding(conv, grid), dilation=grid.dilation)
    weight = conv.weight.new_zeros(*conv.weight.shape[:2], *grid.taps)
    axes = zip(grid.before, grid.dilation, conv.padding, conv.dilation, conv.kernel, strict=True)
    window = [
        tap_slice((first - low) // step, d // step, k) for first, step, (low, _), d, k in axes
    ]
    weight[(slice(None), slice(None), *window)] = conv.weight
    return replace(conv, weight=weight, padding=_grown_padding(conv, grid), dilation=grid.dilation)


def _grown_padding(conv: Conv, grid: Grid) -> Sides:
    """The padding of a convolution whose kernel was set into a grid."""
    reach, own = span(grid.dilation, grid.taps), span(conv.dilation, conv.kernel)
    axes = zip(grid.before, conv.padding, reach, own, strict=True)
    return tuple((first, low + high + far - near - first) for first, (low, high), far, near in axes)


def tap_slice(first: int, step: int, count: int) -> slice:
    """The slice of `count` taps from `first` on; the step of a single tap means nothing."""
    step = max(step, 1) if count > 1 else 1
    return slice(first, first + step * (count - 1) + 1, step)


def sum_grid(a: Conv, b: Conv) -> Grid:
    """The smallest grid that holds the taps of both.

    Raises:
        Declined: if the two do not sample one input in one way, whatever its size.
    """
    require(a.n == b.n, "the branches differ in their number of spatial axes")
    if a.stride != b.stride:
        raise Declined(f"the branches differ in stride, {a.stride} and {b.stride}")
    channels = (a.in_channels, a.out_channels) == (b.in_channels, b.out_channels)
    require(channels, "the branches differ in channels")
    if a.padded and b.padded:
        require(a.padding_mode == b.padding_mode, "the branches differ in padding mode")
        require(
            equal_borders(a.border, b.border), "the branches are padded with different constants"
        )
    grid = _joint((a.padding, a.dilation, a.kernel), (b.padding, b.dilation, b.kernel))
    if grid is None:
        raise Declined("the branches differ in output size")
    for conv in (a, b):
        if conv.padding_mode != "zeros" and conv.padded:
            # Wider padding of these kinds fails on images that the narrower one still takes.
            lows, reach = tuple(low for low, _ in conv.padding), span(conv.dilation, conv.kernel)
            same = grid.before == lows and span(grid.dilation, grid.taps) == reach
            require(same, f"the branches are padded differently, in mode {conv.padding_mode!r}")
    return grid


@functools.lru_cache(1024)
def _joint(a: Geometry, b: Geometry) -> Grid | None:
    """The smallest grid that holds the taps of two kernels, None if the outputs differ in size.

    A network has few geometries, and a region is weighed by them again and again.
    """
    found: list[tuple[int, int, int]] = []
    axes = zip(*a, *b, strict=True)
    for (low_a, high_a), step_a, taps_a, (low_b, high_b), step_b, taps_b in axes:
        reach_a, reach_b = step_a * (taps_a - 1), step_b * (taps_b - 1)
        if low_a + high_a - reach_a != low_b + high_b - reach_b:
            return None
        step = gcd(step_a if taps_a > 1 else 0, step_b if taps_b > 1 else 0, low_a - low_b) or 1
        first, last = max(low_a, low_b), max(reach_a - low_a, reach_b - low_b)
        found.append((first, (first + last) // step + 1, step))
    return Grid(*(tuple(axis[part] for axis in found) for part in range(3)))


def span(dilation: tuple[int, ...], taps: tuple[int, ...]) -> tuple[int, ...]:
    """The distance from the first to the last tap, on each axis."""
    return tuple(step * (count - 1) for step, count in zip(dilation, taps, strict=True))


def add(a: Conv, b: Conv) -> Conv:
    """Two convolutions of one input, summed, as one convolution of it.

    Raises:
        Declined: as `sum_grid` says.
    """
    grid = sum_grid(a, b)
    groups = gcd(a.groups, b.groups)
    wide_a, wide_b = (widen_groups(embed_kernel(conv, grid), groups) for conv in (a, b))
    border, mode = (a.border, a.padding_mode) if a.padded else (b.border, b.padding_mode)
    weight = _added(a.weight, wide_a.weight, b.weight, wide_b.weight)
    bias, padding = add_biases(a.bias, b.bias), wide_a.padding
    return Conv(weight, bias, a.stride, padding, grid.dilation, groups, mode, border)


def _added(a: Tensor, wide_a: Tensor, b: Tensor, wide_b: Tensor) -> Tensor:
    """The sum of two widened weights, in the memory of one that is a copy already."""
    if wide_b is not b:
        return wide_b.add_(wide_a)
    return wide_a + wide_b if wide_a is a else wide_a.add_(wide_b)


def stack_rows(convs: Sequence[Conv]) -> Conv:
    """What several convolutions make of one input, side by side: a sum, each in its own rows.

    Raises:
        Declined: as `sum_grid` says.
    """
    total = sum(conv.out_channels for conv in convs)
    start, stacked = 0, None
    for conv in convs:
        part = _extended_rows(widen_groups(conv, 1), start, total)
        stacked = part if stacked is None else add(stacked, part)
        start += conv.out_channels
    assert stacked is not None, "there is something to stack"
    return stacked


def _extended_rows(conv: Conv, start: int, total: int) -> Conv:
    """The rows of a convolution from one on, and zeros before and after."""
    after = total - start - conv.out_channels

    def extended(tensor: Tensor) -> Tensor:
        zeros = [tensor.new_zeros(count, *tensor.shape[1:]) for count in (start, after)]
        return torch.cat([zeros[0], tensor, zeros[1]])

    bias = None if conv.bias is None else extended(conv.bias)
    return replace(conv, weight=extended(conv.weight), bias=bias)


def select_rows(conv: Conv, rows: Shaped[Tensor, " kept"]) -> Conv:
    """Some output channels of a convolution, in another order.

    Raises:
        Declined: if its groups would be torn apart.
    """
    if conv.groups > 1:
        own = rows // (conv.out_channels // conv.groups)
        even = torch.arange(conv.groups, device=rows.device).repeat_interleave(
            len(rows) // conv.groups
        )
        require(torch.equal(own, even), "its groups would be torn apart")
    bias = None if conv.bias is None else conv.bias[rows]
    return replace(conv, weight=conv.weight[rows], bias=bias)


def numberless(conv: Conv, shape: tuple[int, ...]) -> Conv:
    """A convolution with a weight of this shape that takes no memory."""
    return replace(conv, weight=conv.weight.new_zeros(()).expand(shape))


def added_shape(a: Conv, b: Conv) -> Conv:
    """`add(a, b)` in shape alone.

    Raises:
        Declined: as `sum_grid` says.
    """
    grid = sum_grid(a, b)
    groups = gcd(a.groups, b.groups)
    border, mode = (a.border, a.padding_mode) if a.padded else (b.border, b.padding_mode)
    shape = (a.out_channels, a.in_channels // groups, *grid.taps)
    weight = a.weight.new_zeros(()).expand(shape)
    bias, padding = b.bias if a.bias is None else a.bias, _grown_padding(a, grid)
    return Conv(weight, bias, a.stride, padding, grid.dilation, groups, mode, border)


def border_bias(conv: Conv) -> Tensor | None:
    """The bias with which `conv` is the same map of x - border, padded with zeros."""
    return conv.bias if conv.border is None else respond(conv, conv.border)


def respond(conv: Conv, constant: Shaped[Tensor, " in"]) -> Shaped[Tensor, " out"]:
    """What the map makes of an input that is constant over space, padding included."""
    taps = conv.weight.flatten(2).sum(2) if conv.n else conv.weight
    blocks = taps.reshape(conv.groups, -1, taps.shape[1])
    response = (blocks @ constant.reshape(conv.groups, -1, 1)).flatten()
    return response if conv.bias is None else response + conv.bias


def add_biases(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def equal_borders(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two border constants are the same up to float64 rounding, where None is zero."""
    if a is None or b is None:
        other = b if a is None else a
        return other is None or not bool(other.any())
    return not bool(significant(a, b).any())


def significant(a: Tensor, b: Tensor) -> Tensor:
    """`a - b`, with zero where float64 rounding alone may tell the two apart."""
    return torch.where(torch.isclose(a.double(), b.double(), rtol=ROUNDING, atol=0.0), 0.0, a - b)
