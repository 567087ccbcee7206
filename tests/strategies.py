"""Hypothesis strategies for values and modules: valid by construction, structure and a seed drawn.

Hypothesis draws shapes and hyper-parameters, which it can shrink, and one seed, from which all
numbers follow. Batch norms and layer scales never have their fresh statistics, which hide nearly
every mistake.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.values import BatchNorm, Conv
from tests.randomised import EPSILONS, randomised

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
SEEDS = st.integers(0, 2**16)
CHANNELS = st.sampled_from((1, 2, 4, 6))


def drawn(seed: int, *shape: int) -> Tensor:
    """Random float64 numbers that depend on nothing but the seed and the shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


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
    draw: st.DrawFn,
    *,
    axes: st.SearchStrategy[int] = st.integers(0, 2),  # noqa: B008 - strategies are values
    in_channels: int | None = None,
    out_channels: int | None = None,
    stride: tuple[int, ...] | None = None,
    modes: tuple[str, ...] = ("zeros",),
) -> Conv:
    """Convolutions over 0 to 2 axes: groups, strides, dilations, even kernels, lopsided padding.

    Args:
        axes: how many spatial axes.
        in_channels, out_channels, stride: fixed where they are given.
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
def pairs_of_branches(draw: st.DrawFn) -> tuple[Conv, Conv]:
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
        return a, with_numbers(replace(a, dilation=a.dilation), draw(SEEDS))
    b = replace(b, padding=tuple(padding), border=None)
    if a.padded and b.padded:
        b = replace(b, border=a.border)
    return a, b


@st.composite
def pairs_in_series(draw: st.DrawFn) -> tuple[Conv, Conv]:
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
    draw: st.DrawFn,
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


@dataclass(frozen=True)
class Step:
    """One thing that a drawn network does.

    Attributes:
        kind: which of `KINDS`.
        sources: which of the tensors computed so far it reads; counted from the last.
        variant: chooses kernel, groups, bias and the like.
        layer: which earlier layer of its kind it shares, or None for a layer of its own.
    """

    kind: str
    sources: tuple[int, int]
    variant: int
    shared: bool


WIDTH = 4


class Network(nn.Module):
    """A small network of `steps` over images of four channels, each step one of many forms."""

    def __init__(self, steps: list[Step], outputs: list[int]) -> None:
        super().__init__()
        self.steps = steps
        self.outputs = outputs
        self.layers = nn.ModuleList()
        self.scales = nn.ParameterList()
        self.layer_of: dict[int, int] = {}
        self.scale_of: dict[int, int] = {}
        made: dict[str, int] = {}
        for index, step in enumerate(steps):
            if step.kind in SCALES:
                self.scale_of[index] = len(self.scales)
                self.scales.append(nn.Parameter(torch.ones(SCALES[step.kind])))
            if step.kind not in LAYERS:
                continue
            if not (step.shared and step.kind in made):
                made[step.kind] = len(self.layers)
                self.layers.append(LAYERS[step.kind](step.variant))
            self.layer_of[index] = made[step.kind]

    def forward(self, x: Tensor) -> Any:
        tensors = [x]
        for index, step in enumerate(self.steps):
            a, b = (tensors[-1 - source % len(tensors)] for source in step.sources)
            if index in self.layer_of:
                result = self._layer(step, self.layers[self.layer_of[index]], a)
            elif index in self.scale_of:
                result = a * self.scales[self.scale_of[index]]
            else:
                result = PLAIN[step.kind](a, b, step.variant)
            tensors.append(result)
        if len(self.outputs) == 1:
            return tensors[-1]
        return [tensors[-1 - output % len(tensors)] for output in self.outputs]

    @staticmethod
    def _layer(step: Step, layer: Any, x: Tensor) -> Tensor:
        if step.kind == "functional conv":
            return F.conv2d(x, layer.weight, bias=layer.bias, padding=1)
        if step.kind == "functional batch norm":
            statistics = layer.running_mean, layer.running_var
            return F.batch_norm(x, *statistics, layer.weight, layer.bias, eps=layer.eps)
        if step.kind == "in-place relu":
            return layer(x * 1.5 if step.variant % 2 else x.clone())
        return layer(x)


def _conv(variant: int) -> nn.Module:
    kernel = (1, 3, (1, 3), (3, 1), 5)[variant % 5]
    groups = (1, 2, WIDTH)[variant % 3]
    modes = ("zeros", "zeros", "reflect", "circular")
    return nn.Conv2d(
        WIDTH,
        WIDTH,
        kernel,
        padding="same" if variant % 7 else "valid" if kernel == 1 else "same",
        dilation=1 + (variant % 11 == 0),
        groups=groups,
        bias=bool(variant % 2),
        padding_mode=modes[variant % 4],
    )


def _norm(variant: int) -> nn.Module:
    return nn.BatchNorm2d(WIDTH, affine=bool(variant % 4))


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "conv": _conv,
    "depthwise": lambda v: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=bool(v % 2)),
    "batch norm": _norm,
    "dropout": lambda v: nn.Dropout(0.5, inplace=bool(v % 2)),
    "in-place relu": lambda _: nn.ReLU(inplace=True),
    "functional conv": lambda v: nn.Conv2d(WIDTH, WIDTH, 3, bias=bool(v % 2)),
    "functional batch norm": _norm,
    "block": lambda v: nn.Sequential(_conv(v), _norm(v), nn.Identity(), nn.GELU()),
    "even": lambda v: nn.Conv2d(WIDTH, WIDTH, (2, 4), padding="same", bias=bool(v % 2)),
}
SCALES: dict[str, tuple[int, ...]] = {
    "layer scale": (WIDTH, 1, 1),
    "batched layer scale": (1, WIDTH, 1, 1),
}
PLAIN: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "add": lambda a, b, _: a + b,
    "sub": lambda a, b, _: a - b,
    "weighted": lambda a, b, v: torch.add(a, b, alpha=0.5 * (v % 3)),
    "multiple": lambda a, _, v: a * (0.5 * (v % 4) - 1),
    "gelu": lambda a, _, v: F.gelu(a),
    "relu_": lambda a, b, _: (a + b).relu_(),
    "in-place add": lambda a, b, _: a.clone().add_(b),
    "product": lambda a, b, _: a * b.sigmoid(),
    "pooled": lambda a, b, _: a + F.adaptive_avg_pool2d(b, 1),
    "functional dropout": lambda a, _, v: F.dropout(a, 0.5, training=False),
    "half": lambda a, b, _: torch.cat([a.chunk(2, 1)[0], b.chunk(2, 1)[1]], 1),
}
KINDS = (*LAYERS, *SCALES, *PLAIN)
# Most of what is drawn is linear: that is where there is something to fold.
OFTEN = ("conv", "batch norm", "add", "depthwise", "layer scale", "conv", "batch norm", "add")
PIXELS = (7, 6)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """One step; it mostly reads the tensor before it."""
    first = draw(st.sampled_from((0, 0, 0, 1, 2, 3)))
    return Step(
        draw(st.sampled_from(OFTEN + KINDS)),
        (first, draw(st.integers(0, 4))),
        draw(st.integers(0, 41)),
        draw(st.booleans()),
    )


@st.composite
def modules(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Small networks, in evaluation mode, with statistics and scales that hide nothing."""
    parts = draw(st.lists(steps(), min_size=1, max_size=9))
    outputs = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    seed = draw(SEEDS)
    network = Network(parts, outputs).to(dtype)
    for index, layer in enumerate(network.layers):
        if isinstance(layer, nn.BatchNorm2d):  # one that only F.batch_norm reads is not calibrated
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(drawn(seed + index, WIDTH))
            layer.running_var.copy_(drawn(seed - index, WIDTH).abs() + 0.5)
    return randomised(network, images(seed, dtype), seed=seed)


def images(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Input of the networks, (3, 4, 7, 6)."""
    return drawn(seed, 3, WIDTH, *PIXELS).to(dtype)
