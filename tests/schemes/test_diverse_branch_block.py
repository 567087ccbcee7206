"""Diverse Branch Block: four branches, two of them of two convolutions, are one k×k.

k×k; 1×1; 1×1-BN-k×k; 1×1-BN-average pooling; each with a batch norm at its end. The inner batch
norms pad with what they make of 0, as if padding stood before them. Source: Ding et al., "Diverse
Branch Block", CVPR 2021, section 3.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.border import BNAndPad
from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class IdentityBased1x1(nn.Conv2d):
    """A 1×1 convolution whose kernel is the identity plus a weight, within each group."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False)
        size = channels // groups
        identity = torch.eye(size).repeat(groups, 1).view(channels, size, 1, 1)
        self.register_buffer("identity", identity)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        kernel = self.weight + self.identity.type_as(self.weight)
        return nn.functional.conv2d(input, kernel, None, groups=self.groups)


class DiverseBranchBlock(nn.Module):
    """The sum of the branches; a depthwise block has no 1×1 branch, and pools its input itself."""

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        internal: int | None = None,
    ) -> None:
        super().__init__()
        padding = kernel // 2

        def conv(channels: int, size: int, stride: int, padding: int) -> nn.Conv2d:
            return nn.Conv2d(channels, outer, size, stride, padding, groups=groups, bias=False)

        self.dbb_origin = nn.Sequential(conv(inner, kernel, stride, padding), nn.BatchNorm2d(outer))
        if groups < outer:
            self.dbb_1x1 = nn.Sequential(conv(inner, 1, stride, 0), nn.BatchNorm2d(outer))
            self.dbb_avg = nn.Sequential(
                conv(inner, 1, 1, 0),
                BNAndPad(padding, outer),
                nn.AvgPool2d(kernel, stride),
                nn.BatchNorm2d(outer),
            )
        else:
            self.dbb_1x1 = None
            self.dbb_avg = nn.Sequential(
                nn.AvgPool2d(kernel, stride, padding), nn.BatchNorm2d(outer)
            )
        first = (
            IdentityBased1x1(inner, groups)
            if internal is None
            else nn.Conv2d(inner, internal, 1, groups=groups, bias=False)
        )
        internal = internal or inner
        self.dbb_1x1_kxk = nn.Sequential(
            first,
            BNAndPad(padding, internal),
            conv(internal, kernel, stride, 0),
            nn.BatchNorm2d(outer),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.dbb_origin(x)
        if self.dbb_1x1 is not None:
            out = out + self.dbb_1x1(x)
        out = out + self.dbb_avg(x)
        return out + self.dbb_1x1_kxk(x)


class Branch(nn.Module):
    """One branch of two layers beside a k×k, without identity-based kernels."""

    def __init__(self, channels: int, last: nn.Module, affine: bool) -> None:
        super().__init__()
        self.dbb_origin = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = BNAndPad(1, channels, affine)
        self.last = last
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.dbb_origin(x) + self.bn2(self.last(self.bn1(self.conv1(x))))


ONE = {"Conv2d": 1}

SCHEMES = [
    Scheme("Diverse Branch Block", lambda: DiverseBranchBlock(8, 8), (2, 8, 9, 8), ONE),
    Scheme("DBB, strided", lambda: DiverseBranchBlock(8, 12, 3, 2), (2, 8, 9, 8), ONE),
    Scheme("DBB, 5×5", lambda: DiverseBranchBlock(8, 8, 5), (2, 8, 9, 8), ONE),
    Scheme("DBB, grouped", lambda: DiverseBranchBlock(8, 8, groups=2), (2, 8, 9, 8), ONE),
    Scheme("DBB, depthwise", lambda: DiverseBranchBlock(8, 8, groups=8), (2, 8, 9, 8), ONE),
]

sizes = st.integers(5, 9)


@settings(max_examples=10)
@given(
    st.integers(2, 4),
    st.integers(2, 4),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 2),
    st.sampled_from([None, 3, 5]),
    sizes,
)
def test_block(
    inner: int, outer: int, kernel: int, stride: int, internal: int | None, size: int
) -> None:
    block = DiverseBranchBlock(inner, outer, kernel, stride, internal=internal)
    assert minimal(block, example(2, inner, size, 7)) == ONE


@settings(max_examples=5)
@given(st.integers(2, 3), st.integers(1, 2), st.integers(2, 3), st.integers(1, 2), sizes)
def test_grouped(groups: int, inner: int, outer: int, stride: int, size: int) -> None:
    block = DiverseBranchBlock(inner * groups, outer * groups, 3, stride, groups)
    assert minimal(block, example(2, inner * groups, size, 7)) == ONE


@settings(max_examples=5)
@given(st.integers(2, 6), st.sampled_from([3, 5]), st.integers(1, 2), sizes)
def test_depthwise(channels: int, kernel: int, stride: int, size: int) -> None:
    block = DiverseBranchBlock(channels, channels, kernel, stride, channels)
    assert minimal(block, example(2, channels, size, 7)) == ONE


@settings(max_examples=5)
@given(st.integers(1, 4), st.booleans(), st.booleans())
def test_one_branch(channels: int, affine: bool, bias: bool) -> None:
    conv = nn.Conv2d(channels, channels, 3, bias=bias)
    assert minimal(Branch(channels, conv, affine), example(2, channels, 7, 6)) == ONE


@settings(max_examples=5)
@given(st.integers(1, 4), st.booleans())
def test_average_pooling(channels: int, affine: bool) -> None:
    block = Branch(channels, nn.AvgPool2d(3, 1), affine)
    assert minimal(block, example(2, channels, 7, 6)) == ONE
