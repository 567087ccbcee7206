"""Cases that look foldable: where zero padding meets a bias, a shift or a partial window.

Each is compiled, and run at every image size from 1 to 2R + 2S: R is the receptive extent, padding
included, and S the stride. That is every class of border and every phase of the stride.
"""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.fused import operators
from tests.schemes.scheme import compiled, example, missed, same_function

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

CHANNELS = st.integers(1, 3)
WIDE = 16
"""Channels in the middle, where a merged kernel would cost less: only the border forbids it."""


class Total(nn.Module):
    """The sum of what its parts make of one input."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        total, *others = (part(x) for part in self.parts)
        for other in others:
            total = total + other
        return total


def swept(
    model: nn.Module, channels: int, extent: int, stride: int = 1
) -> tuple[Counter[str], list[str]]:
    """Compile, compare at every size up to 2 * extent + 2 * stride; return operators and remarks.

    Sizes that the model itself refuses are left out; the largest is none of them.
    """
    largest = 2 * extent + 2 * stride
    model, fused = compiled(model, example(2, channels, largest, largest))
    for height, width in itertools.product(range(1, largest + 1), repeat=2):
        x = example(1, channels, height, width).double()
        try:
            model(x)
        except RuntimeError:
            assert (height, width) != (largest, largest)
            continue
        same_function(model, fused, x)
    return operators(fused), missed(fused)


def speaks_of(lines: list[str], *words: str) -> bool:
    """Whether a remark has one of the words."""
    return any(word in line for line in lines for word in words)


@settings(max_examples=5)
@given(inner=CHANNELS, outer=CHANNELS, bias=st.booleans())
def test_batch_norm_before_padded_convolution(inner: int, outer: int, bias: bool) -> None:
    """A subtraction in place of the norm gains nothing, so the norm stays."""
    model = nn.Sequential(nn.BatchNorm2d(inner), nn.Conv2d(inner, outer, 3, padding=1, bias=bias))
    counts, remarks = swept(model, inner, extent=5)
    assert counts == {"BatchNorm2d": 1, "Conv2d": 1}
    assert speaks_of(remarks, "padding")


@settings(max_examples=5)
@given(inner=CHANNELS, outer=CHANNELS, bias=st.booleans())
def test_batch_norm_before_unpadded_convolution(inner: int, outer: int, bias: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(inner), nn.Conv2d(inner, outer, 3, bias=bias))
    counts, _ = swept(model, inner, extent=3)
    assert counts == {"Conv2d": 1}


@settings(max_examples=5)
@given(inner=CHANNELS, outer=CHANNELS)
def test_pointwise_with_bias_before_padded_convolution(inner: int, outer: int) -> None:
    model = nn.Sequential(nn.Conv2d(inner, WIDE, 1), nn.Conv2d(WIDE, outer, 3, padding=1))
    counts, remarks = swept(model, inner, extent=5)
    assert counts == {"Conv2d": 2}
    assert speaks_of(remarks, "padding")


@settings(max_examples=5)
@given(inner=CHANNELS, outer=CHANNELS, bias=st.booleans())
def test_pointwise_without_bias_before_padded_convolution(
    inner: int, outer: int, bias: bool
) -> None:
    model = nn.Sequential(
        nn.Conv2d(inner, WIDE, 1, bias=False), nn.Conv2d(WIDE, outer, 3, padding=1, bias=bias)
    )
    counts, _ = swept(model, inner, extent=5)
    assert counts == {"Conv2d": 1}


@settings(max_examples=5)
@given(channels=CHANNELS, stride=st.integers(1, 2), bias=st.booleans())
def test_pooling_that_does_not_count_its_padding(channels: int, stride: int, bias: bool) -> None:
    model = Total(
        nn.Conv2d(channels, channels, 3, stride, padding=1, bias=bias),
        nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    )
    counts, remarks = swept(model, channels, extent=5, stride=stride)
    assert counts == {"Conv2d": 1, "AvgPool2d": 1, "add": 1}
    assert speaks_of(remarks, "padding", "count_include_pad")


@settings(max_examples=5)
@given(channels=CHANNELS, stride=st.integers(1, 2), bias=st.booleans())
def test_pooling_that_counts_its_padding(channels: int, stride: int, bias: bool) -> None:
    model = Total(
        nn.Conv2d(channels, channels, 3, stride, padding=1, bias=bias),
        nn.AvgPool2d(3, stride, padding=1),
    )
    counts, _ = swept(model, channels, extent=5, stride=stride)
    assert counts == {"Conv2d": 1}


@settings(max_examples=5)
@given(channels=CHANNELS, depthwise=st.booleans(), bias=st.booleans())
def test_pooling_before_padded_strided_convolution(
    channels: int, depthwise: bool, bias: bool
) -> None:
    """The pad is of one pooled pixel, of which an image of odd size has two or three."""
    groups = channels if depthwise else 1
    model = nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=groups, bias=bias),
    )
    counts, remarks = swept(model, channels, extent=10, stride=4)
    assert counts == {"AvgPool2d": 1, "Conv2d": 1}
    assert speaks_of(remarks, "padding", "padded", "border")


@settings(max_examples=5)
@given(channels=CHANNELS, bias=st.booleans())
def test_two_padded_convolutions(channels: int, bias: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(channels, WIDE, 3, padding=1, bias=False),
        nn.Conv2d(WIDE, channels, 3, padding=1, bias=bias),
    )
    counts, remarks = swept(model, channels, extent=9)
    assert counts == {"Conv2d": 2}
    assert speaks_of(remarks, "two padded kernels do not merge at the border")


@settings(max_examples=5)
@given(channels=CHANNELS, biases=st.tuples(st.booleans(), st.booleans()))
def test_two_convolutions_whose_padding_is_moved_first(
    channels: int, biases: tuple[bool, bool]
) -> None:
    model = nn.Sequential(
        nn.Conv2d(channels, WIDE, 3, padding=2, bias=biases[0]),
        nn.Conv2d(WIDE, channels, 3, bias=biases[1]),
    )
    counts, _ = swept(model, channels, extent=9)
    assert counts == {"Conv2d": 1}


def row_and_column(channels: int, taps: int, *, bias: bool) -> nn.Module:
    """Depthwise 1 x taps and taps x 1, both padded."""
    half = taps // 2
    return nn.Sequential(
        nn.Conv2d(channels, channels, (1, taps), padding=(0, half), groups=channels, bias=bias),
        nn.Conv2d(channels, channels, (taps, 1), padding=(half, 0), groups=channels),
    )


@settings(max_examples=4)
@given(channels=CHANNELS, bias=st.booleans())
def test_row_before_column(channels: int, bias: bool) -> None:
    """25 taps in place of 10: too dear without the bias, and wrong with it."""
    counts, remarks = swept(row_and_column(channels, 5, bias=bias), channels, extent=9)
    assert counts == {"Conv2d": 2}
    assert speaks_of(remarks, "multiply-adds", "its bias meets the zero padding")


@settings(max_examples=3)
@given(channels=CHANNELS)
def test_short_row_with_bias_before_column(channels: int) -> None:
    """Of two taps each, so that one kernel would be no dearer: only the bias forbids it."""
    counts, remarks = swept(row_and_column(channels, 2, bias=True), channels, extent=4)
    assert counts == {"Conv2d": 2}
    assert speaks_of(remarks, "its bias meets the zero padding")


@settings(max_examples=3)
@given(channels=CHANNELS)
def test_short_row_without_bias_before_column(channels: int) -> None:
    counts, _ = swept(row_and_column(channels, 2, bias=False), channels, extent=4)
    assert counts == {"Conv2d": 1}


@settings(max_examples=5)
@given(channels=CHANNELS, bias=st.booleans())
def test_subsampling_beside_strided_depthwise(channels: int, bias: bool) -> None:
    """Pooling over windows of one pixel takes every second one, as the middle tap does."""
    model = Total(
        nn.AvgPool2d(1, 2),
        nn.Conv2d(channels, channels, 3, 2, padding=1, groups=channels, bias=bias),
    )
    counts, _ = swept(model, channels, extent=5, stride=2)
    assert counts == {"Conv2d": 1}
