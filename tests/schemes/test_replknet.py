"""RepLKNet: a large and a small depthwise kernel are one; the batch norms around it vanish.

Those before the first 1×1 convolution of a block fold forwards, the network's last one through the
pooling into the classifier. Source: Ding et al., "Scaling Up Your Kernels to 31×31", CVPR 2022,
sections 3 and 4.1.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def conv_bn(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer))


class ReparamLargeKernelConv(nn.Module):
    """BN(K×K x) + BN(k×k x), depthwise."""

    def __init__(self, channels: int, kernel: int, small: int, stride: int = 1) -> None:
        super().__init__()
        self.lkb_origin = conv_bn(channels, channels, kernel, stride, channels)
        self.small_conv = conv_bn(channels, channels, small, stride, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.lkb_origin(x) + self.small_conv(x)


class RepLKBlock(nn.Module):
    """x + BN(1×1 ReLU(large ReLU(BN(1×1 BN(x))))).

    The batch norm in front meets no padding: the convolution behind it is 1×1.
    """

    def __init__(self, channels: int, width: int, kernel: int, small: int) -> None:
        super().__init__()
        self.prelkb_bn = nn.BatchNorm2d(channels)
        self.pw1 = conv_bn(channels, width, 1)
        self.large_kernel = ReparamLargeKernelConv(width, kernel, small)
        self.lk_nonlinear = nn.ReLU()
        self.pw2 = conv_bn(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.lk_nonlinear(self.pw1(self.prelkb_bn(x)))
        return x + self.pw2(self.lk_nonlinear(self.large_kernel(out)))


class ConvFFN(nn.Module):
    """x + BN(1×1 GELU(BN(1×1 BN(x))))."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.preffn_bn = nn.BatchNorm2d(channels)
        self.pw1 = conv_bn(channels, width, 1)
        self.nonlinear = nn.GELU()
        self.pw2 = conv_bn(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x))))


class RepLKNet(nn.Module):
    """A stem, a stage and the classifier."""

    def __init__(self, channels: int, kernel: int, small: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, channels, 3, 2), nn.ReLU())
        self.blocks = nn.Sequential(
            RepLKBlock(channels, channels, kernel, small), ConvFFN(channels, 2 * channels)
        )
        self.norm = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.stem(x)))
        return self.head(self.avgpool(x).flatten(1))


LARGE = {"Conv2d": 1}
BLOCK = {"Conv2d": 3, "ReLU": 2, "add": 1}
FFN = {"Conv2d": 2, "GELU": 1, "add": 1}
NET = {
    "Conv2d": 6,
    "ReLU": 3,
    "GELU": 1,
    "add": 2,
    "AdaptiveAvgPool2d": 1,
    "flatten": 1,
    "Linear": 1,
}

SCHEMES = [
    Scheme("RepLKNet, kernels", lambda: ReparamLargeKernelConv(8, 13, 5), (2, 8, 9, 8), LARGE),
    Scheme("RepLKNet, block", lambda: RepLKBlock(8, 12, 9, 5), (2, 8, 9, 8), BLOCK),
    Scheme("RepLKNet, FFN", lambda: ConvFFN(8, 16), (2, 8, 9, 8), FFN),
    Scheme("RepLKNet, network", lambda: RepLKNet(8, 9, 5, 10), (2, 3, 17, 16), NET),
]

kernels = st.sampled_from([7, 9, 13])
small_kernels = st.sampled_from([3, 5])


@settings(max_examples=10)
@given(st.integers(1, 6), kernels, small_kernels, st.integers(1, 2), st.integers(5, 12))
def test_kernels(channels: int, kernel: int, small: int, stride: int, size: int) -> None:
    model = ReparamLargeKernelConv(channels, kernel, small, stride)
    assert minimal(model, example(2, channels, size, 9)) == LARGE


@settings(max_examples=5)
@given(st.integers(2, 5), st.integers(2, 5), kernels, small_kernels)
def test_block(channels: int, width: int, kernel: int, small: int) -> None:
    model = RepLKBlock(channels, width, kernel, small)
    assert minimal(model, example(2, channels, 9, 8)) == BLOCK


@settings(max_examples=5)
@given(st.integers(2, 5), st.integers(2, 8), st.integers(3, 8))
def test_ffn(channels: int, width: int, size: int) -> None:
    assert minimal(ConvFFN(channels, width), example(2, channels, size, 7)) == FFN


@settings(max_examples=3)
@given(st.integers(2, 4), st.integers(2, 6))
def test_network(channels: int, classes: int) -> None:
    model = RepLKNet(channels, 7, 3, classes)
    assert minimal(model, example(4, 3, 17, 16)) == NET
