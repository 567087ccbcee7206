"""PP-HGNetV2 and PP-LCNetV3 (PaddleClas): the learned affine block, `scale * x + bias`.

Two numbers for all channels, behind an activation or in front of one (as in "LAB", RT-DETR's
backbone, https://arxiv.org/abs/2304.08069).
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.passes.layers import branch
from tests.schemes.parts import inference_form
from tests.schemes.scheme import Scheme, example, minimal, missed

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class LearnedAffine(nn.Module):
    """`scale * x + bias`, both of shape (1,)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias


class TwoReaders(nn.Module):
    """Both readers of the affine block are 1 x 1 convolutions."""

    def __init__(self, channels: int, outer: int, bias: bool = True) -> None:
        super().__init__()
        self.trunk = affine_unit(channels)
        self.a = nn.Conv2d(channels, outer, 1, bias=bias)
        self.b = nn.Conv2d(channels, outer, 1, stride=2, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.trunk(x)
        return self.a(y).relu(), self.b(y)


class Joined(nn.Module):
    """The outputs of `TwoReaders` as one tensor."""

    def __init__(self, readers: TwoReaders) -> None:
        super().__init__()
        self.readers = readers

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.readers(x)
        return torch.cat([a.flatten(1), b.flatten(1)], 1)


class RepUnit(nn.Module):
    """PP-LCNetV3: branches, an affine block, an activation and another affine block."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branch(channels, k, groups=channels) for k in (3, 3, 1))
        self.skip = nn.BatchNorm2d(channels)
        self.before, self.after = LearnedAffine(), LearnedAffine()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.skip(x)
        for part in self.branches:
            y = y + part(x)
        return self.after(self.activation(self.before(y)))


def affine_unit(channels: int) -> nn.Sequential:
    """HGNetV2's unit: convolution, batch norm, ReLU, affine block."""
    return nn.Sequential(*branch(channels, 3), nn.ReLU(), LearnedAffine())


def chain(channels: int, outer: int, kernel: int, padding: int, bias: bool = True) -> nn.Module:
    """The unit in front of a convolution."""
    return nn.Sequential(
        affine_unit(channels), nn.Conv2d(channels, outer, kernel, padding=padding, bias=bias)
    )


@settings(max_examples=10)
@given(
    channels=st.integers(1, 5),
    outer=st.integers(1, 5),
    kernel=st.sampled_from([1, 3]),
    bias=st.booleans(),
)
def test_without_padding(channels: int, outer: int, kernel: int, bias: bool) -> None:
    model = chain(channels, outer, kernel, 0, bias)
    assert minimal(model, example(2, channels, 9, 8)) == {"Conv2d": 2, "ReLU": 1}


@settings(max_examples=10)
@given(
    channels=st.integers(1, 5),
    outer=st.integers(1, 5),
    kernel=st.sampled_from([3, 5]),
    bias=st.booleans(),
)
def test_zero_padding(channels: int, outer: int, kernel: int, bias: bool) -> None:
    """The scale folds, and the border's constant -t/s is left to subtract; or a reason is told."""
    model, x = chain(channels, outer, kernel, kernel // 2, bias), example(2, channels, 9, 8)
    counts = minimal(model, x)
    assert (counts.pop("Conv2d"), counts.pop("ReLU")) == (2, 1)
    if counts not in ({"sub": 1}, {"add": 1}):
        assert counts == {"mul": 1, "add": 1}
        fused = inference_form(model, x)
        assert any("padding" in line for line in missed(fused))


@settings(max_examples=10)
@given(channels=st.integers(2, 5), outer=st.integers(2, 5), bias=st.booleans())
def test_two_readers(channels: int, outer: int, bias: bool) -> None:
    counts = minimal(Joined(TwoReaders(channels, outer, bias)), example(2, channels, 9, 8))
    assert counts == {"Conv2d": 3, "ReLU": 1, "relu": 1, "flatten": 2, "cat": 1}


@settings(max_examples=10)
@given(channels=st.integers(1, 5), activation=st.sampled_from([nn.ReLU, nn.Hardswish, nn.Identity]))
def test_rep_unit(channels: int, activation: type[nn.Module]) -> None:
    model = nn.Sequential(RepUnit(channels, activation()), nn.Conv2d(channels, 2 * channels, 1))
    counts = minimal(model, example(2, channels, 9, 8))
    assert not counts.keys() - {"Conv2d", activation.__name__}
    assert counts["Conv2d"] <= 2


SCHEMES = [
    Scheme(
        "HGNetV2 affine block", lambda: chain(4, 5, 1, 0), (2, 4, 9, 8), {"Conv2d": 2, "ReLU": 1}
    ),
    Scheme(
        "PP-LCNetV3 unit",
        lambda: nn.Sequential(RepUnit(4, nn.Hardswish()), nn.Conv2d(4, 8, 1)), (2, 4, 9, 8),
        {"Conv2d": 2, "Hardswish": 1},
    ),
]  # fmt: skip
