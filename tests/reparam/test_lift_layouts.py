"""What selections, slices and permutations are lifted to, and that they compute the same."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.values import Layout, Opaque, Value
from tests.lifted import SHAPES, Forward, Net, layout, lifted, same
from tests.strategies import drawn


def piece(kind: str, axis: int, start: int, length: int = 1) -> Layout:
    return layout(kind, index=(axis, start), length=length)


# fmt: off
CALLS: list[tuple[int, Forward, Value]] = [
    (2, lambda m, x: x.select(1, 3), piece("select", -3, 3)),
    (2, lambda m, x: torch.select(x, dim=-1, index=2), piece("select", -1, 2)),
    (2, lambda m, x: x[1], piece("select", -4, 1)),
    (0, lambda m, x: x.unbind(1)[4], piece("select", -2, 4)),
    (0, lambda m, x: torch.unbind(x, dim=-1)[0], piece("select", -1, 0)),
    (2, lambda m, x: x.transpose(1, 3), layout("permute", -1, -2, -3)),
    (2, lambda m, x: torch.transpose(x, dim0=-1, dim1=-2), layout("permute", -1, -2)),
    (0, lambda m, x: x.swapaxes(0, -1), layout("permute", -1, -2, -3)),
    (2, lambda m, x: x.permute(0, 2, 3, 1), layout("permute", -4, -2, -1, -3)),
    (2, lambda m, x: x.permute([0, -2, -1, 1]), layout("permute", -4, -2, -1, -3)),
    (0, lambda m, x: torch.permute(x, (-1, 0, 1)), layout("permute", -1, -3, -2)),
]
# fmt: on


@pytest.mark.parametrize(("n", "forward", "expected"), CALLS)
def test_functions_and_methods(n: int, forward: Forward, expected: Value) -> None:
    *_, call = lifted(Net(forward), drawn(0, *SHAPES[n]))
    assert same(call.value, expected)


@given(st.permutations(range(4)), st.lists(st.booleans(), min_size=4, max_size=4), st.booleans())
def test_a_permutation_by_any_names_of_its_axes(
    order: list[int], negative: list[bool], one: bool
) -> None:
    """Counted from either end, as one argument or as several."""
    axes = [axis - 4 if away else axis for axis, away in zip(order, negative, strict=True)]

    def forward(m: Any, x: Tensor) -> Tensor:
        return x.permute(tuple(axes)) if one else x.permute(*axes)

    (call,) = lifted(Net(forward), drawn(0, *SHAPES[2]))
    assert same(call.value, layout("permute", *(axis - 4 for axis in order)))


@given(st.integers(-4, 3), st.integers(-4, 3))
def test_a_transposition_is_a_permutation(first: int, second: int) -> None:
    *_, call = lifted(Net(lambda m, x: x.transpose(first, second)), drawn(0, *SHAPES[2]))
    assert isinstance(call.value, Layout)
    assert call.value.kind == "permute"
    whole = (*range(-4, -len(call.value.axes)), *call.value.axes)
    assert torch.equal(
        drawn(0, *SHAPES[2]).permute(whole), drawn(0, *SHAPES[2]).transpose(first, second)
    )


@given(st.integers(1, 9), st.integers(1, 6), st.data())
def test_pieces_are_those_that_torch_makes(size: int, pieces: int, data: st.DataObject) -> None:
    """Of channels, whose number a convolution tells; in torch's order, or from the last one."""
    split = data.draw(st.booleans())
    lengths = [
        part.numel() for part in getattr(torch.ones(size), "split" if split else "chunk")(pieces)
    ]
    index = data.draw(st.integers(-len(lengths), len(lengths) - 1))
    axis = data.draw(st.sampled_from((1, -3)))
    forms: list[Forward] = [
        lambda m, x: m.layer(x).chunk(pieces, axis)[index],
        lambda m, x: torch.chunk(m.layer(x), chunks=pieces, dim=axis)[index],
    ]
    if split:
        forms = [
            lambda m, x: m.layer(x).split(pieces, axis)[index],
            lambda m, x: torch.split(m.layer(x), lengths, dim=axis)[index],
            lambda m, x: torch.split(m.layer(x), split_size_or_sections=pieces, dim=axis)[index],
        ]
    expected = piece("slice", -3, sum(lengths[: index % len(lengths)]), lengths[index])
    model = Net(data.draw(st.sampled_from(forms)), nn.Conv2d(4, size, 1))
    *_, call = lifted(model, drawn(0, 2, 4, 3, 2))
    assert same(call.value, expected)
    assert call.shape is not None
    assert call.shape.channels(2) == lengths[index]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x.select(1, -1),
        lambda m, x: x.unbind(1)[-1],
        lambda m, x: x.chunk(2, 3)[1],
        lambda m, x: x.split((2, 2), 1)[0],
        lambda m, x: x.permute(dims=(0, 2, 3, 1)),
        lambda m, x: m.layer(x)[:, x.shape[0]],
        lambda m, x: m.layer(x).select(1, x.shape[0]),
        lambda m, x: torch.stack(m.layer(x).chunk(2, 1)),
    ],
)
def test_what_depends_on_a_size_that_is_not_known_stays_opaque(forward: Forward) -> None:
    calls = lifted(Net(forward, nn.Conv2d(4, 4, 1)), drawn(0, *SHAPES[2]))
    assert not any(isinstance(call.value, Layout) for call in calls)
    assert any(type(call.value) is Opaque for call in calls)


def test_without_an_example_axes_are_counted_from_the_end() -> None:
    """A convolution takes images with and without a batch, so the first axes are not known."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer(x).transpose(-1, -2)
        return y.transpose(1, -1) + y.transpose(1, 3) + y.mT.select(1, 0).sum()

    calls = lifted(Net(forward, nn.Conv2d(4, 6, 1)), drawn(0, *SHAPES[2]), known=False)
    axes = [call.value.axes for call in calls if isinstance(call.value, Layout)]
    assert axes == [(-1, -2)]


def test_a_boolean_is_no_position() -> None:
    calls = lifted(Net(lambda m, x: x[True]), drawn(0, *SHAPES[2]))
    assert [type(call.value) for call in calls] == [Opaque]
