"""A fuzz over borders: random linear regions, at every image size from 1 to 2R + 2S.

R is the receptive extent, padding included, and S the stride. Rewrites are made unchecked, so that
the laws alone stand between a region and a wrong border.
"""

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import passes
import reparam
from tests.randomised import randomised
from tests.schemes.scheme import example, same_function
from tests.schemes.test_traps import Total

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

CHANNELS = 2
WIDE = 24
"""Channels in between, where one merged kernel costs less: only the border forbids it."""


class Padded(nn.Module):
    """A constant, or by a mode, beyond each side; a negative number leaves rows out."""

    def __init__(self, sides: tuple[int, int, int, int], value: float, mode: str) -> None:
        super().__init__()
        self.sides, self.mode = sides, mode
        self.value = value if mode == "constant" else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, self.sides, self.mode, self.value)


class Rows(nn.Module):
    """Every so many rows and columns, from one on."""

    def __init__(self, start: tuple[int, int], step: tuple[int, int]) -> None:
        super().__init__()
        self.start, self.step = start, step

    def forward(self, x: Tensor) -> Tensor:
        (top, left), (down, right) = self.start, self.step
        return x[:, :, top::down, left::right]


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
SIDES = st.integers(0, 2)
MODES = st.sampled_from(("zeros", "zeros", "zeros", "reflect", "replicate", "circular"))


@st.composite
def convolutions(
    draw: st.DrawFn, inner: int = CHANNELS, outer: int = CHANNELS, bias: bool | None = None
) -> nn.Module:
    return nn.Conv2d(
        inner,
        outer,
        draw(PAIRS),
        draw(st.integers(1, 2)),
        draw(st.tuples(SIDES, SIDES)),
        draw(st.integers(1, 2)),
        draw(st.sampled_from((1, CHANNELS))),
        draw(st.booleans()) if bias is None else bias,
        draw(MODES),
    )


@st.composite
def pools(draw: st.DrawFn) -> nn.Module:
    kernel = draw(PAIRS)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    stride = draw(st.integers(1, 2))
    return nn.AvgPool2d(kernel, stride, padding, draw(st.booleans()), draw(st.booleans()))


PADDINGS = st.builds(
    Padded,
    st.tuples(*[st.integers(-1, 2)] * 4),
    st.sampled_from((0.0, 0.0, 0.5, -2.0)),
    st.just("constant"),
) | st.builds(
    Padded, st.tuples(*[SIDES] * 4), st.just(0.0), st.sampled_from(("reflect", "replicate"))
)
ROWS = st.builds(Rows, st.tuples(SIDES, SIDES), st.tuples(st.integers(1, 2), st.integers(1, 2)))
NORMS = st.builds(nn.BatchNorm2d, st.just(CHANNELS), affine=st.booleans())
TRANSPOSED = st.builds(
    nn.ConvTranspose2d,
    st.just(CHANNELS),
    st.just(CHANNELS),
    PAIRS,
    padding=st.integers(0, 1),
    bias=st.booleans(),
)


@st.composite
def pairs(draw: st.DrawFn) -> nn.Module:
    """Two convolutions with many channels in between, and sometimes a crop."""
    rows = [draw(ROWS)] if draw(st.booleans()) else []
    wide = draw(convolutions(CHANNELS, WIDE, bias=draw(st.sampled_from((False, False, True)))))
    return nn.Sequential(*rows, wide, *rows, draw(convolutions(WIDE, CHANNELS)))


LAYERS = convolutions() | pairs() | pools() | PADDINGS | ROWS | NORMS | TRANSPOSED


