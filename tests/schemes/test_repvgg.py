"""RepVGG: 3×3, 1×1 and identity, each with a batch norm, sum to one 3×3 (Ding et al., CVPR 2021).

The convolutions may be grouped, and squeeze-and-excitation may stand between block and ReLU.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.passes.layers import branch
from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class SqueezeExcite(nn.Module):
    """Gates per channel from the mean over space (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, squeezed, 1)
        self.up = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x * gate


class RepVGGBlock(nn.Module):
    """ReLU(SE(BN(3×3 x) + BN(1×1 x) + BN(x))), the last where shapes allow."""

    def __init__(
        self, inner: int, outer: int, stride: int = 1, groups: int = 1, squeezed: int = 0
    ) -> None:
        super().__init__()
        self.rbr_dense = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(outer)
        )
        self.rbr_1x1 = nn.Sequential(
            nn.Conv2d(inner, outer, 1, stride, 0, groups=groups, bias=False), nn.BatchNorm2d(outer)
        )
        same = inner == outer and stride == 1
        self.rbr_identity = nn.BatchNorm2d(inner) if same else None
        self.se = SqueezeExcite(outer, squeezed) if squeezed else nn.Identity()
        self.nonlinearity = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.se(self.rbr_dense(x) + self.rbr_1x1(x) + identity))


PLAIN = {"Conv2d": 1, "ReLU": 1}
GATED = {"Conv2d": 3, "ReLU": 1, "mean": 1, "relu": 1, "sigmoid": 1, "mul": 1}

SCHEMES = [
    Scheme("RepVGG", lambda: RepVGGBlock(8, 8), (2, 8, 9, 8), PLAIN),
    Scheme("RepVGG, grouped", lambda: RepVGGBlock(8, 8, groups=4), (2, 8, 9, 8), PLAIN),
    Scheme("RepVGG, strided", lambda: RepVGGBlock(8, 12, stride=2), (2, 8, 9, 8), PLAIN),
    Scheme("RepVGG, SE", lambda: RepVGGBlock(8, 8, squeezed=2), (2, 8, 9, 8), GATED),
]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[RepVGGBlock, int]:
    groups = draw(st.integers(1, 3))
    inner, outer = (groups * draw(st.integers(1, 3)) for _ in range(2))
    if draw(st.booleans()):
        outer = inner
    squeezed = draw(st.sampled_from([0, 2]))
    return RepVGGBlock(inner, outer, draw(st.integers(1, 2)), groups, squeezed), inner


@settings(max_examples=15)
@given(blocks(), st.integers(6, 9), st.integers(6, 9))
def test_block(drawn: tuple[RepVGGBlock, int], height: int, width: int) -> None:
    block, channels = drawn
    found = minimal(block, example(2, channels, height, width))
    assert found == (PLAIN if isinstance(block.se, nn.Identity) else GATED)


@settings(max_examples=5)
@given(st.integers(2, 3), st.integers(1, 2))
def test_stage(depth: int, stride: int) -> None:
    first = RepVGGBlock(3, 6, stride)
    stage = nn.Sequential(first, *[RepVGGBlock(6, 6, groups=1 + i % 2) for i in range(depth)])
    found = minimal(stage, example(2, 3, 10, 9))
    assert found == {"Conv2d": depth + 1, "ReLU": depth + 1}


def test_without_nonlinearity() -> None:
    """`branch` is the block's convolution and batch norm; nothing else is left of the sum."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.point, self.norm = branch(4, 3), branch(4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.dense(x) + self.point(x) + self.norm(x)

    assert minimal(Block(), example(2, 4, 8, 7)) == {"Conv2d": 1}
