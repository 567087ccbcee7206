"""RepViT: a depthwise 3×3, 1×1 and identity under one batch norm are one depthwise 3×3.

The classifier averages two heads of batch norm and linear layer, which are one linear layer.
Source: Wang et al., "RepViT", CVPR 2024, section 3.2; the distillation heads are LeViT's.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import passes
import reparam
from tests.fused import operators
from tests.randomised import randomised
from tests.schemes.scheme import Scheme, compiled, example, minimal, missed, same_function

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class RepVGGDW(nn.Module):
    """BN(BN(dw3 x) + dw1 x + x); the 1×1 has a bias and no batch norm of its own."""

    def __init__(self, channels: int, kernel: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels, bias=bias)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn((self.conv(x) + self.conv1(x)) + x)


class BNLinear(nn.Module):
    """A batch norm and a linear layer."""

    def __init__(self, inner: int, outer: int, bias: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(inner)
        self.l = nn.Linear(inner, outer, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.bn(x))


class Classifier(nn.Module):
    """Two heads of pooled features, averaged."""

    def __init__(self, inner: int, outer: int, bias: bool = True) -> None:
        super().__init__()
        self.classifier = BNLinear(inner, outer, bias)
        self.classifier_dist = BNLinear(inner, outer, bias)

    def forward(self, x: Tensor) -> Tensor:
        return (self.classifier(x) + self.classifier_dist(x)) / 2


class Pooled(nn.Module):
    """The classifier on feature maps."""

    def __init__(self, head: Classifier) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class RepViTBlock(nn.Module):
    """A token mixer, and a channel mixer with a skip: x + BN(1×1 GELU(BN(1×1 x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token_mixer = RepVGGDW(channels)
        self.channel_mixer = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.channel_mixer(x)


BLOCK = {"Conv2d": 3, "GELU": 1, "add": 1}
POOLED = {"adaptive_avg_pool2d": 1, "flatten": 1, "Linear": 1}

SCHEMES = [
    Scheme("RepViT, depthwise", lambda: RepVGGDW(8), (2, 8, 9, 8), {"Conv2d": 1}),
    Scheme("RepViT, block", lambda: RepViTBlock(8), (2, 8, 9, 8), BLOCK),
    Scheme("RepViT, two heads", lambda: Pooled(Classifier(12, 5)), (4, 12, 3, 4), POOLED),
]


@settings(max_examples=10)
@given(st.integers(1, 6), st.sampled_from([3, 5]), st.booleans(), st.integers(4, 9))
def test_depthwise(channels: int, kernel: int, bias: bool, size: int) -> None:
    block = RepVGGDW(channels, kernel, bias)
    assert minimal(block, example(2, channels, size, 7)) == {"Conv2d": 1}


@settings(max_examples=10)
@given(st.integers(2, 9), st.integers(1, 6), st.booleans())
def test_two_heads(inner: int, outer: int, bias: bool) -> None:
    """Pooled and flattened features have two axes, whatever the images have."""
    model = Pooled(Classifier(inner, outer, bias))
    assert minimal(model, example(8, inner, 3, 4)) == POOLED


@settings(max_examples=5)
@given(st.integers(2, 9), st.integers(1, 6), st.booleans())
def test_two_heads_of_an_example(inner: int, outer: int, bias: bool) -> None:
    x = example(8, inner)
    model = randomised(Classifier(inner, outer, bias), x).double()
    fused = reparam.compile(model, x.double(), passes=passes.DEFAULT)
    same_function(model, fused, x.double())
    assert operators(fused) == {"Linear": 1}


@settings(max_examples=5)
@given(st.integers(2, 6), st.integers(1, 4))
def test_two_heads_of_an_unknown_input(inner: int, outer: int) -> None:
    """Of (batch, channels, channels) the batch norm scales the second axis, the layer the third."""
    model, fused = compiled(Classifier(inner, outer), example(8, inner))
    for shape in ((8, inner), (3, inner, inner)):
        same_function(model, fused, example(*shape).double())
    assert any("spatial axes" in reason for reason in missed(fused))


@settings(max_examples=5)
@given(st.integers(2, 6))
def test_block(channels: int) -> None:
    assert minimal(RepViTBlock(channels), example(2, channels, 8, 7)) == BLOCK
