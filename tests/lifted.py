"""What tests ask of a lifted model: which values it became, and that they compute the same."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.capture import capture
from reparam.facts import TensorFacts
from reparam.graph import Call
from reparam.lift import lift_graph
from reparam.sizes import Assignment, Size, Symbol
from reparam.values import Layout, Value
from reparam.verify import EXACT, relative_difference
from tests.strategies import drawn

Forward = Callable[[Any, Any], Tensor]

SCALE, SHIFT, WIDE = drawn(1, 4), drawn(2, 4), drawn(3, 6)
UP = {n: drawn(n, 4, 3, *(2, 3, 2)[:n]) for n in (1, 2, 3)}
SHAPES = {0: (2, 5, 4), 1: (2, 4, 6), 2: (2, 4, 6, 5), 3: (2, 4, 6, 5, 4)}
"""Of the input by its spatial axes; with none it is tokens."""


class Net(nn.Module):
    """Any forward, with weights at hand."""

    def __init__(self, forward: Forward, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.body = forward
        self.layer = nn.Identity() if layer is None else layer
        tensors = {"scale": SCALE, "shift": SHIFT, "wide": WIDE, "ones": torch.ones(4)}
        for name, tensor in {**tensors, **{f"up{n}": up for n, up in UP.items()}}.items():
            self.register_parameter(name, nn.Parameter(tensor.clone()))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Interpreter(fx.Interpreter):
    """Runs a graph of values, and holds all that is known of each tensor against the tensor."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(nn.Module(), graph))
        self.numbers: dict[Symbol, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result, facts = super().run_node(n), n.meta.get("facts")
        if isinstance(facts, TensorFacts):
            assert result.ndim == len(facts.axes) or not facts.exact
            assert facts.dtype in (None, result.dtype)
            for size, number in zip(reversed(facts.axes), reversed(result.shape), strict=False):
                self.check(size, number)
        return result

    def check(self, size: Size, number: int) -> None:
        """A symbol that is met for the first time stands for what it is met as."""
        free = [s for s in size.symbols if s not in self.numbers and s.window is None]
        if len(size.symbols) == 1 == len(free):
            self.numbers[free[0]] = number // size.factor
        assert Assignment((0,), self.numbers)(size) == number


def lifted(model: nn.Module, x: Tensor, known: bool = True) -> list[Call]:
    """The calls that a model is lifted to; they compute what it computes.

    `known` is whether the input is given as an example.
    """
    model = model.double().eval()
    values = lift_graph(capture(model, x), x if known else None)
    with torch.no_grad():
        expected, y = model(x.clone()), Interpreter(values.graph).run(x.clone())
    assert relative_difference(expected, y) <= EXACT
    return [call for call in values.calls() if call.node.op == "call_function"]


def same(value: Value, expected: Value) -> bool:
    """Whether two values are of one kind, with the same numbers in all their attributes."""
    if type(value) is not type(expected):
        return False
    names = {field.name for field in fields(value)} - {"target", "path", "reason"}
    pairs = [(getattr(value, name), getattr(expected, name)) for name in names]
    return all(
        torch.equal(a.double(), b.double()) if isinstance(b, Tensor) else a == b for a, b in pairs
    )


def layout(kind: str, *axes: int, index: tuple[int, int] = (0, 0), length: int = 1) -> Layout:
    """A layout, for comparison: of any target."""
    return Layout(kind, pure=True, kind=kind, axes=axes, index=index, length=length)
