"""LeViT (Graham et al., 2021, https://arxiv.org/abs/2104.01136): Linear and BatchNorm1d on tokens.

The norm sees the tokens of all images in one row; of two classifiers the mean is returned.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import passes
import reparam
from tests.fused import operators
from tests.randomised import randomised
from tests.schemes.parts import Residual, Tokens
from tests.schemes.scheme import Scheme, example, minimal, same_function

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

STEM = {"Conv2d": 1, "Hardswish": 1, "flatten": 1, "transpose": 1}


class LinearNorm(nn.Module):
    """`bn(linear(x).flatten(0, 1)).reshape_as(linear(x))`."""

    def __init__(self, inner: int, outer: int, bias: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, outer, bias=bias)
        self.norm = nn.BatchNorm1d(outer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class NormLinear(nn.Module):
    """A classifier behind a batch norm."""

    def __init__(self, inner: int, outer: int, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inner)
        self.linear = nn.Linear(inner, outer, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class Heads(nn.Module):
    """The mean of a classifier's and a distilled classifier's scores, from the mean token."""

    def __init__(self, inner: int, outer: int, bias: bool = True) -> None:
        super().__init__()
        self.head = NormLinear(inner, outer, bias)
        self.distilled = NormLinear(inner, outer, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        return (self.head(x) + self.distilled(x)) / 2


class Attention(nn.Module):
    """Queries and keys of width `key`, values twice as wide, and a learned bias per pair."""

    def __init__(self, channels: int, heads: int, key: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.key, self.scale = heads, key, key**-0.5
        self.qkv = LinearNorm(channels, 4 * key * heads)
        self.projection = nn.Sequential(nn.Hardswish(), LinearNorm(2 * key * heads, channels))
        self.biases = nn.Parameter(torch.zeros(heads, tokens))
        distances = (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs()
        self.register_buffer("distances", distances)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, self.heads, -1)
        q, k, v = qkv.split([self.key, self.key, 2 * self.key], dim=3)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        bias = self.biases[:, self.distances]
        attention = (q @ k.transpose(-2, -1) * self.scale + bias).softmax(-1)
        y = (attention @ v).transpose(1, 2).reshape(batch, tokens, -1)
        return self.projection(y)


def mlp(channels: int, ratio: int = 2, bias: bool = False) -> nn.Module:
    return Residual(
        LinearNorm(channels, ratio * channels, bias),
        nn.Hardswish(),
        LinearNorm(ratio * channels, channels, bias),
    )


@settings(max_examples=10)
@given(inner=st.integers(1, 6), outer=st.integers(1, 6), bias=st.booleans())
def test_linear_norm(inner: int, outer: int, bias: bool) -> None:
    model = nn.Sequential(Tokens(inner), LinearNorm(inner, outer, bias))
    counts = minimal(model, example(2, 3, 5, 4))
    assert counts["Linear"] == 1
    assert not counts.keys() & {"BatchNorm1d", "BatchNorm2d", "mul", "add"}


@settings(max_examples=5)
@given(heads=st.integers(1, 3), key=st.integers(1, 3))
def test_attention(heads: int, key: int) -> None:
    model = nn.Sequential(Tokens(4), Residual(Attention(4, heads, key, tokens=20)))
    counts = minimal(model, example(2, 3, 5, 4), sizes=((4, 5),), given=True)
    assert (counts["Linear"], counts["matmul"], counts["softmax"]) == (2, 2, 1)
    assert not counts.keys() & {"BatchNorm1d", "BatchNorm2d"}


@settings(max_examples=10)
@given(
    inner=st.integers(1, 6), outer=st.integers(1, 6), tokens=st.integers(1, 9), bias=st.booleans()
)
def test_linear_norm_of_tokens(inner: int, outer: int, tokens: int, bias: bool) -> None:
    """Without a stem, an example tells that the input is tokens."""
    x = example(2, tokens, inner)
    model = randomised(LinearNorm(inner, outer, bias), x).double()
    fused = reparam.compile(model, x.double(), passes=passes.DEFAULT)
    for batch, others in ((2, tokens), (1, 1), (3, tokens + 2)):
        same_function(model, fused, example(batch, others, inner).double())
    counts = operators(fused)
    assert counts["Linear"] == 1
    assert not counts.keys() & {"BatchNorm1d", "mul", "add"}


@settings(max_examples=10)
@given(channels=st.integers(1, 4), ratio=st.integers(1, 3), bias=st.booleans())
def test_mlp(channels: int, ratio: int, bias: bool) -> None:
    model = nn.Sequential(Tokens(channels), mlp(channels, ratio, bias))
    counts = minimal(model, example(2, 3, 5, 4))
    assert (counts["Linear"], counts["Hardswish"], counts["add"]) == (2, 2, 1)
    assert not counts.keys() & {"BatchNorm1d", "BatchNorm2d", "mul"}


@settings(max_examples=10)
@given(inner=st.integers(1, 6), outer=st.integers(1, 6), bias=st.booleans())
def test_averaged_heads(inner: int, outer: int, bias: bool) -> None:
    model = nn.Sequential(Tokens(inner), Heads(inner, outer, bias))
    assert minimal(model, example(2, 3, 5, 4)) == {**STEM, "mean": 1, "Linear": 1}


SCHEMES = [
    Scheme(
        "LeViT heads", lambda: nn.Sequential(Tokens(4), Heads(4, 5)), (2, 3, 5, 4),
        {**STEM, "mean": 1, "Linear": 1},
    ),
]  # fmt: skip
