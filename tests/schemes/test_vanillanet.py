"""VanillaNet: at the end of training the slope between two 1×1 convolutions is 1: they are one.

Source: Chen et al., "VanillaNet", NeurIPS 2023, section 3 (deep training, and the series of
activations that follows each block).
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class SeriesActivation(nn.ReLU):
    """BN(depthwise (2n + 1)×(2n + 1) of ReLU(x)); its weight is a parameter of its own."""

    def __init__(self, channels: int, n: int = 3) -> None:
        super().__init__()
        self.channels, self.n = channels, n
        extent = 2 * n + 1
        self.weight = nn.Parameter(torch.randn(channels, 1, extent, extent) / extent)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        y = F.conv2d(super().forward(input), self.weight, padding=self.n, groups=self.channels)
        return self.bn(y)


class VanillaBlock(nn.Module):
    """BN(1×1 leaky(BN(1×1 x))), then pooling and a series of activations, both on demand."""

    def __init__(
        self, inner: int, outer: int, slope: float = 1.0, pool: int = 0, series: int = 0
    ) -> None:
        super().__init__()
        self.act_learn = slope
        self.conv1 = nn.Sequential(nn.Conv2d(inner, inner, 1), nn.BatchNorm2d(inner))
        self.conv2 = nn.Sequential(nn.Conv2d(inner, outer, 1), nn.BatchNorm2d(outer))
        self.pool = nn.MaxPool2d(pool) if pool else nn.Identity()
        self.act = SeriesActivation(outer, series) if series else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), self.act_learn)
        return self.act(self.pool(self.conv2(x)))


class Stem(nn.Module):
    """BN(1×1 leaky(BN(s×s x))), the s×s of stride s."""

    def __init__(self, channels: int, stride: int, slope: float = 1.0) -> None:
        super().__init__()
        self.act_learn = slope
        self.stem1 = nn.Sequential(nn.Conv2d(3, channels, stride, stride), nn.BatchNorm2d(channels))
        self.stem2 = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.stem2(F.leaky_relu(self.stem1(x), self.act_learn))


class Classifier(nn.Module):
    """1×1 leaky(BN(1×1 dropout(mean x)))."""

    def __init__(self, channels: int, classes: int, slope: float = 1.0) -> None:
        super().__init__()
        self.act_learn = slope
        self.cls1 = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Dropout(0.1),
            nn.Conv2d(channels, classes, 1),
            nn.BatchNorm2d(classes),
        )
        self.cls2 = nn.Conv2d(classes, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.cls1(x), self.act_learn)
        return self.cls2(x).flatten(1)


ONE = {"Conv2d": 1}
SERIES = {"Conv2d": 2, "MaxPool2d": 1, "relu": 1}
CLASSIFIER = {"AdaptiveAvgPool2d": 1, "Conv2d": 1, "flatten": 1}

SCHEMES = [
    Scheme("VanillaNet, block", lambda: VanillaBlock(8, 12), (2, 8, 9, 8), ONE),
    Scheme(
        "VanillaNet, block and activation",
        lambda: VanillaBlock(8, 12, pool=2, series=3),
        (2, 8, 10, 8),
        SERIES,
    ),
    Scheme("VanillaNet, stem", lambda: Stem(8, 4), (2, 3, 12, 8), ONE),
    Scheme("VanillaNet, classifier", lambda: Classifier(12, 5), (4, 12, 3, 4), CLASSIFIER),
]


@settings(max_examples=10)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(2, 8))
def test_block(inner: int, outer: int, size: int) -> None:
    assert minimal(VanillaBlock(inner, outer), example(2, inner, size, 7)) == ONE


@settings(max_examples=5)
@given(st.integers(2, 4), st.integers(2, 4), st.integers(1, 3))
def test_block_and_activation(inner: int, outer: int, n: int) -> None:
    block = VanillaBlock(inner, outer, pool=2, series=n)
    assert minimal(block, example(2, inner, 10, 8)) == SERIES


@settings(max_examples=5)
@given(st.integers(1, 6), st.sampled_from([2, 4]))
def test_stem(channels: int, stride: int) -> None:
    assert minimal(Stem(channels, stride), example(2, 3, 12, 8)) == ONE


@settings(max_examples=5)
@given(st.integers(2, 8), st.integers(2, 5))
def test_classifier(channels: int, classes: int) -> None:
    assert minimal(Classifier(channels, classes), example(6, channels, 3, 4)) == CLASSIFIER


@settings(max_examples=5)
@given(st.floats(0, 0.99))
def test_training_is_not_over(slope: float) -> None:
    """A slope other than 1 is no identity; the batch norms vanish all the same."""
    found = minimal(VanillaBlock(3, 4, slope), example(2, 3, 8, 7))
    assert found == {"Conv2d": 2, "leaky_relu": 1}
