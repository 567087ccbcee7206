"""ACNet: k×k, k×1 and 1×k, each with a batch norm, sum to one k×k (Ding et al., ICCV 2019)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class ACBlock(nn.Module):
    """BN(k×k x) + BN(k×1 x) + BN(1×k x).

    With a padding p < k // 2, the thin kernels would need one of p - k // 2 across their length,
    which is negative: their input is cropped instead.
    """

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        thin = padding - kernel // 2
        self.crop = -thin if thin < 0 else 0

        def conv_bn(size: tuple[int, int], padding: tuple[int, int]) -> nn.Sequential:
            conv = nn.Conv2d(inner, outer, size, stride, padding, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outer))

        self.square = conv_bn((kernel, kernel), (padding, padding))
        self.ver = conv_bn((kernel, 1), (padding, max(thin, 0)))
        self.hor = conv_bn((1, kernel), (max(thin, 0), padding))

    def forward(self, x: Tensor) -> Tensor:
        vertical = horizontal = x
        if self.crop:
            vertical = x[:, :, :, self.crop : -self.crop]
            horizontal = x[:, :, self.crop : -self.crop, :]
        return self.square(x) + self.ver(vertical) + self.hor(horizontal)


SCHEMES = [
    Scheme("ACNet", lambda: ACBlock(8, 8), (2, 8, 9, 8), {"Conv2d": 1}),
    Scheme("ACNet, 5×5 strided", lambda: ACBlock(8, 12, 5, 2), (2, 8, 9, 8), {"Conv2d": 1}),
    Scheme("ACNet, grouped", lambda: ACBlock(8, 8, groups=4), (2, 8, 9, 8), {"Conv2d": 1}),
]


@settings(max_examples=15)
@given(
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([3, 5, 7]),
    st.integers(1, 2),
    st.integers(0, 1),
    st.integers(7, 10),
)
def test_block(
    groups: int, channels: tuple[int, int], kernel: int, stride: int, wider: int, size: int
) -> None:
    inner, outer = (groups * count for count in channels)
    block = ACBlock(inner, outer, kernel, stride, kernel // 2 + wider, groups)
    assert minimal(block, example(2, inner, size, 8)) == {"Conv2d": 1}


@settings(max_examples=5)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([3, 5]))
def test_unpadded_block(inner: int, outer: int, kernel: int) -> None:
    """The crops are offsets of the taps."""
    block = ACBlock(inner, outer, kernel, padding=0)
    assert minimal(block, example(2, inner, 9, 8)) == {"Conv2d": 1}
