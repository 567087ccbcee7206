"""The laws by which linear maps merge: values in, value out.

Each law is exact in real arithmetic, at most bilinear in its operands, and states when it holds;
where it does not, it declines and says why. Nothing here knows of graphs, and no law converts a
dtype: `exact` does that once, before.
"""

from dataclasses import dataclass, replace
from itertools import product
from math import gcd, prod

import torch
from jaxtyping import Shaped
from torch import Tensor

from reparam.errors import require
from reparam.values import BatchNorm, Conv, Sides


def exact(conv: Conv) -> Conv:
    """The same convolution with its tensors in float64, in which all folding is done."""
    tensors = {name: getattr(conv, name) for name in ("weight", "bias", "border")}
    return replace(conv, **{name: None if t is None else t.double() for name, t in tensors.items()})


def affine(
    scale: Shaped[Tensor, " channels"], shift: Shaped[Tensor, " channels"] | None, n: int
) -> Conv:
    """`scale * x + shift`, a number of each per channel, over n spatial axes."""
    return Conv(scale.reshape(-1, 1, *(1,) * n), shift, groups=scale.numel())


def identity_like(conv: Conv, coefficient: float) -> Conv:
    """`coefficient * x` as a convolution over the input channels of another."""
    ones = torch.ones(conv.in_channels, dtype=conv.weight.dtype, device=conv.weight.device)
    return affine(ones * coefficient, None, conv.n)


