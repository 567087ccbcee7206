"""What depends on parameters, buffers and literals alone is computed once, and exactly."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.capture import Capture, capture
from reparam.constants import Constants
from reparam.verify import ROUNDING, relative_difference
from tests.strategies import SEEDS, drawn


class Weights(nn.Module):
    """A product of the input with whatever is computed from parameters."""

    def __init__(self, weight: Callable[[Any, Tensor], Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight
        self.a, self.b = (nn.Parameter(drawn(n, 3, 3).to(dtype)) for n in (1, 2))
        self.c = nn.Parameter(drawn(3, 3, 3).float())
        self.register_buffer("index", torch.tensor([2, 0, 1]))
        self.register_buffer("count", torch.ones(3, 3).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight(self, x))


def constants(
    weight: Callable[[Any, Tensor], Any], dtype: torch.dtype = torch.float32
) -> tuple[Constants, Any, Capture]:
    """The constants of a model, the node of the weight that it multiplies with, and the trace."""
    captured = capture(Weights(weight, dtype).eval())
    product = next(node for node in captured.graph.nodes if node.target is torch.matmul)
    return Constants(captured, set()), product.args[1], captured


COMPUTED: dict[str, Callable[[Any], Any]] = {
    "a parameter": lambda m: m.a,
    "arithmetic": lambda m: (m.a - m.b.mean(1, keepdim=True)) / (m.b.std() + 1e-3),
    "a method": lambda m: m.a.transpose(0, 1).reshape(3, -1),
    "a low-rank product": lambda m: m.a + 0.5 * (m.b[:, :1] @ m.a[:1]),
    "several results": lambda m: torch.cat(m.a.split([1, 2], 1)[::-1], 1),
    "a list": lambda m: torch.stack([m.a[0], m.b[1], m.a[2]]),
    "sizes": lambda m: m.a.new_ones(m.a.shape[0], m.b.size(1)) * m.a,
    "a table": lambda m: m.a[m.index],
    "keywords": lambda m: torch.softmax(m.a, dim=m.a.ndim - 1),
}


@pytest.mark.parametrize("weight", COMPUTED.values(), ids=COMPUTED.keys())
def test_what_parameters_make_is_known(weight: Callable[[Any], Any]) -> None:
    """In float64, from the first parameter on; the parameters stay what they are."""
    found, node, captured = constants(lambda m, x: weight(m))
    expected = weight(copy.deepcopy(captured.root).double())
    assert node in found
    assert relative_difference(expected, found.content(node).double()) <= ROUNDING
    assert not found.content(node).requires_grad or node.op == "get_attr"


@given(SEEDS, st.sampled_from((torch.float32, torch.bfloat16)))
def test_nothing_is_rounded_on_the_way(seed: int, dtype: torch.dtype) -> None:
    """a + (b - a) is b: not in the dtype of the model, where b is far smaller than a."""
    found, node, captured = constants(lambda m, x: m.a * 3000 + (m.b - m.a * 3000), dtype)
    model: Any = captured.root
    with torch.no_grad():
        model.a.copy_(drawn(seed, 3, 3) + 3)
    again = Constants(captured, set())
    expected = model.b.double()
    rounded = (model.a * 3000 + (model.b - model.a * 3000)).double()
    assert (again.content(node) - expected).abs().max() < 1e-10
    assert (rounded - expected).abs().max() > 1e-6
    assert found.dtype(node) == dtype


NOT_CONSTANT: dict[str, Callable[[Any, Any], Any]] = {
    "of the input": lambda m, x: m.a * x.mean(),
    "of the input's sizes": lambda m, x: m.a * x.shape[0],
    "random": lambda m, x: torch.dropout(m.a, 0.5, True),
    "random, of a shape": lambda m, x: torch.rand_like(m.a),
    "written in place": lambda m, x: m.count.mul_(2),
    "written to what it computed": lambda m, x: (m.a * 1).relu_(),
    "of what is none": lambda m, x: torch.dropout(m.a, 0.5, True) + m.b,
    "not possible": lambda m, x: m.a.view(7, -1),
}


@pytest.mark.parametrize("weight", NOT_CONSTANT.values(), ids=NOT_CONSTANT.keys())
def test_what_else_it_depends_on_makes_it_no_constant(weight: Callable[[Any, Any], Any]) -> None:
    found, node, captured = constants(weight)
    assert node not in found
    assert found.content(node) is None
    assert found.dtype(node) is None
    assert found.operations(node, ()) >= 0
    assert torch.equal(captured.root.get_buffer("count"), torch.ones(3, 3))
    for other in captured.graph.nodes:
        assert (other in found) == (other.op == "get_attr" or found.content(other) is not None)


def test_a_literal_is_no_node() -> None:
    found, _, _ = constants(lambda m, x: m.a)
    assert [found.content(argument) for argument in (2.0, "a", None)] == [None] * 3
    assert found.dtype(2.0) is None


def test_what_is_barred_is_not_computed_nor_what_needs_it() -> None:
    _, node, captured = constants(lambda m, x: (m.a + m.b) * m.c)
    total, bias = node.args[0], node.args[1]
    found = Constants(captured, {total})
    assert [n in found for n in (node, total, bias, *total.args)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert node not in Constants(captured, {bias})


DTYPES: dict[str, tuple[Callable[[Any], Any], torch.dtype]] = {
    "promoted": (lambda m: m.a * m.c, torch.float32),
    "promoted in two steps": (lambda m: (m.a + m.b) * m.c, torch.float32),
    "kept by a number": (lambda m: m.a * 2.0, torch.bfloat16),
    "cast": (lambda m: m.c.half(), torch.float16),
    "cast on the way": (lambda m: m.c.bfloat16() * m.a, torch.bfloat16),
    "of a parameter": (lambda m: m.c, torch.float32),
    "one of several": (lambda m: m.a.split([1, 2], 1)[0] * m.b, torch.bfloat16),
    "made anew": (lambda m: m.a.new_zeros(3, 3) + 1, torch.bfloat16),
}


@pytest.mark.parametrize(("weight", "dtype"), DTYPES.values(), ids=DTYPES)
def test_the_dtype_is_that_in_the_model(weight: Callable[[Any], Any], dtype: torch.dtype) -> None:
    found, node, captured = constants(lambda m, x: weight(m), torch.bfloat16)
    assert found.dtype(node) == dtype == weight(captured.root).dtype


def test_integers_are_not_widened() -> None:
    found, node, _ = constants(lambda m, x: m.index * 2)
    assert found.content(node).dtype == found.dtype(node) == torch.int64


def test_operations_are_counted_once_each() -> None:
    """Parameters cost nothing, nor what the call is applied to."""

    def weight(m: Any, x: Tensor) -> Tensor:
        root = torch.sqrt(m.b + 0.1)
        return (m.a / root).relu() - root.mean()

    found, node, captured = constants(weight)
    product = node.next
    assert product.target is torch.matmul
    x = product.all_input_nodes[0]
    assert found.operations(product, (x,)) == 6  # +, sqrt, /, relu, mean, -
    assert found.operations(product, (x, node)) == 0
    assert found.operations(node, ()) == 5
    parameter = next(n for n in captured.graph.nodes if n.op == "get_attr")
    assert found.operations(parameter, ()) == 0
