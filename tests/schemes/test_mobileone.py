"""MobileOne: n k×k, a 1×1 and an identity, each with a batch norm, sum to one k×k.

Source: Vasu et al., "MobileOne", CVPR 2023, section 3.3. Depthwise k×k and pointwise blocks
alternate.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class MobileOneBlock(nn.Module):
    """ReLU(BN(x) + BN(1×1 x) + Σₙ BN(k×k x)); of a k of 1 there is no other 1×1."""

    def __init__(
        self, inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1, n: int = 2
    ) -> None:
        super().__init__()

        def conv_bn(size: int) -> nn.Sequential:
            conv = nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outer))

        self.rbr_skip = nn.BatchNorm2d(inner) if inner == outer and stride == 1 else None
        self.rbr_scale = conv_bn(1) if kernel > 1 else None
        self.rbr_conv = nn.ModuleList([conv_bn(kernel) for _ in range(n)])
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = 0
        if self.rbr_scale is not None:
            out = self.rbr_scale(x)
        if self.rbr_skip is not None:
            out = out + self.rbr_skip(x)
        for conv in self.rbr_conv:
            out = out + conv(x)
        return self.activation(out)


def depthwise(channels: int, kernel: int = 3, stride: int = 1, n: int = 2) -> MobileOneBlock:
    return MobileOneBlock(channels, channels, kernel, stride, channels, n)


def separable(inner: int, outer: int, stride: int, n: int = 4) -> nn.Sequential:
    """A depthwise and a pointwise block, as the network stacks them."""
    return nn.Sequential(depthwise(inner, 3, stride, n), MobileOneBlock(inner, outer, 1, n=n))


ONE = {"Conv2d": 1, "ReLU": 1}

SCHEMES = [
    Scheme("MobileOne, dense", lambda: MobileOneBlock(8, 8, 3), (2, 8, 9, 8), ONE),
    Scheme("MobileOne, depthwise", lambda: depthwise(8, n=4), (2, 8, 9, 8), ONE),
    Scheme("MobileOne, pointwise", lambda: MobileOneBlock(8, 8, 1, n=4), (2, 8, 9, 8), ONE),
    Scheme("MobileOne, strided", lambda: depthwise(8, stride=2), (2, 8, 9, 8), ONE),
    Scheme(
        "MobileOne, two blocks",
        lambda: separable(8, 12, 2),
        (2, 8, 9, 8),
        {"Conv2d": 2, "ReLU": 2},
    ),
]

sizes = st.integers(6, 9)


@settings(max_examples=10)
@given(st.integers(2, 6), st.sampled_from([3, 5, 7]), st.integers(1, 2), st.integers(1, 4), sizes)
def test_depthwise(channels: int, kernel: int, stride: int, n: int, size: int) -> None:
    block = depthwise(channels, kernel, stride, n)
    assert minimal(block, example(2, channels, size, 8)) == ONE


@settings(max_examples=10)
@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.integers(1, 4), sizes)
def test_pointwise(inner: int, outer: int, same: bool, n: int, size: int) -> None:
    block = MobileOneBlock(inner, inner if same else outer, 1, n=n)
    assert minimal(block, example(2, inner, size, 8)) == ONE


@settings(max_examples=10)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 2),
    st.integers(1, 3),
)
def test_grouped(groups: int, inner: int, outer: int, kernel: int, stride: int, n: int) -> None:
    block = MobileOneBlock(inner * groups, outer * groups, kernel, stride, groups, n)
    assert minimal(block, example(2, inner * groups, 8, 7)) == ONE


@settings(max_examples=5)
@given(st.integers(1, 2), st.integers(2, 4), st.integers(2, 4))
def test_blocks_in_a_row(stride: int, inner: int, outer: int) -> None:
    found = minimal(separable(inner, outer, stride), example(2, inner, 9, 8))
    assert found == {"Conv2d": 2, "ReLU": 2}
