"""RepGhost: a depthwise 3×3 and an identity, each with a batch norm, are one depthwise 3×3.

Source: Chen et al., "RepGhost", 2022, section 3.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def activation(relu: bool) -> nn.Module:
    return nn.ReLU() if relu else nn.Sequential()


class RepGhostModule(nn.Module):
    """y = ReLU(BN(1×1 x)), then ReLU(BN(dw3 y) + BN(y)); both without ReLU on demand."""

    def __init__(self, inner: int, outer: int, kernel: int = 3, relu: bool = True) -> None:
        super().__init__()
        self.primary_conv = nn.Sequential(
            nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer), activation(relu)
        )
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(outer, outer, kernel, padding=kernel // 2, groups=outer, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.fusion_bn = nn.BatchNorm2d(outer)
        self.relu = activation(relu)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary_conv(x)
        return self.relu(self.cheap_operation(y) + self.fusion_bn(y))


class RepGhostBottleneck(nn.Module):
    """Two modules, a strided depthwise 3×3 between, and a shortcut around."""

    def __init__(self, inner: int, middle: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.ghost1 = RepGhostModule(inner, middle)
        self.down = nn.Sequential()
        if stride > 1:
            self.down = nn.Sequential(
                nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False),
                nn.BatchNorm2d(middle),
            )
        self.ghost2 = RepGhostModule(middle, outer, relu=False)
        self.shortcut = nn.Sequential()
        if inner != outer or stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
                nn.BatchNorm2d(inner),
                nn.Conv2d(inner, outer, 1, bias=False),
                nn.BatchNorm2d(outer),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.ghost2(self.down(self.ghost1(x))) + self.shortcut(x)


MODULE = {"Conv2d": 2, "ReLU": 2}
SAME = {"Conv2d": 4, "ReLU": 2, "add": 1}
STRIDED = {"Conv2d": 7, "ReLU": 2, "add": 1}

SCHEMES = [
    Scheme("RepGhost, module", lambda: RepGhostModule(8, 12), (2, 8, 9, 8), MODULE),
    Scheme(
        "RepGhost, linear", lambda: RepGhostModule(8, 12, relu=False), (2, 8, 9, 8), {"Conv2d": 2}
    ),
    Scheme("RepGhost, bottleneck", lambda: RepGhostBottleneck(8, 12, 8), (2, 8, 9, 8), SAME),
    Scheme("RepGhost, strided", lambda: RepGhostBottleneck(8, 12, 16, 2), (2, 8, 9, 8), STRIDED),
]


@settings(max_examples=10)
@given(
    st.integers(1, 5), st.integers(2, 6), st.sampled_from([3, 5]), st.booleans(), st.integers(4, 9)
)
def test_module(inner: int, outer: int, kernel: int, relu: bool, size: int) -> None:
    module = RepGhostModule(inner, outer, kernel, relu)
    found = minimal(module, example(2, inner, size, 7))
    assert found["Conv2d"] <= 2
    assert found == (MODULE if relu else {"Conv2d": 2})


@settings(max_examples=6)
@given(st.integers(4, 6), st.integers(10, 12), st.booleans())
def test_bottleneck(channels: int, middle: int, strided: bool) -> None:
    outer, stride = (channels + 2, 2) if strided else (channels, 1)
    model = RepGhostBottleneck(channels, middle, outer, stride)
    found = minimal(model, example(2, channels, 9, 8))
    assert found == (STRIDED if strided else SAME)
