"""Hypothesis strategies for values, which `reparam.testing` has, and for modules.

Batch norms and layer scales never have their fresh statistics, which hide nearly every mistake.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.testing.randomised import randomised
from reparam.testing.values import (
    CHANNELS,
    PADDING_MODES,
    SEEDS,
    batch_norms,
    convs,
    drawn,
    pairs_in_series,
    pairs_of_branches,
    with_numbers,
)

__all__ = [
    "CHANNELS",
    "PADDING_MODES",
    "SEEDS",
    "batch_norms",
    "convs",
    "drawn",
    "pairs_in_series",
    "pairs_of_branches",
    "with_numbers",
]


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
