"""The laws of the algebra: both sides applied to tensors of every size up to where nothing changes.

A map of receptive extent R and stride S is compared at all sizes from 1 to 2R + 2S, which shows
every border and every phase.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from reparam.algebra import (
    Grid,
    add,
    added_shape,
    affine,
    batch_norm_affine,
    border_bias,
    embed_kernel,
    equal_borders,
    exact,
    identity_like,
    numberless,
    scale_output,
    sum_grid,
    widen_groups,
)
from reparam.composition import compose, composed_groups, composed_kernel, composed_madds
from reparam.cost import conv_madds, summed_madds
from reparam.errors import Declined
from reparam.values import BatchNorm, Conv
from reparam.verify import EXACT, relative_difference
from tests.strategies import (
    PADDING_MODES,
    SEEDS,
    batch_norms,
    convs,
    drawn,
    pairs_in_series,
    pairs_of_branches,
)

Map = Callable[[Tensor], Tensor]


def extent(*maps: Conv) -> int:
    """R + S of maps in series, padding included, on their longest axis."""
    reach, stride = 1, 1
    for conv in maps:  # the innermost first
        padding = [sum(sides) for sides in conv.padding]
        axes = zip(conv.dilation, conv.kernel, padding, strict=True)
        reach += stride * max((d * (k - 1) + p for d, k, p in axes), default=0)
        stride *= max(conv.stride, default=1)
    return reach + stride


def assert_same(old: Map, new: Map, channels: int, n: int, largest: int) -> None:
    """Compare two maps at every size from 1 to `largest` on each axis."""
    evaluated = 0
    for size in range(1, largest + 1) if n else (1,):
        x = drawn(size, 2, channels, *(size, largest + 1 - size)[:n], *(size,) * (n - 2))
        try:
            expected = old(x)
        except RuntimeError:
            continue  # smaller than a kernel, or than what is reflected
        assert relative_difference(expected, new(x)) <= EXACT
        evaluated += 1
    assert evaluated, "no size at which the old side runs is no evidence"


@given(convs(modes=PADDING_MODES), st.floats(-2, 2))
def test_a_multiple_is_a_convolution(conv: Conv, factor: float) -> None:
    new = scale_output(factor, conv)
    assert_same(lambda x: conv(x) * factor, new, conv.in_channels, conv.n, 2 * extent(conv))


@given(convs(modes=PADDING_MODES), st.data())
def test_groups_can_be_widened(conv: Conv, data: st.DataObject) -> None:
    divisors = [g for g in range(1, conv.groups + 1) if conv.groups % g == 0]
    groups = data.draw(st.sampled_from(divisors))
    wide = widen_groups(conv, groups)
    assert wide.groups == groups
    assert_same(conv, wide, conv.in_channels, conv.n, 2 * extent(conv))


@given(convs(), st.data())
def test_a_kernel_can_be_set_into_a_wider_and_finer_grid(conv: Conv, data: st.DataObject) -> None:
    draw = data.draw
    steps = [draw(st.sampled_from([s for s in (1, 2) if d % s == 0])) for d in conv.dilation]
    more = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in conv.kernel]
    grid = Grid(
        before=tuple(
            low + s * a for (low, _), s, (a, _) in zip(conv.padding, steps, more, strict=True)
        ),
        taps=tuple(
            a + d // s * (k - 1) + 1 + b
            for d, s, k, (a, b) in zip(conv.dilation, steps, conv.kernel, more, strict=True)
        ),
        dilation=tuple(steps),
    )
    embedded = embed_kernel(conv, grid)
    assert embedded.kernel == grid.taps
    assert_same(conv, embedded, conv.in_channels, conv.n, 2 * extent(embedded))


@given(convs(), st.floats(-2, 2))
def test_a_multiple_of_the_input_is_a_convolution(conv: Conv, factor: float) -> None:
    identity = identity_like(conv, factor)
    assert identity.affine
    assert_same(lambda x: x * factor, identity, conv.in_channels, conv.n, 3)


@given(batch_norms())
def test_a_batch_norm_is_a_scale_and_a_shift(norm: BatchNorm) -> None:
    conv = batch_norm_affine(norm)
    assert conv.affine
    assert_same(norm, conv, norm.mean.numel(), conv.n, 3)


@given(convs())
def test_a_constant_beyond_the_border_is_a_bias_and_zeros(conv: Conv) -> None:
    assume(conv.border is not None)
    zeros = replace(conv, bias=border_bias(conv), border=None)
    spread = (-1, *(1,) * conv.n)

    def moved(x: Tensor) -> Tensor:
        assert conv.border is not None
        return zeros(x - conv.border.reshape(spread))

    assert_same(conv, moved, conv.in_channels, conv.n, 2 * extent(conv))


@given(pairs_of_branches())
def test_branches_add_up_to_a_convolution(pair: tuple[Conv, Conv]) -> None:
    a, b = pair
    total = add(a, b)
    largest = 2 * max(extent(a), extent(b))
    assert_same(lambda x: a(x) + b(x), total, a.in_channels, a.n, largest)
    assert_same(lambda x: b(x) + a(x), add(b, a), a.in_channels, a.n, largest)


@given(pairs_of_branches())
def test_a_sum_is_as_large_as_predicted(pair: tuple[Conv, Conv]) -> None:
    total, shape = add(*pair), added_shape(*pair)
    for name in ("stride", "padding", "dilation", "groups", "padding_mode", "border"):
        assert getattr(total, name) is getattr(shape, name) or (
            getattr(total, name) == getattr(shape, name)
        )
    assert total.weight.shape == shape.weight.shape
    assert conv_madds(total) == summed_madds(*pair)
    assert sum_grid(*pair).taps == total.kernel


@given(convs(), convs())
def test_a_sum_that_is_declined_is_not_predicted_either(a: Conv, b: Conv) -> None:
    reasons: list[str] = []
    for law in (add, added_shape, summed_madds, sum_grid):
        try:
            law(a, b)
        except Declined as declined:
            reasons.append(declined.reason)
    assert len(reasons) in (0, 4)
    assert len(set(reasons)) <= 1


def merged(outer: Conv, inner: Conv) -> Conv:
    """The composition; an example that declines, for one of the known reasons, is none."""
    reason = ""
    try:
        return compose(outer, inner)
    except Declined as declined:
        reason = declined.reason
    assert reason in {reason for *_, reason in NOT_COMPOSED}
    assume(False)
    raise AssertionError("assume(False) ends the example")


@given(pairs_in_series())
def test_convolutions_in_series_are_one(pair: tuple[Conv, Conv]) -> None:
    outer, inner = pair
    one = merged(outer, inner)
    largest = min(2 * extent(inner, outer), 60)
    assert_same(lambda x: outer(inner(x)), one, inner.in_channels, inner.n, largest)


@given(pairs_in_series())
def test_a_composition_is_as_large_as_predicted(pair: tuple[Conv, Conv]) -> None:
    one = merged(*pair)
    assert one.groups == composed_groups(*pair)
    assert one.kernel == composed_kernel(*pair)
    assert conv_madds(one) == composed_madds(*pair)


@st.composite
def norms_and_convs(draw: st.DrawFn) -> tuple[BatchNorm, Conv, Conv]:
    """A batch norm, a convolution that it can follow and one that can follow it."""
    norm = draw(batch_norms(axes=st.integers(0, 2)))
    width, axes = norm.mean.numel(), st.just(norm.n)
    before = draw(convs(axes=axes, out_channels=width, modes=PADDING_MODES))
    return norm, before, draw(convs(axes=axes, in_channels=width, modes=PADDING_MODES))


@given(norms_and_convs())
def test_a_batch_norm_composes_on_both_sides(layers: tuple[BatchNorm, Conv, Conv]) -> None:
    norm, before, after = layers
    scale, n = batch_norm_affine(norm), before.n
    folded = compose(scale, before)
    assert folded.kernel == before.kernel
    assert_same(lambda x: norm(before(x)), folded, before.in_channels, n, 2 * extent(before))
    folded = merged(after, scale)
    assert_same(lambda x: after(norm(x)), folded, after.in_channels, n, 2 * extent(after))


@given(convs(), SEEDS)
def test_laws_write_to_nothing(conv: Conv, seed: int) -> None:
    state = [tensor.clone() for tensor in conv.tensors()]
    scale = affine(drawn(seed, conv.out_channels), drawn(seed + 1, conv.out_channels), conv.n)
    compose(scale, conv)
    add(conv, conv)
    widen_groups(conv, 1)
    scale_output(2.0, conv)
    assert all(map(torch.equal, state, conv.tensors()))


def test_exact_widens_and_numberless_takes_no_memory() -> None:
    conv = Conv(
        torch.ones(4, 2, 3), torch.ones(4), padding=((1, 1),), groups=2, border=torch.ones(4)
    )
    assert {tensor.dtype for tensor in exact(conv).tensors()} == {torch.float64}
    empty = numberless(conv, (4, 4, 1000))
    assert empty.weight.shape == (4, 4, 1000)
    assert empty.weight.untyped_storage().nbytes() < 100
    assert (empty.bias is None) == (conv.bias is None)


def conv1d(
    *,
    out: int = 2,
    inner: int = 2,
    kernel: int = 3,
    pad: int = 0,
    bias: bool = False,
    seed: int = 0,
    **options: object,
) -> Conv:
    weight = drawn(seed, out, inner, kernel)
    return Conv(
        weight,
        drawn(seed + 1, out) if bias else None,
        padding=((pad, pad),),
        **options,  # type: ignore[arg-type]
    )


DEPTHWISE = conv1d(inner=1, kernel=1, groups=2, bias=True)
OF_ZERO = replace(DEPTHWISE, weight=DEPTHWISE.weight * torch.tensor([1.0, 0.0]).reshape(2, 1, 1))
CONSTANT = torch.ones(2, dtype=torch.float64)

NOT_ADDED = [
    (conv1d(), Conv(drawn(0, 2, 2)), "the branches differ in their number of spatial axes"),
    (conv1d(stride=(1,)), conv1d(stride=(2,)), "the branches differ in stride, (1,) and (2,)"),
    (conv1d(out=2), conv1d(out=3), "the branches differ in channels"),
    (
        conv1d(pad=1),
        conv1d(pad=1, padding_mode="reflect"),
        "the branches differ in padding mode",
    ),
    (
        conv1d(pad=1),
        conv1d(pad=1, border=CONSTANT),
        "the branches are padded with different constants",
    ),
    (conv1d(pad=1), conv1d(pad=0), "the branches differ in output size"),
    (conv1d(kernel=2, pad=1), conv1d(kernel=2, pad=0), "the branches differ in output size"),
    (
        conv1d(pad=1, padding_mode="reflect"),
        conv1d(kernel=5, pad=2, padding_mode="reflect"),
        "the branches are padded differently, in mode 'reflect'",
    ),
    (
        conv1d(pad=1, padding_mode="circular"),
        conv1d(kernel=5, pad=2, padding_mode="circular"),
        "the branches are padded differently, in mode 'circular'",
    ),
]


@pytest.mark.parametrize(("a", "b", "reason"), NOT_ADDED)
def test_branches_that_do_not_add_say_why(a: Conv, b: Conv, reason: str) -> None:
    for left, right in ((a, b), (b, a)):
        with pytest.raises(Declined) as caught:
            add(left, right)
        said = caught.value.reason
        assert said == reason or (left is b and "stride" in said and "stride" in reason)


REFLECT_OUTSIDE = "padding in mode 'reflect' commutes with a pointwise map alone"

NOT_COMPOSED = [
    (conv1d(), Conv(drawn(0, 2, 2)), "the two differ in their number of spatial axes"),
    (conv1d(pad=1, padding_mode="reflect"), conv1d(), REFLECT_OUTSIDE),
    (conv1d(pad=1, padding_mode="reflect"), conv1d(kernel=1, stride=(2,)), REFLECT_OUTSIDE),
    (
        conv1d(kernel=1, pad=-1),
        conv1d(pad=1, padding_mode="reflect"),
        "a crop of what is padded in mode 'reflect' is not merged",
    ),
    (conv1d(pad=1), conv1d(), "two padded kernels do not merge at the border"),
    (conv1d(pad=1), conv1d(kernel=1, pad=1), "two padded kernels do not merge at the border"),
    (
        Conv(drawn(0, 2, 2, 3, 1), padding=((1, 1), (0, 0))),
        Conv(drawn(0, 2, 2, 1, 3), padding=((0, 0), (1, 1)), padding_mode="reflect"),
        "the two are padded in different modes",
    ),
    (
        Conv(drawn(0, 2, 2, 3, 1), padding=((1, 1), (0, 0))),
        Conv(drawn(0, 2, 2, 1, 3), padding=((0, 0), (1, 1)), border=CONSTANT),
        "the two are padded with different constants",
    ),
    (
        conv1d(pad=1),
        conv1d(kernel=1, bias=True),
        "its bias meets the zero padding of the next kernel",
    ),
    (
        conv1d(pad=1),
        OF_ZERO,
        "its shift meets zero padding, and a scale of 0 can't be undone",
    ),
    *(
        (conv1d(), conv1d(), f"padding in mode {mode!r} commutes with a pointwise map alone")
        for mode in ("replicate", "circular")
    ),
]
"""What declines. (The last two stand for the reason alone: the mode is a part of it.)"""


@pytest.mark.parametrize(("outer", "inner", "reason"), NOT_COMPOSED[:-2])
def test_a_series_that_does_not_merge_says_why(outer: Conv, inner: Conv, reason: str) -> None:
    with pytest.raises(Declined) as caught:
        compose(outer, inner)
    assert caught.value.reason == reason


def test_a_batch_norm_over_unknown_axes_says_so() -> None:
    ones = torch.ones(2)
    with pytest.raises(Declined, match="whether its input has spatial axes is not known"):
        batch_norm_affine(BatchNorm(ones, ones, None, None, 1e-5, None))


def test_a_shift_before_zero_padding_becomes_the_constant_beyond_the_border() -> None:
    outer = conv1d(pad=1, seed=5)
    one = compose(outer, DEPTHWISE)
    assert one.border is not None
    assert_same(lambda x: outer(DEPTHWISE(x)), one, 2, 1, 10)


def test_a_constant_that_undoes_the_bias_lets_dense_maps_merge() -> None:
    inner = conv1d(kernel=1, bias=True)
    outer = conv1d(pad=1, border=inner.bias)
    one = compose(outer, inner)
    assert one.border is None
    assert_same(lambda x: outer(inner(x)), one, 2, 1, 10)


def test_separable_kernels_merge_only_without_a_bias_in_between() -> None:
    column = Conv(drawn(0, 2, 1, 3, 1), padding=((1, 1), (0, 0)), groups=2)
    row = Conv(drawn(1, 2, 1, 1, 3), padding=((0, 0), (1, 1)), groups=2)
    one = compose(column, row)
    assert one.kernel == (3, 3)
    assert_same(lambda x: column(row(x)), one, 2, 2, 10)
    with pytest.raises(Declined, match="its bias meets the zero padding of the next kernel"):
        compose(column, replace(row, bias=drawn(2, 2)))


def test_an_identity_beside_a_stride_is_declined() -> None:
    conv = conv1d(pad=1, stride=(2,))
    with pytest.raises(Declined, match="differ in stride"):
        add(conv, identity_like(conv, 1.0))


def test_borders_of_two_dtypes_are_compared_as_numbers() -> None:
    border = torch.tensor([0.5, -1.25])
    assert equal_borders(border, border.double())
    assert not equal_borders(border, border.double() + 1e-3)
    assert equal_borders(border.double() * (1 + 1e-14), border)
