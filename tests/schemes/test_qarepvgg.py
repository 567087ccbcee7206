"""QARepVGG and PP-YOLOE: branches without batch norms of their own are one 3×3.

QARepVGG: BN(BN(3×3 x) + α·1×1 x + x), and in a later variant + AvgPool(3, 1, 1) (Chu et al.,
"Make RepVGG Greater Again", AAAI 2024, section 4). PP-YOLOE: BN(3×3 x) + α·BN(1×1 x), with a
learned α of shape (1,) (Xu et al., 2022, section 2.2).
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class QARepVGGBlock(nn.Module):
    """ReLU(BN(BN(3×3 x) + α·1×1 x + x + AvgPool x)), the last two where shapes allow."""

    def __init__(
        self,
        inner: int,
        outer: int,
        stride: int = 1,
        groups: int = 1,
        alpha: nn.Parameter | float = 1.0,
        pooled: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        same = inner == outer and stride == 1
        self.rbr_dense = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(outer)
        )
        self.rbr_1x1 = nn.Conv2d(inner, outer, 1, stride, groups=groups, bias=bias)
        self.rbr_identity = nn.Identity() if same else None
        self.rbr_avg = nn.AvgPool2d(3, 1, 1) if same and pooled else None
        self.alpha = alpha
        self.bn = nn.BatchNorm2d(outer)
        self.nonlinearity = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.rbr_dense(x) + self.alpha * self.rbr_1x1(x)
        if self.rbr_identity is not None:
            out = out + self.rbr_identity(x)
        if self.rbr_avg is not None:
            out = out + self.rbr_avg(x)
        return self.nonlinearity(self.bn(out))


class PPYOLOEBlock(nn.Module):
    """SiLU(BN(3×3 x) + α·BN(1×1 x)), or without the α."""

    def __init__(self, inner: int, outer: int, alpha: bool = True, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(inner, outer, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(outer)
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(inner, outer, 1, groups=groups, bias=False), nn.BatchNorm2d(outer)
        )
        self.alpha = nn.Parameter(Tensor([1.0])) if alpha else None
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.alpha is None:
            return self.act(self.conv1(x) + self.conv2(x))
        return self.act(self.conv1(x) + self.alpha * self.conv2(x))


def learned() -> nn.Parameter:
    """An α for `randomised` to draw."""
    return nn.Parameter(Tensor([1.0]))


ONE = {"Conv2d": 1, "ReLU": 1}

SCHEMES = [
    Scheme("QARepVGG", lambda: QARepVGGBlock(8, 8, pooled=False), (2, 8, 9, 8), ONE),
    Scheme("QARepVGG, average pooling", lambda: QARepVGGBlock(8, 8), (2, 8, 9, 8), ONE),
    Scheme("QARepVGG, learned α", lambda: QARepVGGBlock(8, 8, alpha=learned()), (2, 8, 9, 8), ONE),
    Scheme("QARepVGG, strided", lambda: QARepVGGBlock(8, 12, 2), (2, 8, 9, 8), ONE),
    Scheme("PP-YOLOE", lambda: PPYOLOEBlock(8, 8), (2, 8, 9, 8), {"Conv2d": 1, "SiLU": 1}),
]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[QARepVGGBlock, int]:
    groups = draw(st.integers(1, 2))
    inner, outer = (groups * draw(st.integers(1, 3)) for _ in range(2))
    if draw(st.booleans()):
        outer = inner
    alpha = draw(st.sampled_from([1.0, 0.5, None]))
    block = QARepVGGBlock(
        inner,
        outer,
        draw(st.integers(1, 2)),
        groups,
        learned() if alpha is None else alpha,
        draw(st.booleans()),
        draw(st.booleans()),
    )
    return block, inner


@settings(max_examples=20)
@given(blocks(), st.integers(5, 9), st.integers(5, 9))
def test_qarepvgg(drawn: tuple[QARepVGGBlock, int], height: int, width: int) -> None:
    block, channels = drawn
    assert minimal(block, example(2, channels, height, width)) == ONE


@settings(max_examples=10)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(5, 9))
def test_ppyoloe(groups: int, inner: int, outer: int, alpha: bool, size: int) -> None:
    block = PPYOLOEBlock(inner * groups, outer * groups, alpha, groups)
    found = minimal(block, example(2, inner * groups, size, 7))
    assert found == {"Conv2d": 1, "SiLU": 1}
