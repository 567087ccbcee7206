"""ECB, the edge-oriented convolution block: a 3×3 and four branches of 1×1 and 3×3 are one 3×3.

The last 3×3 is learned, or a Sobel or Laplacian mask scaled per channel; the border between is the
bias of the 1×1. Source: Zhang et al., "Edge-oriented Convolution Block for Real-time Super
Resolution on Mobile Devices", ACM MM 2021, section 3.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.schemes.border import pad_with
from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

MASKS = {
    "conv1x1-sobelx": [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
    "conv1x1-sobely": [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
    "conv1x1-laplacian": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
}
KINDS = ("conv1x1-conv3x3", *MASKS)


class Expanded3x3(nn.Module):
    """K₁ ∗ pad(K₀x + b₀) + b₁: K₀ is 1×1, and the border of the 3×3 K₁ is b₀."""

    def __init__(self, inner: int, outer: int, multiplier: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(inner, outer * multiplier, 1)
        self.conv1 = nn.Conv2d(outer * multiplier, outer, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(pad_with(self.conv0(x), self.conv0.bias, 1))


class Edge3x3(nn.Module):
    """The same with a depthwise K₁ of one fixed mask, scaled per channel."""

    def __init__(self, inner: int, outer: int, kind: str) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(inner, outer, 1)
        self.scale = nn.Parameter(torch.full((outer, 1, 1, 1), 1e-3))
        self.bias = nn.Parameter(torch.full((outer,), 1e-3))
        mask = torch.tensor(MASKS[kind], dtype=torch.float32).expand(outer, 1, 3, 3)
        self.register_buffer("mask", mask.clone())
        self.groups = outer

    def forward(self, x: Tensor) -> Tensor:
        y = pad_with(self.conv0(x), self.conv0.bias, 1)
        return F.conv2d(y, self.scale * self.mask, self.bias, stride=1, groups=self.groups)


def sequential_3x3(kind: str, inner: int, outer: int, multiplier: int = 2) -> nn.Module:
    if kind in MASKS:
        return Edge3x3(inner, outer, kind)
    return Expanded3x3(inner, outer, multiplier)


class ECB(nn.Module):
    """PReLU(3×3 x + Σ branches + x), the last on demand."""

    def __init__(
        self,
        inner: int,
        outer: int,
        multiplier: int = 2,
        skip: bool = False,
        kinds: tuple[str, ...] = KINDS,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv3x3 = nn.Conv2d(inner, outer, 3, padding=1)
        self.branches = nn.ModuleList(
            sequential_3x3(kind, inner, outer, multiplier) for kind in kinds
        )
        self.with_idt = skip and inner == outer
        self.act = nn.PReLU(outer) if activation else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3x3(x)
        for branch in self.branches:
            y = y + branch(x)
        if self.with_idt:
            y = y + x
        return y if self.act is None else self.act(y)


ONE = {"Conv2d": 1, "PReLU": 1}

SCHEMES = [
    Scheme("ECB", lambda: ECB(6, 8), (2, 6, 9, 8), ONE),
    Scheme("ECB, skip", lambda: ECB(8, 8, skip=True), (2, 8, 9, 8), ONE),
    Scheme("ECB, linear", lambda: ECB(3, 8, activation=False), (2, 3, 9, 8), {"Conv2d": 1}),
]


@settings(max_examples=10)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.integers(3, 8),
)
def test_block(
    inner: int, outer: int, multiplier: int, skip: bool, activation: bool, size: int
) -> None:
    block = ECB(inner, outer, multiplier, skip, activation=activation)
    found = minimal(block, example(2, inner, size, 7))
    assert found == (ONE if activation else {"Conv2d": 1})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
def test_one_branch(kind: str, skip: bool) -> None:
    block = ECB(4, 4, skip=skip, kinds=(kind,), activation=False)
    assert minimal(block, example(2, 4, 8, 7)) == {"Conv2d": 1}
