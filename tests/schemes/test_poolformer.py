"""PoolFormer (Yu et al., 2022, https://arxiv.org/abs/2111.11418): pooling that is no convolution.

`pool(x) - x` averages over the pixels that exist, so its weights differ at the border.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.parts import LayerScale, Residual, inference_form
from tests.schemes.scheme import Scheme, example, minimal, missed

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class Pooling(nn.Module):
    """`pool(x) - x`."""

    def __init__(self, size: int, counted: bool = False) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=counted)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


def block(channels: int, size: int = 3) -> nn.Module:
    """`x + gamma * (pool(norm(x)) - norm(x))`."""
    return Residual(nn.GroupNorm(1, channels), Pooling(size), LayerScale(channels, 1, 1))


def assert_reason(model: nn.Module, x: Tensor) -> None:
    """The padding, and that it is not counted, is what a remark speaks of."""
    fused = inference_form(model, x)
    assert any("padding" in line or "count_include_pad" in line for line in missed(fused)), missed(
        fused
    )


@settings(max_examples=10)
@given(channels=st.integers(1, 6), size=st.sampled_from([3, 5]))
def test_pooling(channels: int, size: int) -> None:
    x = example(2, channels, 9, 8)
    assert minimal(Pooling(size), x) == {"AvgPool2d": 1, "sub": 1}
    assert_reason(Pooling(size), x)


@settings(max_examples=10)
@given(channels=st.integers(2, 6), size=st.sampled_from([3, 5]))
def test_block(channels: int, size: int) -> None:
    model, x = block(channels, size), example(2, channels, 9, 8)
    counts = minimal(model, x)
    assert counts["AvgPool2d"] == counts["GroupNorm"] == 1
    assert_reason(model, x)


@settings(max_examples=5)
@given(channels=st.integers(1, 6), counted=st.booleans())
def test_one_pixel(channels: int, counted: bool) -> None:
    """Pooling over windows of one pixel is the identity: padded by nothing, it is no obstacle."""
    x = example(2, channels, 9, 8)
    model = nn.Sequential(Pooling(1, counted), nn.Conv2d(channels, 2, 1))
    assert minimal(model, x)["AvgPool2d"] <= 1


SCHEMES = [
    Scheme(
        "PoolFormer pooling", lambda: Pooling(3), (2, 4, 9, 8), {"AvgPool2d": 1, "sub": 1},
        ("count_include_pad",),
    ),
]  # fmt: skip
