"""Maps of one tensor, as they meet in a region."""

from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.errors import Declined
from reparam.terms import Group, Term, apart_and_together, extra_madds, grouped, joined, operand
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


SQUARE = Conv(drawn(0, 4, 4, 3, 3), padding=((1, 1), (1, 1)))


@pytest.mark.parametrize(
    ("other", "apart", "together"),
    [
        (Conv(drawn(1, 4, 4, 1, 1)), 144 + 16 + 4, 144),
        (Sum((2.0,)), 144 + 4, 144),
        (
            Conv(drawn(1, 4, 1, 5, 5), padding=((2, 2), (2, 2)), groups=4),
            144 + 100 + 4,
            400,
        ),
    ],
)
def test_what_a_sum_costs_apart_and_together(other: Conv | Sum, apart: int, together: int) -> None:
    """Four channels each: the addition costs as many."""
    for a, b in ((SQUARE, other), (other, SQUARE)):
        assert apart_and_together(a, b) == (apart, together)
        assert extra_madds(a, b) == together - apart
    groups = grouped((Term(SQUARE), Term(other)))
    assert len(groups) == (1 if together <= apart else 2)


def test_maps_that_no_law_adds_stay_apart() -> None:
    strided = Conv(drawn(1, 4, 4, 1, 1), stride=(2, 2))
    with pytest.raises(Declined) as caught:
        apart_and_together(SQUARE, strided)
    assert caught.value.reason == "the branches differ in stride, (1, 1) and (2, 2)"
    assert extra_madds(SQUARE, strided) == inf
    assert len(grouped((Term(SQUARE), Term(strided)))) == 2


def test_two_groups_as_one_mix_what_either_mixes() -> None:
    depthwise = Conv(drawn(1, 4, 1, 1, 1), groups=4)
    a, b = (Group(map_, (Term(map_, 1, 0),)) for map_ in (SQUARE, depthwise))
    skip = Group(Sum((1.0,)), (Term(Sum((1.0,))),))
    for both in (joined(a, b), joined(b, a)):
        assert both.map is SQUARE
        assert (both.convolutions, both.skips) == (2, 0)
    both = joined(skip, b)
    assert both.map is depthwise
    assert (both.convolutions, both.skips) == (1, 1)
