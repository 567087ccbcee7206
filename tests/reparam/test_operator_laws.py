"""Linear maps of one tensor are convolutions, or say why not; transposed ones can be scaled."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reparam.algebra import affine, input_columns
from reparam.errors import Declined
from reparam.operator_laws import (
    as_convolution,
    scale_transposed_input,
    scale_transposed_output,
)
from reparam.operators import AvgPool, ConvTranspose, Pad, Slice
from reparam.values import BatchNorm, Conv, Value
from reparam.verify import EXACT, relative_difference
from tests.strategies import PADDING_MODES, SEEDS, convs, drawn

ONES = torch.ones(4)
POOL = AvgPool((3, 2), (2, 2), (1, 1))
AVERAGES = {
    "padding that counts": POOL,
    "a divisor of its own": replace(POOL, count_include_pad=False, divisor=5),
    "no padding": replace(POOL, count_include_pad=False, padding=(0, 0)),
    "partial windows that never are": replace(POOL, ceil_mode=True, stride=(1, 1)),
    "one row padded, the other strided": replace(POOL, padding=(1, 0), stride=(1, 2)),
}
PADS = [
    Pad(((1, 2), (0, 1)), mode, border)
    for mode in PADDING_MODES
    for border in (None, drawn(0, 1), drawn(1, 4))
    if border is None or mode == "zeros"
]


@pytest.mark.parametrize("value", [*AVERAGES.values(), *PADS])
def test_an_average_or_a_padding_is_a_convolution(value: AvgPool | Pad) -> None:
    conv = as_convolution(value, 4)
    assert conv.depthwise
    for height, width in ((5, 6), (6, 5), (3, 2), (7, 7)):
        x = drawn(height, 2, 4, height, width)
        assert relative_difference(value(x), conv(x)) <= EXACT


@given(st.integers(1, 3), st.data())
def test_rows_of_an_image_are_a_convolution(n: int, data: st.DataObject) -> None:
    start, cut, stride = (
        tuple(data.draw(st.integers(low, 3)) for _ in range(n)) for low in (0, 0, 1)
    )
    rows = Slice(start, cut, stride)
    conv = as_convolution(rows, 4)
    assert conv.depthwise
    assert conv.bias is None
    least = max(a + b for a, b in zip(start, cut, strict=True)) + 1
    for size in range(least, least + 4):
        x = drawn(size, 2, 4, *range(size, size + n))
        assert torch.equal(rows(x), conv(x))


@st.composite
def transposed(draw: st.DrawFn, largest_stride: int) -> ConvTranspose:
    """Of one to three axes, in groups; an output padding is less than stride or dilation."""
    n, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    inner, outer = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    kernel, stride, dilation = (
        tuple(draw(st.integers(1, top)) for _ in range(n)) for top in (4, largest_stride, 2)
    )
    steps = zip(stride, dilation, strict=True)
    more = tuple(draw(st.integers(0, max(pair) - 1)) for pair in steps)
    padding = tuple(draw(st.integers(0, 2)) for _ in range(n))
    seed = draw(SEEDS)
    bias = drawn(seed + 1, groups * outer) if draw(st.booleans()) else None
    weight = drawn(seed, groups * inner, outer, *kernel)
    return ConvTranspose(weight, bias, stride, padding, more, dilation, groups)


def images_for(conv: ConvTranspose) -> list[Tensor]:
    """Of all sizes from where something is left of the result."""
    found: list[Tensor] = []
    for size in range(1, 8):
        x = drawn(size, 2, conv.in_channels, *range(size, size + conv.n))
        try:
            conv(x)
        except RuntimeError:
            continue  # the padding takes off all of it
        found.append(x)
    return found


@given(transposed(1))
def test_a_transposed_convolution_of_stride_1_is_a_convolution(conv: ConvTranspose) -> None:
    plain = as_convolution(conv, None)
    assert (plain.groups, plain.out_channels) == (conv.groups, conv.out_channels)
    assert images_for(conv)
    for x in images_for(conv):
        assert relative_difference(conv(x), plain(x)) <= EXACT


@given(transposed(3), SEEDS, st.booleans())
def test_what_a_transposed_convolution_makes_can_be_scaled(
    conv: ConvTranspose, seed: int, shifted: bool
) -> None:
    shift = drawn(seed + 1, conv.out_channels) if shifted else None
    scale = affine(drawn(seed, conv.out_channels), shift, conv.n)
    scaled = scale_transposed_output(scale, conv)
    for x in images_for(conv):
        assert relative_difference(scale(conv(x)), scaled(x)) <= EXACT


@given(transposed(3), SEEDS, st.booleans())
def test_what_a_transposed_convolution_reads_can_be_scaled(
    conv: ConvTranspose, seed: int, shifted: bool
) -> None:
    """A shift of zero is none."""
    zeros = torch.zeros(conv.in_channels, dtype=torch.float64) if shifted else None
    scale = affine(drawn(seed, conv.in_channels), zeros, conv.n)
    scaled = scale_transposed_input(conv, scale)
    for x in images_for(conv):
        assert relative_difference(conv(scale(x)), scaled(x)) <= EXACT
    shift = affine(drawn(seed, conv.in_channels), drawn(seed + 1, conv.in_channels), conv.n)
    with pytest.raises(Declined) as caught:
        scale_transposed_input(conv, shift)
    assert caught.value.reason == (
        "a shift is not constant over space behind a transposed convolution"
    )


UNEVEN = "count_include_pad=False averages over fewer pixels at the padding"
PARTIAL = "ceil_mode averages over fewer pixels where a window is partial"
UNKNOWN = "the number of channels is not known"
NO_CONVOLUTION: list[tuple[Value, int | None, str]] = [
    (replace(POOL, count_include_pad=False), 4, UNEVEN),
    (replace(POOL, count_include_pad=False, padding=(0, 1)), 4, UNEVEN),
    (replace(POOL, ceil_mode=True), 4, PARTIAL),
    (replace(POOL, ceil_mode=True, stride=(1, 2)), 4, PARTIAL),
    (POOL, None, UNKNOWN),
    (
        ConvTranspose(drawn(0, 4, 2, 3), None, (2,), (0,), (0,), (1,)),
        4,
        "a transposed convolution with a stride is no convolution",
    ),
    (PADS[0], None, UNKNOWN),
    (Slice((1, 0), (0, 2), (1, 1)), None, UNKNOWN),
    (
        BatchNorm(ONES, ONES, None, None, 1e-5, None),
        4,
        "whether its input has spatial axes is not known; pass example_inputs",
    ),
]


@pytest.mark.parametrize(("value", "channels", "reason"), NO_CONVOLUTION)
def test_what_is_no_convolution_says_why(value: Value, channels: int | None, reason: str) -> None:
    with pytest.raises(Declined) as caught:
        as_convolution(value, channels)
    assert caught.value.reason == reason


@given(convs(in_channels=6, modes=PADDING_MODES), st.integers(1, 5))
def test_columns_of_a_convolution_add_up_to_it(conv: Conv, count: int) -> None:
    if conv.groups > 1:
        with pytest.raises(Declined) as caught:
            input_columns(conv, 0, count)
        assert caught.value.reason == "a grouped convolution of a concatenation is not split"
        return
    x = drawn(1, 2, 6, *(9, 8)[: conv.n])
    first, second = (
        input_columns(conv, start, size) for start, size in ((0, count), (count, 6 - count))
    )
    parts = x.split([count, 6 - count], 1) if conv.n else x.split([count, 6 - count], -1)
    total = first(parts[0]) + replace(second, bias=None)(parts[1])
    assert relative_difference(conv(x), total) <= EXACT
