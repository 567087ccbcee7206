"""FastViT (Vasu et al., 2023, https://arxiv.org/abs/2303.14189), every block of the released code.

RepMixer is `x + gamma * (mixer(x) - norm(x))` there, which is one depthwise convolution.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.passes.layers import branch
from tests.schemes.parts import Attention, LayerScale, Residual, inference_form
from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class MobileOneBlock(nn.Module):
    """The sum of k x k branches, a 1 x 1 branch and a batch norm, then an activation."""

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        branches: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        kernels = [kernel] * branches + [1] * (kernel > 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inner, outer, k, stride, k // 2, groups=groups, bias=False),
                nn.BatchNorm2d(outer),
            )
            for k in kernels
        )
        self.skip = nn.BatchNorm2d(inner) if inner == outer and stride == 1 else None
        self.activation = nn.GELU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = 0 if self.skip is None else self.skip(x)
        for part in self.branches:
            y = y + part(x)
        return self.activation(y)


class RepMixer(nn.Module):
    """`x + gamma * (mixer(x) - norm(x))`."""

    def __init__(self, channels: int, kernel: int, branches: int = 1) -> None:
        super().__init__()
        self.mixer = MobileOneBlock(
            channels, channels, kernel, groups=channels, branches=branches, activation=False
        )
        self.norm = nn.BatchNorm2d(channels)
        self.scale = LayerScale(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(self.mixer(x) - self.norm(x))


class PatchEmbed(nn.Module):
    """Two strided depthwise branches of different size, then a pointwise block."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.large, self.small = (
            nn.Sequential(
                nn.Conv2d(inner, outer, k, stride, k // 2, groups=inner, bias=False),
                nn.BatchNorm2d(outer),
            )
            for k in (kernel, 3)
        )
        self.pointwise = MobileOneBlock(outer, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.large(x) + self.small(x))


