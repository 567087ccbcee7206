"""Torch's operators on residues are those of rational functions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam.field import PRIME
from reparam.residue import Places, Residue, UnmodelledError, VanishedError
from reparam.residue_operators import RULES
from tests.strategies import drawn

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Small integers, of which sums of products are exact in float64 as well."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=generator).double()


POLYNOMIALS: list[Callable[..., Any]] = [
    lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=2),
    lambda x, w, b: F.conv2d(x, w, b, stride=2, dilation=2, groups=2),
    lambda x, w, b: F.conv_transpose2d(x, w, None, 2, 1, 1, 1, 1)[:, :2],
    lambda x, w, b: F.conv2d(F.pad(x, [1, 0, 2, 1], "reflect"), w, b, groups=2),
    lambda x, w, b: F.pad(x, [1, 2], value=3.0),
    lambda x, w, b: F.linear(x.flatten(1), x.flatten(1)[:1], b[:1]),
    lambda x, w, b: (x.flatten(2).transpose(1, 2) @ x.flatten(2)) - 2 * b[0],
    lambda x, w, b: torch.cat([x, x.flip(1)], 1)[:, 1::2] * 3 + 1,
    lambda x, w, b: x.sum((2, 3)) - b - (-x).sum(-1)[..., 0],
    lambda x, w, b: torch.where(torch.arange(5) > 2, 0.0, x).square().pow(2),
    lambda x, w, b: F.interpolate(x, scale_factor=2).chunk(2, 1)[1].narrow(2, 1, 3),
    lambda x, w, b: F.pixel_shuffle(x, 2).masked_fill(torch.eye(10) > 0, 7.0),
    lambda x, w, b: F.avg_pool2d(x, 3, 1, 1, divisor_override=1),
    lambda x, w, b: (
        torch.addcmul(x, x, x, value=2).movedim(1, -1).unflatten(-1, (2, 2)).select(-1, 1)
    ),
]


@pytest.mark.parametrize("function", POLYNOMIALS, ids=range(len(POLYNOMIALS)))
def test_polynomials_of_integers_are_what_they_are_in_float64(function: Callable[..., Any]) -> None:
    x, w, b = integers(2, 4, 5, 5), integers(4, 2, 3, 3, seed=1), integers(4, seed=2)
    places = Places(2, 0, RULES)
    made: Residue = function(*map(places.constant, (x, w, b)))
    plain = function(x, w, b)
    assert made.shape == plain.shape
    for part in made.parts:
        assert torch.equal(torch.remainder(part, PRIME), torch.remainder(plain, PRIME))


def equal(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool(a.same(b).all())


@pytest.fixture
def places() -> Places:
    return Places(4, 7, RULES)


def some(places: Places, name: str, *shape: int) -> Any:
    return places.draw(name, torch.zeros(shape))


def test_average_pooling_divides_by_what_it_counts(places: Places) -> None:
    x = some(places, "x", 1, 2, 7, 6)
    ones = torch.ones(2, 1, 3, 3, dtype=torch.float64)
    summed = F.conv2d(x, ones, padding=1, groups=2)
    assert equal(F.avg_pool2d(x, 3, 1, 1), summed / 9)
    assert equal(F.avg_pool2d(x, 3, 1, 1, divisor_override=5), summed / 5)
    count = F.conv2d(torch.ones_like(x), ones, padding=1, groups=2)
    assert equal(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) * count, summed)
    assert equal(
        F.avg_pool2d(x, 2, 2, 0, True)[..., -1, :], x[..., -1, :].unflatten(-1, (3, 2)).mean(-1)
    )
    assert equal(F.adaptive_avg_pool2d(x, 1), x.mean((2, 3), keepdim=True))
    assert equal(F.adaptive_avg_pool2d(x, (2, 3))[0, 0, 0, 0], x[0, 0, :4, :2].mean())


def test_a_batch_norm_is_a_scale_and_a_shift(places: Places) -> None:
    x = some(places, "x", 2, 3, 4)
    variance = places.draw_variance("variance", torch.ones(3), 1e-3)
    mean, weight, bias = (some(places, name, 3) for name in ("mean", "weight", "bias"))
    norm = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-3)
    scale = weight * torch.rsqrt(variance + 1e-3)
    shift = bias - scale * mean
    assert equal(norm, x * scale[:, None] + shift[:, None])
    assert equal(scale, weight / torch.sqrt(variance + 1e-3))
    assert equal(scale, weight * (variance + 1e-3) ** -0.5)
    assert scale.bound.top == 2
    assert not equal(scale, weight * torch.rsqrt(variance + 1e-4))
    assert not equal(scale, weight * torch.rsqrt(variance))
    assert bool((torch.rsqrt(variance + 1e-3) > 0).all())


def test_norms_by_statistics_of_the_input(places: Places) -> None:
    x = some(places, "x", 2, 4, 6)
    weight, bias = some(places, "weight", 6), some(places, "bias", 6)
    assert equal(F.layer_norm(x, (6,), weight, bias), F.layer_norm(x, (6,)) * weight + bias)
    assert equal(F.rms_norm(x, (6,), weight, 1e-5), F.rms_norm(x, (6,), None, 1e-5) * weight)
    grouped = F.group_norm(x, 2, weight[:4], bias[:4])
    assert equal(grouped, F.group_norm(x, 2) * weight[:4, None] + bias[:4, None])
    assert not equal(F.layer_norm(x, (6,), eps=1e-5), F.layer_norm(x, (6,), eps=1e-6))
    assert equal(F.layer_norm(x + bias[0], (6,)), F.layer_norm(x, (6,)))  # the mean goes


def test_the_rows_of_a_softmax_sum_to_one(places: Places) -> None:
    x, shift = some(places, "x", 2, 5, 4), some(places, "shift", 4)
    for attention in (
        lambda values: torch.softmax(x @ x.mT, -1) @ values,
        lambda values: F.scaled_dot_product_attention(x, x, values),
        lambda values: F.scaled_dot_product_attention(x, x, values, is_causal=True, scale=0.5),
    ):
        assert equal(attention(x + shift), attention(x) + shift)
        assert not equal(attention(x + shift), attention(x))


def test_a_positive_factor_passes_a_relu(places: Places) -> None:
    x, factor = some(places, "x", 3, 4), places.draw("factor", torch.ones(4), signed=True)
    for function in (
        F.relu,
        lambda t: F.leaky_relu(t, 0.1),
        torch.abs,
        lambda t: F.prelu(t, factor),
    ):
        assert equal(function(x * factor), function(x) * factor)
        assert not equal(function(-x * factor), -function(x) * factor)
    assert not equal(F.gelu(x * factor), F.gelu(x) * factor)
    assert equal(F.gelu(x * factor), F.gelu(factor * x))


def test_numbers_that_are_compared_keep_their_signs(places: Places) -> None:
    like = torch.tensor([2.0, -3.0, 1.0, 0.0])
    x = places.draw("x", like, torch.tensor([False, False, True, True]))
    assert (x > 0).tolist() == [True, False, True, False]
    assert (x == 0).tolist() == [False, False, False, True]
    assert (x == 1).tolist() == [False, False, True, False]
    assert bool(x.any())
    assert not bool(x.all())
    assert places.looked == {frozenset({"x"})}
    with pytest.raises(UnmodelledError, match="depends on the numbers"):
        bool((x[:2].sum() * some(places, "y") > 0).any())


def test_what_is_written_to_a_view_bounds_the_whole(places: Places) -> None:
    x = some(places, "x", 2, 3)
    whole = x.new_zeros(4, 3)
    whole[1:3] += x * x
    assert whole.bound.top == 2
    assert equal(whole[1:3], x.square())
    assert equal(whole[0], torch.zeros_like(x[0]))
    with pytest.raises(UnmodelledError, match="written into a tensor of numbers"):
        torch.zeros(2, 3, dtype=torch.float64).copy_(x)


def test_degrees_bound_sums_over_denominators_of_their_own(places: Places) -> None:
    x, y = some(places, "x", 3), some(places, "y", 3)
    ratio = x / y
    assert (ratio.bound.top, ratio.bound.bottom) == (1, 1)
    total = ratio.sum()
    assert (total.bound.top, total.bound.bottom) == (3, 3)
    assert equal(total, (x * torch.reciprocal(y)).sum())


def test_zero_is_no_denominator(places: Places) -> None:
    zero = places.constant(torch.zeros(()))
    with pytest.raises(UnmodelledError, match="divides by zero"):
        1 / zero
    parts = (torch.zeros(1).double(), *(torch.ones(1).double() for _ in range(places.count - 1)))
    with pytest.raises(VanishedError):
        1 / Residue(places, parts, zero.bound)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: x.round(),
        lambda x: x.int(),
        lambda x: torch.topk(x, 1),
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(4, 4) > 0),
    ],
)
def test_what_has_no_counterpart_says_so(places: Places, function: Any) -> None:
    with pytest.raises(UnmodelledError):
        function(some(places, "x", 1, 2, 4, 4))


@settings(max_examples=20)
@given(st.integers(1, 50), st.integers(0, 10), st.integers(1, 8))
def test_more_places_are_safer(degree: int, bottom: int, count: int) -> None:
    places = Places(count, 0, RULES)
    assert Places(count + 1, 0, RULES).chance(degree, bottom) < places.chance(degree, bottom) <= 1
    assert places.chance(degree + 1, bottom) > places.chance(degree, bottom)
    assert places.chance(PRIME, 0) == 1.0


def test_unlike_functions_differ_and_numbers_are_no_matter() -> None:
    """Of 300 polynomials that are wrong in one coefficient, none passes at five places."""
    places = Places(5, 1, RULES)
    x = some(places, "x", 300)
    right = x.pow(3) - 2 * x
    wrong = x.pow(3) - (2 + torch.arange(1, 301).double() / 1000) * x
    assert not bool(right.same(wrong).any())
    assert bool(right.same(x * (x * x - 2)).all())
    assert not torch.equal(drawn(0, 3), drawn(1, 3))


def test_a_root_is_found_among_a_thousand(places: Places) -> None:
    """At a single place two of so many are equal, more often than not."""
    variance = places.draw_variance("variance", torch.ones(1500), 1e-5)
    root = torch.rsqrt(variance.flip(0)[::2] + 1e-5)
    assert root.bound.top == 1
    assert equal(root * root * (variance.flip(0)[::2] + 1e-5), torch.ones_like(root))
