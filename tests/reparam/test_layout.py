"""Channels followed through layouts are where they are in a numbered tensor that is moved."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from reparam.errors import Declined
from reparam.facts import TensorFacts
from reparam.graph import Call, ValueGraph
from reparam.layout import Track
from reparam.operators import AvgPool
from reparam.sizes import Size, SymbolTable
from reparam.values import Layout

DECLINED = {"channels are mixed with other axes", "its shape is not known well enough"}
Link = tuple[Layout | AvgPool, tuple[Any, ...]]


def permute(order: list[int]) -> Link:
    axes = tuple(axis - len(order) for axis in order)
    return Layout(torch.permute, kind="permute", axes=axes), (tuple(order),)


def select(rank: int, axis: int, index: int) -> Link:
    return Layout(torch.select, kind="select", index=(axis - rank, index)), (axis, index)


def narrow(rank: int, axis: int, start: int, length: int) -> Link:
    value = Layout(torch.narrow, kind="slice", index=(axis - rank, start), length=length)
    return value, (axis, start, length)


def reshape(sizes: tuple[int, ...]) -> Link:
    return Layout(torch.reshape, kind="reshape"), (sizes,)


def mean(axis: int, *, keep: bool) -> Link:
    value = Layout(torch.mean, kind="mean" if keep else "mean out", axes=(axis,))
    return value, ((axis,), keep)


@st.composite
def links(draw: st.DrawFn, shape: tuple[int, ...]) -> Link:
    """A layout that a tensor of this shape can take."""
    rank = len(shape)
    axis = draw(st.integers(0, rank - 1))
    match draw(st.sampled_from(("permute", "select", "slice", "split", "join"))):
        case "permute":
            return permute(draw(st.permutations(range(rank))))
        case "select" if rank > 1:
            return select(rank, axis, draw(st.integers(0, shape[axis] - 1)))
        case "slice":
            start = draw(st.integers(0, shape[axis] - 1))
            return narrow(rank, axis, start, draw(st.integers(1, shape[axis] - start)))
        case "split":
            parts = [d for d in range(1, shape[axis] + 1) if shape[axis] % d == 0]
            first = draw(st.sampled_from(parts))
            return reshape((*shape[:axis], first, shape[axis] // first, *shape[axis + 1 :]))
        case _:
            last = draw(st.integers(axis, rank - 1))
            joined = int(torch.tensor(shape[axis : last + 1]).prod())
            return reshape((*shape[:axis], joined, *shape[last + 1 :]))


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], int, list[Link]]:
    """The shape of a tensor, its channel axis, and layouts in a row."""
    shape = tuple(draw(st.lists(st.sampled_from((1, 2, 3, 4, 6)), min_size=1, max_size=4)))
    channel = draw(st.integers(0, len(shape) - 1))
    x, chain = torch.empty(shape), []
    for _ in range(draw(st.integers(1, 5))):
        value, further = draw(links(tuple(x.shape)))
        chain.append((value, further))
        x = value(x, *further)
    return shape, channel, chain


def numbered(shape: tuple[int, ...], channel: int) -> Tensor:
    """A tensor that holds at each place the number of its channel."""
    numbers = torch.arange(shape[channel]).reshape(-1, *(1,) * (len(shape) - channel - 1))
    return numbers.expand(shape)


def followed(shape: tuple[int, ...], channel: int, chain: list[Link]) -> Track:
    values = ValueGraph(SymbolTable())
    node = values.graph.placeholder("x")
    node.meta["facts"] = TensorFacts(tuple(map(Size, shape)), True, torch.float32)
    call = Call(node)
    assert call.shape is not None
    track = Track.start(call.shape, len(shape) - channel - 1)
    for value, further in chain:
        call = values.apply(value, (call.node, *further), {}, "link")
        track = track.through(call)
    return track


def followed_or_not(
    shape: tuple[int, ...], channel: int, chain: list[Link]
) -> tuple[Tensor | None, str]:
    try:
        return followed(shape, channel, chain).channels(), ""
    except Declined as declined:
        return None, declined.reason


@given(chains())
def test_channels_are_where_a_numbered_tensor_has_them(
    drawn: tuple[tuple[int, ...], int, list[Link]],
) -> None:
    shape, channel, chain = drawn
    found, reason = followed_or_not(shape, channel, chain)
    assert (found is None) == (reason in DECLINED)
    assume(found is not None)
    assert found is not None
    x = numbered(shape, channel)
    for value, further in chain:
        x = value(x, *further)
    assert torch.equal(found.expand_as(x) if shape[channel] > 1 else found * 0 + x * 0, x)


def test_heads_of_attention_are_followed() -> None:
    """qkv: (N, L, 3C) to (N, L, 3, heads, C / heads), permuted, and one of the three selected."""
    chain = [reshape((2, 5, 3, 2, 4)), permute([2, 0, 3, 1, 4]), select(5, 0, 1)]
    channels = followed((2, 5, 24), 2, chain).channels()
    assert channels.flatten().tolist() == list(range(8, 16))
    assert channels.shape == (1, 2, 1, 4)


WITH_AXES = "channels are mixed with other axes"
WITH_EACH_OTHER = "channels are mixed with each other"
MIXED: list[tuple[str, tuple[int, ...], int, list[Link]]] = [
    (WITH_AXES, (2, 4, 5), 1, [reshape((2, 20))]),
    (
        WITH_AXES,
        (2, 4, 5),
        1,
        [permute([0, 2, 1]), reshape((2, 5, 2, 2)), reshape((2, 10, 2))],
    ),
    (WITH_AXES, (2, 4, 5), 1, [reshape((2, 10, 2))]),
    (WITH_AXES, (2, 4, 5), 1, [reshape((2, 20)), select(2, 1, 3)]),
    (WITH_AXES, (2, 4, 5), 1, [reshape((2, 20)), narrow(2, 1, 5, 5)]),
    (WITH_EACH_OTHER, (2, 4, 5), 1, [mean(-2, keep=True)]),
    (WITH_EACH_OTHER, (2, 4, 5), 1, [mean(-2, keep=False)]),
    (WITH_EACH_OTHER, (2, 4, 5), 1, [reshape((2, 20)), mean(-1, keep=True)]),
    (WITH_EACH_OTHER, (2, 5, 4), 2, [(Layout(F.adaptive_avg_pool1d, kind="pool"), (3,))]),
    (WITH_EACH_OTHER, (2, 5, 4), 2, [(AvgPool((2,), (2,), (0,)), ())]),
]


@pytest.mark.parametrize(("reason", "shape", "channel", "chain"), MIXED)
def test_channels_that_are_mixed_are_declined(
    reason: str, shape: tuple[int, ...], channel: int, chain: list[Link]
) -> None:
    assert followed_or_not(shape, channel, chain) == (None, reason)


@pytest.mark.parametrize(
    ("shape", "channel", "link"),
    [
        ((2, 4, 6), 1, mean(-1, keep=True)),
        ((2, 4, 6), 1, mean(-1, keep=False)),
        ((2, 4, 6), 1, (Layout(F.adaptive_avg_pool1d, kind="pool"), (3,))),
        ((2, 4, 6), 1, (AvgPool((2,), (3,), (0,)), ())),
    ],
)
def test_averages_over_pixels_keep_channels_where_they_are(
    shape: tuple[int, ...], channel: int, link: Link
) -> None:
    value, further = link
    x = numbered(shape, channel).double()
    found = followed(shape, channel, [link]).channels()
    assert torch.equal(found.expand(value(x, *further).shape), value(x, *further).long())


@pytest.mark.parametrize(
    "layout", [Layout(torch.reshape, kind="reshape"), Layout(F.interpolate, kind="pool")]
)
def test_result_of_unknown_shape_is_declined(layout: Layout) -> None:
    """Its size is computed by what nothing is known of."""
    values = ValueGraph(SymbolTable())
    x, size = (values.graph.placeholder(name) for name in ("x", "size"))
    x.meta["facts"] = facts = TensorFacts((Size(2), Size(4), Size(6)), True, torch.float32)
    call = values.apply(layout, (x, size), {}, "link")
    with pytest.raises(Declined) as caught:
        Track.start(facts, 1).through(call)
    assert caught.value.reason == "its shape is not known"
    assert caught.value.blocker == "link"


def test_reshape_that_leaves_the_channels_over_is_declined() -> None:
    """(N, 4) to (N,), which only an empty batch can take."""
    table = SymbolTable()
    values, facts = ValueGraph(table), TensorFacts((table.fresh(), Size(4)), True, torch.float32)
    x, size = (values.graph.placeholder(name) for name in ("x", "size"))
    x.meta["facts"], size.meta["facts"] = facts, facts.axes[0]
    call = values.apply(Layout(torch.reshape, kind="reshape"), (x, (size,)), {}, "link")
    with pytest.raises(Declined) as caught:
        Track.start(facts, 0).through(call)
    assert caught.value.reason == "its shape is not known well enough"


def test_what_is_not_known_is_declined() -> None:
    table = SymbolTable()
    with pytest.raises(Declined, match="the number of channels is not known"):
        Track.start(TensorFacts((Size(1), table.fresh(), Size(3)), True), 1)
    with pytest.raises(Declined, match="the number of axes of its input is not known"):
        Track.start(TensorFacts((Size(4), Size(3)), False), 1)
