"""Hypothesis strategies for values: valid by construction, structure and a seed drawn.

Hypothesis draws shapes and hyper-parameters, which it can shrink, and one seed, from which all
numbers follow.
"""

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from reparam.devices import CPU
from reparam.testing.draft import DrawFn
from reparam.testing.randomised import EPSILONS
from reparam.values import BatchNorm, Conv

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
SEEDS = st.integers(0, 2**16)
CHANNELS = st.sampled_from((1, 2, 4, 6))


def drawn(seed: int, *shape: int) -> Tensor:
    """Random float64 numbers that depend on nothing but the seed and the shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=CPU)


def with_numbers(conv: Conv, seed: int) -> Conv:
    """The same convolution with random numbers in the place of those it has."""
    tensors = {
        name: None if old is None else drawn(seed + index, *old.shape)
        for index, (name, old) in enumerate(
            [("weight", conv.weight), ("bias", conv.bias), ("border", conv.border)]
        )
    }
    return replace(conv, **tensors)


@st.composite
def convs(
    draw: DrawFn,
    *,
    axes: st.SearchStrategy[int] = st.integers(0, 2),  # noqa: B008 - strategies are values
    in_channels: int | None = None,
    out_channels: int | None = None,
    stride: tuple[int, ...] | None = None,
    modes: tuple[str, ...] = ("zeros",),
) -> Conv:
    """Convolutions over 0 to 2 axes: groups, strides, dilations, even kernels, lopsided padding.

    Args:
        draw: what Hypothesis gives.
        axes: how many spatial axes.
        in_channels: fixed where they are given.
        out_channels: likewise.
        stride: likewise; it says how many axes there are, too.
        modes: which padding modes may be drawn; constants beyond the border only for "zeros".
    """
    n = draw(axes) if stride is None else len(stride)
    inner = draw(CHANNELS) if in_channels is None else in_channels
    outer = draw(CHANNELS) if out_channels is None else out_channels
    shared = [g for g in range(1, inner + 1) if inner % g == 0 == outer % g]
    groups = draw(st.sampled_from(shared))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(n))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(n))
    mode = draw(st.sampled_from(modes))
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(n))
    padded = any(side for pair in padding for side in pair)
    seed = draw(SEEDS)
    conv = Conv(
        drawn(0, outer, inner // groups, *kernel),
        drawn(0, outer) if draw(st.booleans()) else None,
        tuple(draw(st.integers(1, 3)) for _ in range(n)) if stride is None else stride,
        padding,
        dilation,
        groups,
        mode if padded else "zeros",
        drawn(0, inner) if padded and mode == "zeros" and draw(st.booleans()) else None,
    )
    return with_numbers(conv, seed)


@st.composite
def pairs_of_branches(draw: DrawFn) -> tuple[Conv, Conv]:
    """Two convolutions that sample one input alike, so that they can be added."""
    a = draw(convs(modes=PADDING_MODES))
    b = draw(convs(in_channels=a.in_channels, out_channels=a.out_channels, stride=a.stride))
    # What decides the output size is the padding less the reach: the second one is padded so that
    # it is equal, the kernel at any place that the first one's padding allows.
    padding: list[tuple[int, int]] = []
    for sides, step_a, taps_a, step_b, taps_b in zip(
        a.padding, a.dilation, a.kernel, b.dilation, b.kernel, strict=True
    ):
        total = sum(sides) - step_a * (taps_a - 1) + step_b * (taps_b - 1)
        low = draw(st.integers(min(0, total), max(0, total)))
        padding.append((low, total - low))
    possible = all(side >= 0 for pair in padding for side in pair)
    if not possible or a.padding_mode != "zeros":
        return a, with_numbers(a, draw(SEEDS))
    b = replace(b, padding=tuple(padding), border=None)
    if a.padded and b.padded:
        b = replace(b, border=a.border)
    return a, b


@st.composite
def pairs_in_series(draw: DrawFn) -> tuple[Conv, Conv]:
    """An outer and an inner convolution that fit; most of them merge."""
    inner = draw(convs())
    outer = draw(convs(axes=st.just(inner.n), in_channels=inner.out_channels))
    kind = draw(st.sampled_from(("unpadded", "pointwise inside", "no constant", "any")))
    if kind == "unpadded":
        outer = replace(outer, padding=((0, 0),) * outer.n, border=None)
    elif kind == "pointwise inside":
        weight = inner.weight[(..., *(slice(0, 1),) * inner.n)]
        inner = replace(inner, weight=weight, padding=((0, 0),) * inner.n, border=None)
        if draw(st.booleans()):
            mode = draw(st.sampled_from(PADDING_MODES))
            border = outer.border if mode == "zeros" else None
            outer = replace(outer, padding_mode=mode, border=border)
    if kind == "no constant":
        inner = replace(inner, bias=None, border=None)
        outer = replace(outer, border=None)
    return outer, inner


@st.composite
def batch_norms(
    draw: DrawFn,
    channels: st.SearchStrategy[int] = CHANNELS,
    axes: st.SearchStrategy[int] = st.integers(0, 3),  # noqa: B008 - strategies are values
) -> BatchNorm:
    """Batch norms by random statistics, affine or not, of several ε; a variance may be 0."""
    width, seed = draw(channels), draw(SEEDS)
    affine = draw(st.booleans())
    variance = drawn(seed + 1, width).abs()
    if draw(st.booleans()):
        variance[0] = 0.0
    return BatchNorm(
        mean=drawn(seed, width),
        variance=variance,
        weight=drawn(seed + 2, width) if affine else None,
        bias=drawn(seed + 3, width) if affine else None,
        eps=draw(st.sampled_from(EPSILONS)),
        n=draw(axes),
    )