class AttentionOfImage(nn.Module):
    """Self-attention over the pixels, behind a batch norm."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.attention = Attention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(-2, -1)
        return self.attention(tokens).transpose(-2, -1).reshape(x.shape)


def stem(channels: int) -> nn.Module:
    return nn.Sequential(
        MobileOneBlock(3, channels, 3, stride=2),
        MobileOneBlock(channels, channels, 3, stride=2, groups=channels),
        MobileOneBlock(channels, channels, 1),
    )


def position_encoding(channels: int, kernel: int = 7) -> nn.Module:
    """The conditional one, `pe(x) + x`."""
    return Residual(
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=True)
    )


def feed_forward(channels: int, expansion: int = 3, drop: float = 0.0) -> nn.Module:
    """ConvFFN in its residual."""
    return Residual(
        branch(channels, 7, groups=channels),
        nn.Conv2d(channels, expansion * channels, 1),
        nn.GELU(),
        nn.Dropout(drop),
        nn.Conv2d(expansion * channels, channels, 1),
        nn.Dropout(drop),
        LayerScale(channels, 1, 1),
    )


def attention_block(channels: int, heads: int) -> nn.Module:
    return Residual(AttentionOfImage(channels, heads), LayerScale(channels, 1, 1))


def layer_scaled(channels: int, bias: bool = True) -> nn.Module:
    """`x + gamma * f(x)`."""
    return Residual(
        nn.Conv2d(channels, channels, 1, bias=bias),
        nn.GELU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=bias),
        LayerScale(channels, 1, 1),
    )


ATTENTION = {
    "Linear": 2, "matmul": 2, "softmax": 1, "flatten": 1, "permute": 1, "select": 3,
    "transpose": 4, "add": 1,
}  # fmt: skip
"""What attention computes, the shapes and reshapes around it left out."""


@settings(max_examples=10)
@given(
    inner=st.integers(1, 4),
    outer=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    branches=st.integers(1, 3),
    depthwise=st.booleans(),
)
def test_stem_block(
    inner: int, outer: int, kernel: int, stride: int, branches: int, depthwise: bool
) -> None:
    outer = inner if depthwise else outer
    groups = inner if depthwise else 1
    block = MobileOneBlock(inner, outer, kernel, stride, groups, branches)
    assert minimal(block, example(2, inner, 9, 8)) == {"Conv2d": 1, "GELU": 1}


@settings(max_examples=5)
@given(channels=st.integers(2, 6))
def test_stem(channels: int) -> None:
    assert minimal(stem(channels), example(2, 3, 16, 13)) == {"Conv2d": 3, "GELU": 3}


@settings(max_examples=10)
@given(channels=st.integers(1, 6), kernel=st.sampled_from([3, 5, 7]), branches=st.integers(1, 3))
def test_rep_mixer(channels: int, kernel: int, branches: int) -> None:
    x = example(2, channels, 9, 8)
    assert minimal(RepMixer(channels, kernel, branches), x) == {"Conv2d": 1}


@settings(max_examples=5)
@given(channels=st.integers(2, 6), kernel=st.sampled_from([3, 7]))
def test_rep_mixer_stays_depthwise(channels: int, kernel: int) -> None:
    fused = inference_form(RepMixer(channels, kernel), example(2, channels, 9, 8))
    (conv,) = (m for m in fused.modules() if isinstance(m, nn.Conv2d))
    assert (conv.groups, conv.kernel_size) == (channels, (kernel, kernel))


@settings(max_examples=10)
@given(channels=st.integers(1, 6), kernel=st.sampled_from([3, 5, 7]))
def test_position_encoding(channels: int, kernel: int) -> None:
    model = position_encoding(channels, kernel)
    assert minimal(model, example(2, channels, 9, 8)) == {"Conv2d": 1}


@settings(max_examples=10)
@given(
    inner=st.integers(2, 5),
    multiplier=st.integers(1, 2),
    kernel=st.sampled_from([5, 7]),
    stride=st.integers(1, 2),
)
def test_patch_embed(inner: int, multiplier: int, kernel: int, stride: int) -> None:
    """The depthwise branches become one; the 1 x 1 behind them would make it dense."""
    model = PatchEmbed(inner, multiplier * inner, kernel, stride)
    x = example(2, inner, 9, 8)
    assert minimal(model, x) == {"Conv2d": 2, "GELU": 1}
    fused = inference_form(model, x)
    large, pointwise = (m for m in fused.modules() if isinstance(m, nn.Conv2d))
    assert (large.groups, large.kernel_size) == (inner, (kernel, kernel))
    assert (pointwise.groups, pointwise.kernel_size) == (1, (1, 1))


@settings(max_examples=10)
@given(channels=st.integers(2, 6), expansion=st.integers(1, 4), drop=st.sampled_from([0.0, 0.1]))
def test_feed_forward(channels: int, expansion: int, drop: float) -> None:
    counts = minimal(feed_forward(channels, expansion, drop), example(2, channels, 9, 8))
    assert counts == {"Conv2d": 3, "GELU": 1, "add": 1}


@settings(max_examples=10)
@given(heads=st.integers(1, 3), width=st.integers(1, 4))
def test_attention(heads: int, width: int) -> None:
    """Neither the batch norm is left, nor the layer scale, nor the scale of the queries."""
    counts = minimal(attention_block(heads * width, heads), example(2, heads * width, 5, 4))
    assert not counts.keys() & {"BatchNorm2d", "mul", "batch_norm"}
    assert {name: counts[name] for name in ATTENTION} == ATTENTION


@settings(max_examples=10)
@given(channels=st.integers(1, 6), bias=st.booleans())
def test_layer_scale(channels: int, bias: bool) -> None:
    counts = minimal(layer_scaled(channels, bias), example(2, channels, 9, 8))
    assert counts == {"Conv2d": 2, "GELU": 1, "add": 1}


SCHEMES = [
    Scheme("FastViT stem", lambda: stem(4), (2, 3, 16, 13), {"Conv2d": 3, "GELU": 3}),
    Scheme("FastViT RepMixer", lambda: RepMixer(4, 3), (2, 4, 9, 8), {"Conv2d": 1}),
    Scheme("FastViT CPE", lambda: position_encoding(4), (2, 4, 9, 8), {"Conv2d": 1}),
    Scheme(
        "FastViT PatchEmbed", lambda: PatchEmbed(4, 8, 7, 2), (2, 4, 9, 8),
        {"Conv2d": 2, "GELU": 1},
    ),
    Scheme(
        "FastViT ConvFFN", lambda: feed_forward(4), (2, 4, 9, 8),
        {"Conv2d": 3, "GELU": 1, "add": 1},
    ),
    Scheme(
        "FastViT layer scale", lambda: layer_scaled(4), (2, 4, 9, 8),
        {"Conv2d": 2, "GELU": 1, "add": 1},
    ),
]  # fmt: skip
