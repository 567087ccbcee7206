"""Next-ViT (Li et al., 2022, https://arxiv.org/abs/2207.05501): batch norms before attention.

One norm feeds the queries and, through average pooling over the tokens and a second norm, the keys
and values; another one feeds a multi-layer perceptron. None of them has to stay.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.passes.layers import branch
from tests.schemes.parts import Residual
from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class PooledAttention(nn.Module):
    """Self-attention of tokens; `pool` of them together have one key and one value."""

    def __init__(self, channels: int, heads: int, pool: int, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.q, self.k, self.v = (nn.Linear(channels, channels, bias=bias) for _ in range(3))
        self.projection = nn.Linear(channels, channels)
        self.pool = nn.AvgPool1d(pool, stride=pool) if pool > 1 else None
        self.norm = nn.BatchNorm1d(channels) if pool > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        shape = (batch, -1, self.heads, channels // self.heads)
        q = self.q(x).reshape(shape).permute(0, 2, 1, 3)
        if self.pool is not None and self.norm is not None:
            x = self.norm(self.pool(x.transpose(1, 2))).transpose(1, 2)
        k = self.k(x).reshape(shape).permute(0, 2, 3, 1)
        v = self.v(x).reshape(shape).permute(0, 2, 1, 3)
        attention = ((q @ k) * self.scale).softmax(-1)
        return self.projection((attention @ v).transpose(1, 2).reshape(batch, tokens, channels))


class NormAttention(nn.Module):
    """A batch norm, and attention over its pixels."""

    def __init__(self, channels: int, heads: int, pool: int, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.attention = PooledAttention(channels, heads, pool, bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = self.attention(self.norm(x).flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(batch, channels, height, width)


def mlp(channels: int, ratio: int = 2, bias: bool = True) -> nn.Module:
    """`x + conv(relu(conv(bn(x))))`, both of size 1 x 1."""
    return Residual(
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, ratio * channels, 1, bias=bias),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(ratio * channels, channels, 1, bias=bias),
    )


def convolutional_attention(channels: int, groups: int) -> nn.Module:
    """MHCA: a 3 x 3 convolution in heads with a norm, and a projection."""
    return Residual(
        branch(channels, 3, groups=groups),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


def block(channels: int, heads: int, pool: int) -> nn.Module:
    """Attention and perceptron in residuals."""
    return nn.Sequential(Residual(NormAttention(channels, heads, pool)), mlp(channels))


@settings(max_examples=10)
@given(channels=st.integers(1, 6), ratio=st.integers(1, 3), bias=st.booleans())
def test_mlp(channels: int, ratio: int, bias: bool) -> None:
    counts = minimal(mlp(channels, ratio, bias), example(2, channels, 6, 4))
    assert counts == {"Conv2d": 2, "ReLU": 1, "add": 1}


@settings(max_examples=10)
@given(groups=st.integers(1, 3), width=st.integers(1, 2))
def test_convolutional_block(groups: int, width: int) -> None:
    channels = groups * width
    model = nn.Sequential(convolutional_attention(channels, groups), mlp(channels))
    counts = minimal(model, example(2, channels, 6, 4))
    assert counts == {"Conv2d": 4, "ReLU": 2, "add": 2}


@settings(max_examples=10)
@given(heads=st.integers(1, 3), width=st.integers(1, 3), pool=st.integers(1, 4), bias=st.booleans())
def test_attention(heads: int, width: int, pool: int, bias: bool) -> None:
    channels = heads * width
    counts = minimal(
        NormAttention(channels, heads, pool, bias), example(2, channels, 6, 4), given=True
    )
    assert not counts.keys() & {"BatchNorm1d", "BatchNorm2d", "batch_norm", "add", "sub"}
    assert (counts["Linear"], counts["matmul"], counts["softmax"]) == (4, 2, 1)
    assert counts["AvgPool1d"] == (pool > 1)


@settings(max_examples=5)
@given(heads=st.integers(1, 3), pool=st.integers(1, 4))
def test_block(heads: int, pool: int) -> None:
    """The residuals of both halves read what the norms read."""
    counts = minimal(block(2 * heads, heads, pool), example(2, 2 * heads, 6, 4))
    assert not counts.keys() & {"BatchNorm1d", "BatchNorm2d", "batch_norm", "sub"}
    assert (counts["Linear"], counts["Conv2d"], counts["add"]) == (4, 2, 2)


SCHEMES = [
    Scheme(
        "Next-ViT mlp", lambda: mlp(4), (2, 4, 6, 4), {"Conv2d": 2, "ReLU": 1, "add": 1}
    ),
    Scheme(
        "Next-ViT MHCA", lambda: convolutional_attention(4, 2), (2, 4, 6, 4),
        {"Conv2d": 2, "ReLU": 1, "add": 1},
    ),
]  # fmt: skip
