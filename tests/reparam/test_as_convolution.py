"""Linear maps of one tensor are convolutions, or say why they are none."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.algebra import input_columns
from reparam.errors import Declined
from reparam.operator_laws import as_convolution
from reparam.operators import AvgPool, ConvTranspose, Pad
from reparam.values import BatchNorm, Conv, Value
from reparam.verify import EXACT, relative_difference
from tests.strategies import PADDING_MODES, convs, drawn

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
