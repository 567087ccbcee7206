"""A linear call, expanded into what it computes: its terms as terms of what it reads."""

import pytest
import torch

from reparam.errors import Declined
from reparam.expansion import expanded_terms
from reparam.facts import TensorFacts
from reparam.graph import Call, ValueGraph
from reparam.operators import Cat
from reparam.sizes import Size, SymbolTable
from reparam.terms import Term
from reparam.values import Conv, Sum, Value
from reparam.verify import EXACT, relative_difference
from tests.strategies import drawn

IDENTITY = Term(Sum((1.0,)))
Shape = tuple[int, ...] | None


def applied(value: Value, *shapes: Shape) -> Call:
    """A value applied to tensors of these shapes; None for one that nothing is known of."""
    values = ValueGraph(SymbolTable())
    nodes = [values.graph.placeholder("x") for _ in shapes]
    for node, shape in zip(nodes, shapes, strict=True):
        if shape is not None:
            node.meta["facts"] = TensorFacts(tuple(map(Size, shape)), True, torch.float64)
    return values.apply(value, tuple(nodes), {}, "call")


def read_by(weight: tuple[int, ...]) -> Term:
    """A convolution without padding, with a bias."""
    return Term(Conv(drawn(0, *weight), drawn(1, weight[0])))


def test_a_convolution_of_a_concatenation_is_a_sum() -> None:
    shapes = ((2, 1, 5), (2, 4, 5), (2, 3, 5))
    (outer,) = terms = (read_by((6, 8, 3)),)
    parts = expanded_terms(applied(Cat(1), *shapes), terms, None)
    tensors = [drawn(seed, *shape) for seed, shape in enumerate(shapes)]
    total = sum(term.map(x) for (_, term), x in zip(parts, tensors, strict=True))
    assert isinstance(total, torch.Tensor)
    assert relative_difference(outer.map(torch.cat(tensors, 1)), total) <= EXACT


IMAGE = (2, 4, 5, 5)
NOT_EXPANDED: list[tuple[Value, tuple[Shape, ...], Term, str]] = [
    (Cat(2), (IMAGE, IMAGE), IDENTITY, "no convolution reads it alone"),
    (Cat(2), (IMAGE, IMAGE), read_by((3, 5)), "no convolution reads it alone"),
    (
        Cat(2),
        (IMAGE, None),
        read_by((3, 8, 1, 1)),
        "the channels of what is joined are not known",
    ),
    (Cat(2), (IMAGE, IMAGE), read_by((3, 4, 1, 1)), "it is joined along another axis"),
    *(
        (
            Sum((1.0, 1.0)),
            shapes,
            IDENTITY,
            "the operands of the sum are not known to have one shape",
        )
        for shapes in ((IMAGE, (2, 4, 1, 1)), (IMAGE, IMAGE[1:]), (IMAGE, None), (None, None))
    ),
]


@pytest.mark.parametrize(("value", "shapes", "term", "reason"), NOT_EXPANDED)
def test_what_is_not_expanded_says_why(
    value: Value, shapes: tuple[Shape, ...], term: Term, reason: str
) -> None:
    call = applied(value, *shapes)
    with pytest.raises(Declined) as caught:
        expanded_terms(call, (term,), None)
    assert caught.value.reason == reason


def test_a_composition_may_cost_what_its_parts_do_or_what_the_region_can_pay() -> None:
    """Of a layer of low rank, four by one by four."""
    call = applied(Conv(drawn(0, 1, 4)), (2, 4))
    terms = (read_by((4, 1)),)
    for pays in (None, lambda madds: madds <= 15):
        with pytest.raises(Declined) as caught:
            expanded_terms(call, terms, pays)
        dearer = "merged, it takes more multiply-adds per pixel: 16 instead of 8"
        assert caught.value.reason == dearer
    ((source, term),) = expanded_terms(call, terms, lambda madds: madds <= 16)
    assert source == call.inputs[0]
    assert isinstance(term.map, Conv)
    x = drawn(2, 2, 4)
    assert relative_difference(terms[0].map(call.value(x)), term.map(x)) <= EXACT
