"""EfficientViT (Liu et al., 2023, arXiv:2305.07027), EfficientFormer (Li et al., arXiv:2206.01191).

`x + BN(dw(x))` is one depthwise convolution; layer scales go into the layer before them.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.passes.layers import branch
from tests.schemes.parts import LayerScale, Residual, Tokens, inference_form
from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def conv_norm(inner: int, outer: int, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 1, bias=bias), nn.BatchNorm2d(outer))


def depthwise(channels: int, kernel: int = 3, bias: bool = False) -> nn.Module:
    """EfficientViT's `x + BN(dw(x))`."""
    return Residual(branch(channels, kernel, groups=channels, bias=bias))


def feed_forward(channels: int, ratio: int = 2) -> nn.Module:
    """EfficientViT's: two pointwise convolutions, each with a batch norm."""
    return Residual(
        conv_norm(channels, ratio * channels), nn.ReLU(), conv_norm(ratio * channels, channels)
    )


def scaled_mlp(channels: int, ratio: int = 2, bias: bool = True) -> nn.Module:
    """EfficientFormer's on images: `x + gamma * mlp(x)`, gamma (channels, 1, 1)."""
    return Residual(
        conv_norm(channels, ratio * channels, bias),
        nn.GELU(),
        nn.Dropout(0.1),
        conv_norm(ratio * channels, channels, bias),
        LayerScale(channels, 1, 1),
    )


def scaled_token_mlp(channels: int, ratio: int = 2, bias: bool = True) -> nn.Module:
    """EfficientFormer's on tokens: gamma (channels,)."""
    return Residual(
        nn.Linear(channels, ratio * channels, bias=bias),
        nn.GELU(),
        nn.Linear(ratio * channels, channels, bias=bias),
        LayerScale(channels),
    )


class Heads(nn.Module):
    """The mean of two classifiers of the mean token."""

    def __init__(self, inner: int, outer: int, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(inner, outer, bias=bias)
        self.distilled = nn.Linear(inner, outer)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(-2)
        return (self.head(x) + self.distilled(x)) / 2


@settings(max_examples=10)
@given(channels=st.integers(1, 6), kernel=st.sampled_from([3, 5, 7]), bias=st.booleans())
def test_depthwise(channels: int, kernel: int, bias: bool) -> None:
    x = example(2, channels, 9, 8)
    model = depthwise(channels, kernel, bias)
    assert minimal(model, x) == {"Conv2d": 1}
    fused = inference_form(model, x)
    (conv,) = (m for m in fused.modules() if isinstance(m, nn.Conv2d))
    assert (conv.groups, conv.kernel_size) == (channels, (kernel, kernel))


@settings(max_examples=10)
@given(channels=st.integers(1, 6), ratio=st.integers(1, 3))
def test_feed_forward(channels: int, ratio: int) -> None:
    model = nn.Sequential(depthwise(channels), feed_forward(channels, ratio))
    counts = minimal(model, example(2, channels, 9, 8))
    assert counts == {"Conv2d": 3, "ReLU": 1, "add": 1}


@settings(max_examples=10)
@given(channels=st.integers(1, 6), ratio=st.integers(1, 3), bias=st.booleans())
def test_layer_scale_of_images(channels: int, ratio: int, bias: bool) -> None:
    counts = minimal(scaled_mlp(channels, ratio, bias), example(2, channels, 9, 8))
    assert counts == {"Conv2d": 2, "GELU": 1, "add": 1}


@settings(max_examples=10)
@given(channels=st.integers(1, 6), ratio=st.integers(1, 3), bias=st.booleans())
def test_layer_scale_of_tokens(channels: int, ratio: int, bias: bool) -> None:
    counts = minimal(
        nn.Sequential(Tokens(channels), scaled_token_mlp(channels, ratio, bias)),
        example(2, 3, 5, 4),
    )
    assert (counts["Linear"], counts["GELU"], counts["add"], counts["mul"]) == (2, 1, 1, 0)
    assert not counts.keys() & {"BatchNorm2d"}


@settings(max_examples=10)
@given(inner=st.integers(1, 6), outer=st.integers(1, 6), bias=st.booleans())
def test_averaged_heads(inner: int, outer: int, bias: bool) -> None:
    """Linear layers, so tokens need no stem to be known as such."""
    counts = minimal(Heads(inner, outer, bias), example(2, 7, inner))
    assert counts == {"mean": 1, "Linear": 1}


SCHEMES = [
    Scheme("EfficientViT depthwise", lambda: depthwise(4), (2, 4, 9, 8), {"Conv2d": 1}),
    Scheme(
        "EfficientViT feed-forward", lambda: feed_forward(4), (2, 4, 9, 8),
        {"Conv2d": 2, "ReLU": 1, "add": 1},
    ),
    Scheme(
        "EfficientFormer layer scale", lambda: scaled_mlp(4), (2, 4, 9, 8),
        {"Conv2d": 2, "GELU": 1, "add": 1},
    ),
    Scheme("EfficientFormer heads", lambda: Heads(4, 5), (2, 7, 4), {"mean": 1, "Linear": 1}),
]  # fmt: skip
