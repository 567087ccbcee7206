"""Maps of one tensor, as they meet in a region."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.errors import Declined
from reparam.terms import operand
from reparam.values import Conv, Sum
from reparam.verify import EXACT, relative_difference
from tests.strategies import PADDING_MODES, convs, drawn

FACTORS = st.sampled_from([-2.0, -1.0, 0.5, 1.0])


@given(convs(modes=PADDING_MODES), FACTORS, st.one_of(FACTORS, st.just(0.0)))
def test_a_map_of_a_weighted_sum_is_a_sum_of_maps(conv: Conv, a: float, b: float) -> None:
    """The constant beyond the border is that of the whole, and goes with the first operand."""
    x, y = (drawn(seed, 2, conv.in_channels, *(9, 8)[: conv.n]) for seed in (0, 1))
    first, second = operand(conv, a, 0), operand(conv, b, 1)
    assert relative_difference(conv(a * x + b * y), first(x) + second(y)) <= EXACT


@given(FACTORS, FACTORS)
def test_a_multiple_of_a_weighted_sum_is_a_multiple(a: float, b: float) -> None:
    found = operand(Sum((a,)), b, 1)
    assert isinstance(found, Sum)
    assert found.coefficients == (a * b,)


def test_a_border_is_no_multiple_of_nothing() -> None:
    """0 x + y: beyond the border of 0 x there is nothing that would make the constant."""
    conv = Conv(drawn(0, 4, 4, 3), padding=((1, 1),), border=torch.ones(4))
    with pytest.raises(Declined) as caught:
        operand(conv, 0.0, 0)
    assert caught.value.reason == "a border can't pass a factor of 0"
