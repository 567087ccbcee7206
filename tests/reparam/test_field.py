"""Residues are exact: integers modulo a prime, whatever float64 does with them in between."""

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.field import (
    LONGEST_SUM,
    POSITIVES,
    PRIME,
    fingerprint,
    hashed,
    inverse,
    positives,
    power,
    reduced,
    residue,
    residues,
    sign,
)

INTEGERS = st.integers(-POSITIVES, POSITIVES)


def whole(number: float) -> int:
    """The residue as an integer from zero on."""
    assert number == int(number)
    assert abs(number) <= POSITIVES
    return int(number) % PRIME


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_reduced(number: int) -> None:
    assert whole(reduced(torch.tensor(float(number), dtype=torch.float64)).item()) == number % PRIME


def test_the_longest_sum_of_the_largest_products_is_exact() -> None:
    largest = torch.full((LONGEST_SUM,), float(POSITIVES), dtype=torch.float64)
    assert int((largest @ largest).item()) == POSITIVES**2 * LONGEST_SUM < 2**53


@given(st.lists(INTEGERS, min_size=1, max_size=5), st.integers(1, 40))
def test_power(numbers: list[int], exponent: int) -> None:
    powers = power(torch.tensor(numbers, dtype=torch.float64), exponent)
    assert [*map(whole, powers.tolist())] == [pow(n, exponent, PRIME) for n in numbers]


@given(INTEGERS.filter(bool))
def test_inverse(number: int) -> None:
    made = inverse(torch.tensor(float(number), dtype=torch.float64)).item()
    assert whole(made) * number % PRIME == 1


@given(INTEGERS, INTEGERS)
def test_signs_multiply_and_one_of_two_opposites_is_positive(a: int, b: int) -> None:
    one, other, both = sign(torch.tensor([a, b, residue(a * b)], dtype=torch.float64))
    assert one * other == both
    assert sign(torch.tensor(-a, dtype=torch.float64)) == -one
    assert (one == 0) == (a == 0)


def test_what_is_drawn_is_positive_and_not_alike() -> None:
    drawn = positives((5000,), torch.Generator().manual_seed(0))
    assert bool((sign(drawn) == 1).all())
    assert drawn.unique().numel() > 4900


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_are_fractions(number: float) -> None:
    exact = Fraction(number)
    assert whole(residue(number)) * exact.denominator % PRIME == exact.numerator % PRIME


@given(st.integers(1, 99), st.integers(1, 400))
def test_a_rounded_fraction_stands_for_itself(top: int, bottom: int) -> None:
    assert whole(residue(top / bottom)) * bottom % PRIME == top


def test_many_numbers_are_what_each_is() -> None:
    numbers = torch.randn(20, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert residues(numbers).tolist() == [[residue(n) for n in row] for row in numbers.tolist()]
    special = torch.tensor([0.0, 1.0, -1.0, 1 / 9, 0.5], dtype=torch.float64)
    assert residues(special).tolist()[:3] == [0.0, 1.0, -1.0]
    assert [*map(residue, special.tolist())] == residues(special).tolist()


def test_fingerprints_tell_elements_apart_and_nothing_else() -> None:
    parts = tuple(torch.arange(4000).double() * factor for factor in (1, 0))
    marks = fingerprint(parts, 5)
    assert marks.unique().numel() == 4000
    assert torch.equal(fingerprint(tuple(p.flip(0) for p in parts), 5), marks.flip(0))
    assert not torch.equal(fingerprint(parts, 6), marks)
    made = hashed(marks, 1)
    assert bool((made.abs() <= POSITIVES).all())
    assert made.unique().numel() > 3950
    assert abs(made.mean().item()) < PRIME / 20
