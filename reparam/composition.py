"""One convolution after another as one: kernels convolve, and borders are the hazard."""

from itertools import product
from math import gcd, prod

import torch
from torch import Tensor

from reparam.algebra import equal_borders, respond, significant, tap_slice, widen_groups
from reparam.errors import Declined, require
from reparam.functions import Sides
from reparam.values import Conv


def compose(outer: Conv, inner: Conv) -> Conv:
    """`outer(inner(x))` as one convolution of x.

    The kernels convolve, the inner stride dilating the outer kernel. Padding of the outer one is
    the hazard: it shows a constant where the inner one's bias would be.

    Raises:
        Declined: if a border in between can not be expressed as a border of x.
    """
    require(outer.n == inner.n, "the two differ in their number of spatial axes")
    padding, mode, border = composed_border(outer, inner)
    kernel, dilation = _composed_taps(outer, inner)
    groups = composed_groups(outer, inner)
    weight = _compose_kernels(outer, inner, groups, kernel, dilation)
    stride = tuple(a * b for a, b in zip(outer.stride, inner.stride, strict=True))
    return Conv(
        weight, _composed_bias(outer, inner), stride, padding, dilation, groups, mode, border
    )


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
    axes = zip(
        outer.kernel, inner.kernel, outer.dilation, inner.dilation, inner.stride, strict=True
    )
    for outer_taps, inner_taps, outer_dilation, inner_dilation, stride in axes:
        steps = (
            stride * outer_dilation if outer_taps > 1 else 0,
            inner_dilation if inner_taps > 1 else 0,
        )
        step = gcd(*steps) or 1
        kernel.append((steps[0] * (outer_taps - 1) + steps[1] * (inner_taps - 1)) // step + 1)
        dilation.append(step)
    return tuple(kernel), tuple(dilation)


def composed_kernel(outer: Conv, inner: Conv) -> tuple[int, ...]:
    """The kernel that `compose` leaves, without computing it."""
    return _composed_taps(outer, inner)[0]


def _compose_kernels(
    outer: Conv, inner: Conv, groups: int, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """The weight of the composition: for each outer tap, the inner kernel at its place."""
    scales = prod(inner.kernel) == 1 and (outer.depthwise or inner.depthwise)
    if scales or prod(outer.kernel) == 1:  # no two taps meet in a place
        return _compose_channels(outer.weight, outer, inner, groups)
    weight = outer.weight.new_zeros(outer.out_channels, inner.in_channels // groups, *kernel)
    for tap in product(*map(range, outer.kernel)):
        one = (slice(None), slice(None), *(slice(t, t + 1) for t in tap))
        part = _compose_channels(outer.weight[one], outer, inner, groups)
        axes = zip(
            tap, inner.stride, outer.dilation, inner.dilation, inner.kernel, dilation, strict=True
        )
        window = [tap_slice(t * s * d // step, e // step, k) for t, s, d, e, k, step in axes]
        weight[(slice(None), slice(None), *window)] += part
    return weight


def _compose_channels(taps: Tensor, outer: Conv, inner: Conv, groups: int) -> Tensor:
    """Taps of the outer kernel on the inner one, of which at least one has a single tap.

    Several outer taps at once need one of the two to be depthwise.
    """
    if outer.depthwise:
        return taps * inner.weight
    if inner.depthwise:
        columns = inner.weight.reshape(outer.groups, 1, -1, *inner.kernel)
        rows = taps.reshape(outer.groups, -1, *taps.shape[1:])
        return (rows * columns).flatten(0, 1)
    left = widen_groups(Conv(taps.flatten(1), groups=outer.groups), groups).weight
    right = widen_groups(inner, groups).weight
    per_group = right.shape[1]
    blocks = left.reshape(groups, -1, left.shape[1]) @ right.reshape(groups, left.shape[1], -1)
    return blocks.reshape(outer.out_channels, per_group, *inner.kernel)


def _composed_bias(outer: Conv, inner: Conv) -> Tensor | None:
    """The outer map of the inner bias, plus the outer bias."""
    return outer.bias if inner.bias is None else respond(outer, inner.bias)


def composed_border(outer: Conv, inner: Conv) -> tuple[Sides, str, Tensor | None]:
    """Padding, padding mode and border constant of the composition.

    Raises:
        Declined: if a border in between can not be expressed as a border of x.
    """
    strides = zip(inner.padding, inner.stride, outer.padding, strict=True)
    padding = tuple((a + s * c, b + s * d) for (a, b), s, (c, d) in strides)
    if not outer.padded:
        if outer.cropped and inner.padding_mode != "zeros":
            reason = f"a crop of what is padded in mode {inner.padding_mode!r} is not merged"
            raise Declined(reason)
        return padding, inner.padding_mode, inner.border
    if outer.padding_mode != "zeros":
        reason = f"padding in mode {outer.padding_mode!r} commutes with a pointwise map alone"
        require(inner.pointwise, reason)
        return padding, outer.padding_mode, None
    axes = zip(outer.padding, inner.kernel, inner.padding, inner.stride, strict=True)
    for sides, kernel, (low, high), stride in axes:
        if any(sides):
            # Rows that a stride passes over do not count: what comes before the first is padding.
            whole = kernel == 1 and high == 0 and -stride < low <= 0
            require(whole, "two padded kernels do not merge at the border")
    mixed = not inner.padded or inner.padding_mode == "zeros"
    require(mixed, "the two are padded in different modes")
    border = _border_before(inner, outer.border)
    if inner.padded:
        same = equal_borders(inner.border, border)
        zeros = inner.border is None and outer.border is None
        reason = "its bias meets the zero padding of the next kernel"
        require(same, reason if zeros else "the two are padded with different constants")
    return padding, "zeros", border


def _border_before(inner: Conv, border: Tensor | None) -> Tensor | None:
    """The constant c of the input with `inner(c) = border`."""
    bias = (
        torch.zeros_like(inner.weight[:, 0].flatten(1)[:, 0]) if inner.bias is None else inner.bias
    )
    wanted = -bias if border is None else significant(border, bias)
    if not bool(wanted.any()):
        return None
    require(inner.depthwise, "its bias meets the zero padding of the next kernel")
    response = inner.weight.flatten(1).sum(1)
    require(bool(response.all()), "its shift meets zero padding, and a scale of 0 can't be undone")
    return wanted / response


def composed_madds(outer: Conv, inner: Conv) -> int:
    """Multiply-adds per output pixel of `compose(outer, inner)`, without computing it."""
    per_group = inner.in_channels // composed_groups(outer, inner)
    return outer.out_channels * per_group * prod(composed_kernel(outer, inner))