@st.composite
def same_size(draw: st.DrawFn, stride: int) -> nn.Module:
    """A branch that makes ceil(size / stride) of a size, in one of many ways."""
    kernel = draw(st.sampled_from(((1, 1), (3, 3), (1, 3), (3, 1), (5, 3))))
    half = tuple(k // 2 for k in kernel)
    bias, groups = draw(st.booleans()), draw(st.sampled_from((1, CHANNELS)))
    norm = [nn.BatchNorm2d(CHANNELS)] if draw(st.booleans()) else []

    def conv(kernel: Any, stride: int, padding: Any) -> nn.Module:
        return nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, padding, 1, groups, bias)

    ways: list[Any] = [
        [conv(kernel, stride, half)],
        [nn.AvgPool2d(kernel, stride, half, count_include_pad=draw(st.booleans()))],
        [nn.BatchNorm2d(CHANNELS), conv(kernel, stride, half)],
        [conv(1, 1, 0), *norm, conv(kernel, stride, half)],
        [conv(kernel, 1, half), *norm, conv(1, stride, 0)],
        [Padded((half[1],) * 2 + (half[0],) * 2, 0.5, "constant"), conv(kernel, stride, 0)],
        [conv(kernel, 1, tuple(2 * h for h in half)), conv(kernel, stride, 0)],
        [Rows((0, 0), (stride, stride)), conv(1, 1, 0)],
        [conv(1, 1, 0), Rows((0, 0), (stride, stride))],
        [conv((3, 3), stride, 2), Padded((-1,) * 4, 0.0, "constant")] if stride == 1 else [],
        [nn.BatchNorm2d(CHANNELS)] if stride == 1 else [],
        [nn.Identity()] if stride == 1 else [],
    ]
    chosen = draw(st.sampled_from([way for way in ways if way]))
    return nn.Sequential(*chosen, *norm)


@st.composite
def regions(draw: st.DrawFn) -> nn.Module:
    """Chains of any layers, or sums of branches of one size with something after them."""
    if draw(st.booleans()):
        return nn.Sequential(*draw(st.lists(LAYERS, min_size=1, max_size=3)))
    stride = draw(st.integers(1, 2))
    branches = draw(st.lists(same_size(stride), min_size=2, max_size=3))
    return nn.Sequential(Total(*branches), *draw(st.lists(LAYERS, max_size=1)))


def extent(model: nn.Module) -> tuple[int, int]:
    """An upper bound of the receptive extent, padding included, and the stride."""
    if isinstance(model, Total):
        parts = [extent(part) for part in model.parts]
        return max(reach for reach, _ in parts), max(stride for _, stride in parts)
    if isinstance(model, nn.Sequential):
        total, jump = 1, 1
        for reach, stride in map(extent, model):
            total += jump * (reach - 1)
            jump *= stride
        return total, jump
    if isinstance(model, Rows):
        return 1 + max(model.start), max(model.step)
    if isinstance(model, Padded):
        return 1 + max(map(abs, model.sides)), 1
    if not isinstance(model, nn.Conv2d | nn.AvgPool2d | nn.ConvTranspose2d):
        return 1, 1
    kernel, dilation, padding, stride = (
        value if isinstance(value, tuple) else (value, value)
        for value in (
            model.kernel_size, getattr(model, "dilation", 1), model.padding, model.stride,
        )
    )  # fmt: skip
    spans = (d * (k - 1) + p for d, k, p in zip(dilation, kernel, padding, strict=True))
    return 1 + max(spans), max(stride)


@settings(max_examples=150)
@given(model=regions())
def test_every_size(model: nn.Module) -> None:
    """Axes are independent, so pairs that bring each size of both axes do."""
    reach, stride = extent(model)
    largest = 2 * reach + 2 * stride
    x = example(2, CHANNELS, largest, largest + 1)
    model = randomised(model, x).double()
    fused = reparam.compile(model, passes=passes.DEFAULT, verify=False)
    event(f"{len(reparam.report(fused).applied)} rewrites")
    taken = 0
    for size in range(1, largest + 1):
        for height, width in ((size, size), (size, largest - size + 1)):
            image = example(1, CHANNELS, height, width).double()
            with torch.no_grad():
                try:
                    empty = prod(model(image).shape) == 0
                except RuntimeError:
                    continue  # too small for a kernel, or for a padding that mirrors it
            if not empty:
                same_function(model, fused, image)
                taken += 1
    assert taken