def batch_norm_affine(norm: BatchNorm) -> Conv:
    """A batch norm's scale `gamma / sqrt(variance + eps)` and shift `beta - scale * mean`."""
    n = norm.n
    require(n is not None, "whether its input has spatial axes is not known; pass example_inputs")
    assert n is not None
    scale = torch.rsqrt(norm.variance.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -scale * norm.mean.double()
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return affine(scale, shift, n)


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
    for block in range(blocks):
        weight[:, block, :, block] = grouped[:, block]
    wide = weight.reshape(conv.out_channels, blocks * per_group, *conv.kernel)
    return replace(conv, weight=wide, groups=groups)


@dataclass(frozen=True)
class Grid:
    """Where a kernel's taps lie: padding before each axis, number of taps, and their distance."""

    before: tuple[int, ...]
    taps: tuple[int, ...]
    dilation: tuple[int, ...]


def embed_kernel(conv: Conv, grid: Grid) -> Conv:
    """The same map with its kernel set into a larger or finer grid; the padding grows with it."""
    weight = conv.weight.new_zeros(*conv.weight.shape[:2], *grid.taps)
    axes = zip(grid.before, grid.dilation, conv.padding, conv.dilation, conv.kernel, strict=True)
    window = [_taps((first - low) // step, d // step, k) for first, step, (low, _), d, k in axes]
    weight[(slice(None), slice(None), *window)] = conv.weight
    return replace(conv, weight=weight, padding=_grown_padding(conv, grid), dilation=grid.dilation)


def _grown_padding(conv: Conv, grid: Grid) -> Sides:
    """The padding of a convolution whose kernel was set into a grid."""
    reach, own = _reach(grid.dilation, grid.taps), _reach(conv.dilation, conv.kernel)
    axes = zip(grid.before, conv.padding, reach, own, strict=True)
    return tuple((first, low + high + far - near - first) for first, (low, high), far, near in axes)


def _taps(first: int, step: int, count: int) -> slice:
    """The slice of `count` taps from `first` on; the step of a single tap means nothing."""
    step = max(step, 1) if count > 1 else 1
    return slice(first, first + step * (count - 1) + 1, step)


def sum_grid(a: Conv, b: Conv) -> Grid:
    """The smallest grid that holds the taps of both.

    Raises:
        Declined: if the two do not sample one input in one way, whatever its size.
    """
    require(a.n == b.n, "the branches differ in their number of spatial axes")
    require(a.stride == b.stride, f"the branches differ in stride, {a.stride} and {b.stride}")
    channels = (a.in_channels, a.out_channels) == (b.in_channels, b.out_channels)
    require(channels, "the branches differ in channels")
    padded = [conv for conv in (a, b) if conv.padded]
    if len(padded) == 2:  # noqa: PLR2004
        require(a.padding_mode == b.padding_mode, "the branches differ in padding mode")
        require(_equal(a.border, b.border), "the branches are padded with different constants")
    before: list[int] = []
    taps: list[int] = []
    dilation: list[int] = []
    axes = zip(a.padding, b.padding, a.dilation, b.dilation, a.kernel, b.kernel, strict=True)
    for (low_a, high_a), (low_b, high_b), step_a, step_b, taps_a, taps_b in axes:
        reach_a, reach_b = step_a * (taps_a - 1), step_b * (taps_b - 1)
        same_size = low_a + high_a - reach_a == low_b + high_b - reach_b
        require(same_size, "the branches differ in output size")
        step = gcd(step_a if taps_a > 1 else 0, step_b if taps_b > 1 else 0, low_a - low_b) or 1
        before.append(max(low_a, low_b))
        end = max(reach_a - low_a, reach_b - low_b)
        taps.append((before[-1] + end) // step + 1)
        dilation.append(step)
    grid = Grid(tuple(before), tuple(taps), tuple(dilation))
    for conv in padded:
        if conv.padding_mode != "zeros":
            # Wider padding of these kinds fails on images that the narrower one still takes.
            lows, reach = tuple(low for low, _ in conv.padding), _reach(conv.dilation, conv.kernel)
            same = grid.before == lows and _reach(grid.dilation, grid.taps) == reach
            require(same, f"the branches are padded differently, in mode {conv.padding_mode!r}")
    return grid


def _reach(dilation: tuple[int, ...], taps: tuple[int, ...]) -> tuple[int, ...]:
    """From the first to the last tap, on each axis."""
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
    return replace(
        wide_a,
        weight=wide_a.weight + wide_b.weight,
        bias=_add_optional(a.bias, b.bias),
        border=border,
        padding_mode=mode,
    )


def numberless(conv: Conv, shape: tuple[int, ...]) -> Conv:
    """A convolution with a weight of this shape that takes no memory, and no bias."""
    return replace(conv, weight=conv.weight.new_zeros(()).expand(shape), bias=None)


def added_shape(a: Conv, b: Conv) -> Conv:
    """`add(a, b)` in shape alone.

    Raises:
        Declined: as `sum_grid` says.
    """
    grid = sum_grid(a, b)
    groups = gcd(a.groups, b.groups)
    border, mode = (a.border, a.padding_mode) if a.padded else (b.border, b.padding_mode)
    shape = (a.out_channels, a.in_channels // groups, *grid.taps)
    return replace(
        numberless(a, shape),
        padding=_grown_padding(a, grid),
        dilation=grid.dilation,
        groups=groups,
        border=border,
        padding_mode=mode,
    )


def compose(outer: Conv, inner: Conv) -> Conv:
    """`outer(inner(x))` as one convolution of x.

    The kernels convolve, the inner stride dilating the outer kernel. Padding of the outer one is
    the hazard: it shows a constant where the inner one's bias would be.

    Raises:
        Declined: if a border in between can not be expressed as a border of x.
    """
    require(outer.n == inner.n, "the two differ in their number of spatial axes")
    padding, mode, border = _composed_border(outer, inner)
    kernel, dilation = _composed_taps(outer, inner)
    groups = composed_groups(outer, inner)
    weight: Tensor | None = None
    for tap in product(*map(range, outer.kernel)):
        part = _compose_channels(outer, tap, inner, groups)
        if weight is None:
            weight = part.new_zeros(*part.shape[:2], *kernel)
        axes = zip(tap, inner.stride, outer.dilation, inner.dilation, inner.kernel, dilation, strict=True)
        window = [_taps(t * s * d // step, e // step, k) for t, s, d, e, k, step in axes]
        weight[(slice(None), slice(None), *window)] += part
    assert weight is not None, "a kernel has at least one tap"
    stride = tuple(a * b for a, b in zip(outer.stride, inner.stride, strict=True))
    return Conv(weight, _composed_bias(outer, inner), stride, padding, dilation, groups, mode, border)


def composed_groups(outer: Conv, inner: Conv) -> int:
    """The number of groups that `compose` leaves."""
    if outer.depthwise:
        return inner.groups
    if inner.depthwise:
        return outer.groups
    return gcd(outer.groups, inner.groups)


def _composed_taps(outer: Conv, inner: Conv) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel and dilation of the composition."""
    kernel: list[int] = []
    dilation: list[int] = []
    axes = zip(outer.kernel, inner.kernel, outer.dilation, inner.dilation, inner.stride, strict=True)
    for outer_taps, inner_taps, outer_dilation, inner_dilation, stride in axes:
        steps = (stride * outer_dilation if outer_taps > 1 else 0, inner_dilation if inner_taps > 1 else 0)
        step = gcd(*steps) or 1
        kernel.append((steps[0] * (outer_taps - 1) + steps[1] * (inner_taps - 1)) // step + 1)
        dilation.append(step)
    return tuple(kernel), tuple(dilation)


def composed_kernel(outer: Conv, inner: Conv) -> tuple[int, ...]:
    """The kernel that `compose` leaves, without computing it."""
    return _composed_taps(outer, inner)[0]


def _compose_channels(outer: Conv, tap: tuple[int, ...], inner: Conv, groups: int) -> Tensor:
    """One tap of the outer kernel applied to the whole inner one: (out, in/groups, *inner kernel)."""
    mixing = outer.weight[(slice(None), slice(None), *tap)]
    spread = (1,) * inner.n
    if outer.depthwise:
        return mixing.reshape(-1, 1, *spread) * inner.weight
    if inner.depthwise:
        columns = inner.weight.reshape(outer.groups, 1, -1, *inner.kernel)
        rows = mixing.reshape(outer.groups, -1, mixing.shape[1], *spread)
        return (rows * columns).flatten(0, 1)
    left = widen_groups(Conv(mixing, groups=outer.groups), groups).weight
    right = widen_groups(inner, groups).weight
    per_group = right.shape[1]
    blocks = left.unflatten(0, (groups, -1)) @ right.reshape(groups, left.shape[1], -1)
    return blocks.reshape(outer.out_channels, per_group, *inner.kernel)


def _composed_bias(outer: Conv, inner: Conv) -> Tensor | None:
    """The outer map of the inner bias, plus the outer bias."""
    return outer.bias if inner.bias is None else _respond(outer, inner.bias)


def _respond(conv: Conv, constant: Shaped[Tensor, " in"]) -> Shaped[Tensor, " out"]:
    """What the map makes of an input that is constant over space, padding included."""
    taps = conv.weight.flatten(2).sum(2) if conv.n else conv.weight
    blocks = taps.unflatten(0, (conv.groups, -1)) @ constant.reshape(conv.groups, -1, 1)
    response = blocks.flatten()
    return response if conv.bias is None else response + conv.bias


def border_bias(conv: Conv) -> Tensor | None:
    """The bias with which `conv` is the same map of x - border, padded with zeros."""
    return conv.bias if conv.border is None else _respond(conv, conv.border)


def _composed_border(outer: Conv, inner: Conv) -> tuple[Sides, str, Tensor | None]:
    """Padding, padding mode and border constant of the composition."""
    strides = zip(inner.padding, inner.stride, outer.padding, strict=True)
    padding = tuple((a + s * c, b + s * d) for (a, b), s, (c, d) in strides)
    if not outer.padded:
        return padding, inner.padding_mode, inner.border
    if outer.padding_mode != "zeros":
        reason = f"padding in mode {outer.padding_mode!r} commutes with a pointwise map alone"
        require(inner.pointwise, reason)
        return padding, outer.padding_mode, None
    for sides, kernel, own in zip(outer.padding, inner.kernel, inner.padding, strict=True):
        if any(sides):
            require(kernel == 1 and not any(own), "two padded kernels do not merge at the border")
    mixed = not inner.padded or inner.padding_mode == "zeros"
    require(mixed, "the two are padded in different modes")
    border = _border_before(inner, outer.border)
    if inner.padded:
        same = _equal(inner.border, border)
        require(same, "the two are padded with different constants")
    return padding, "zeros", border


def _border_before(inner: Conv, border: Tensor | None) -> Tensor | None:
    """The constant c of the input with `inner(c) = border`."""
    bias = torch.zeros_like(inner.weight[:, 0].flatten(1)[:, 0]) if inner.bias is None else inner.bias
    wanted = -bias if border is None else border - bias
    if not bool(wanted.any()):
        return None
    require(inner.depthwise, "its bias meets the zero padding of the next kernel")
    response = inner.weight.flatten(1).sum(1)
    require(bool(response.all()), "its shift meets zero padding, and a scale of 0 can't be undone")
    return wanted / response


def _add_optional(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two border constants are the same, where None is zero."""
    if a is None or b is None:
        other = b if a is None else a
        return other is None or not bool(other.any())
    return torch.equal(a, b)


def composed_madds(outer: Conv, inner: Conv) -> int:
    """Multiply-adds per output pixel of `compose(outer, inner)`, without computing it."""
    per_group = inner.in_channels // composed_groups(outer, inner)
    return outer.out_channels * per_group * prod(composed_kernel(outer, inner))
