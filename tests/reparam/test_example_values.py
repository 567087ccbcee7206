"""What calls return, before a model runs: values where they are known, types where names tell."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

import reparam
from reparam.arguments import depends_on_inputs
from reparam.example_values import ExampleValues
from tests.bad_inputs.outcomes import compiled, same
from tests.passes.alone import Net
from tests.strategies import drawn

X = drawn(0, 2, 4, 6)

Build = Callable[[fx.Graph, fx.Node], fx.Node]


class Counting(nn.Module):
    """Remembers its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        return x[0]


def hooked() -> nn.Module:
    layer = nn.Linear(6, 3)
    layer.register_forward_hook(lambda _, __, output: output[0])
    return layer


PARTS = nn.ModuleDict(
    {
        "linear": nn.Linear(6, 3).double(),
        "lstm": nn.LSTM(6, 3).double(),
        "counting": Counting(),
        "hooked": hooked(),
    }
)


def values(build: Build, *inputs: Tensor) -> tuple[ExampleValues, fx.Node]:
    """The values of a graph, and the node that was built behind its input "x"."""
    graph = fx.Graph()
    node = build(graph, graph.placeholder("x"))

    def attribute(path: str) -> Any:
        return PARTS.get_parameter(path) if "." in path else PARTS[path]

    return ExampleValues(attribute, dict(zip(["x"], inputs, strict=False))), node


def function(target: Any, *args: Any) -> Build:
    return lambda graph, x: graph.call_function(target, (x, *args))


def method(name: str, *args: Any) -> Build:
    return lambda graph, x: graph.call_method(name, (x, *args))


def module(name: str) -> Build:
    return lambda graph, x: graph.call_module(name, (x,))


def parameter(graph: fx.Graph, _: fx.Node) -> fx.Node:
    return graph.get_attr("linear.weight")


def item(build: Build, index: Any) -> Build:
    return lambda graph, x: graph.call_function(operator.getitem, (build(graph, x), index))


def of(target: Any, *builds: Build) -> Build:
    return lambda graph, x: graph.call_function(target, tuple(b(graph, x) for b in builds))


def function_of_size(target: Any, number: float) -> Build:
    return lambda graph, x: graph.call_function(target, (graph.call_method("size", (x, 1)), number))


SHAPE = function(getattr, "shape")
CALLS: dict[str, tuple[Build, type]] = {
    "input": (lambda graph, x: x, Tensor),
    "parameter": (parameter, Tensor),
    "function": (function(torch.relu), Tensor),
    "method": (method("relu"), Tensor),
    "module": (module("linear"), Tensor),
    "shape": (SHAPE, torch.Size),
    "size": (method("size"), torch.Size),
    "one size": (method("size", 1), int),
    "a size of the shape": (item(SHAPE, 1), int),
    "sizes of the shape": (item(SHAPE, slice(1, None)), torch.Size),
    "rank": (method("dim"), int),
    "rank as an attribute": (function(getattr, "ndim"), int),
    "dtype": (function(getattr, "dtype"), torch.dtype),
    "device": (function(getattr, "device"), torch.device),
    "trainable": (function(getattr, "requires_grad"), bool),
    "parts": (method("split", 1), tuple),
    "part": (item(method("split", 1), 0), Tensor),
    "some parts": (item(method("split", 1), slice(1)), tuple),
    "row": (item(method("relu"), 0), Tensor),
    "arithmetic of sizes": (of(operator.mul, method("dim"), method("dim")), int),
    "half a size": (function_of_size(operator.mul, 0.5), float),
    "quotient of sizes": (of(operator.truediv, method("dim"), method("dim")), float),
    "comparison of sizes": (function_of_size(operator.gt, 3), bool),
    "comparison of tensors": (of(operator.gt, method("relu"), method("relu")), Tensor),
}


@pytest.mark.parametrize("name", CALLS)
def test_kinds_with_and_without_an_example(name: str) -> None:
    build, expected = CALLS[name]
    for inputs in ((X,), ()):
        found, node = values(build, *inputs)
        kind = found.kind(node)
        assert kind is not None
        assert issubclass(kind, expected)
        assert kind is not bool or expected is bool
        assert found.kind(node) is kind, "it is remembered"


def mystery(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    "build",
    [
        module("lstm"),
        module("counting"),
        function(mystery),
        item(function(mystery), 0),
        lambda graph, x: graph.call_function(operator.add, (SHAPE(graph, x), (1,))),
    ],
)
def test_kinds_that_no_name_tells(build: Build) -> None:
    found, node = values(build)
    assert found.kind(node) is None


def test_arithmetic_of_nothing_has_no_kind() -> None:
    found, node = values(lambda graph, _: graph.call_function(mystery, ()))
    assert found.kind(node) is None


def test_values() -> None:
    found, node = values(of(operator.mul, method("dim"), item(SHAPE, 2)), X)
    assert found(node) == 18
    found, node = values(module("linear"), X)
    assert found(node).shape == (2, 4, 3)
    found, node = values(lambda graph, x: graph.call_method("sum", (x,), {"dim": 0}), X)
    assert found(node).shape == (4, 6)


def test_a_value_that_depends_on_no_input_is_known_without_any() -> None:
    found, node = values(lambda graph, _: graph.call_method("dim", (parameter(graph, _),)))
    assert found(node) == 2
    assert not depends_on_inputs(node)


def test_what_depends_on_inputs() -> None:
    def several(graph: fx.Graph, x: fx.Node) -> fx.Node:
        weight = parameter(graph, x)
        twice = graph.call_function(torch.mul, (weight, weight))
        return graph.call_function(torch.add, (twice, x))

    _, node = values(several, X)
    assert depends_on_inputs(node)
    assert not depends_on_inputs(node.all_input_nodes[0])


def test_the_default_of_an_argument() -> None:
    found, node = values(lambda graph, _: graph.placeholder("times", default_value=3), X)
    assert found(node) == 3


UNKNOWN: dict[str, tuple[Build, tuple[Tensor, ...], str]] = {
    "no example": (method("dim"), (), "it depends on a size, type or value; pass example_inputs"),
    "of tensors": (method("item"), (X.sum(),), "it depends on the values of a tensor"),
    "of shapes": (method("nonzero"), (X,), "it depends on the values of a tensor"),
    "of a user": (function(mystery), (X,), "it depends on the result of mystery"),
    "with hooks": (module("hooked"), (X,), "it depends on the result of a module with hooks"),
    "that fails": (
        method("view", 7),
        (X,),
        "it depends on a call that fails beforehand: shape '[7]' is invalid",
    ),
    "behind it": (item(function(mystery), 0), (X,), "it depends on the result of mystery"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_why_a_value_is_not_known(name: str) -> None:
    build, inputs, reason = UNKNOWN[name]
    found, node = values(build, *inputs)
    for _ in range(2):
        with pytest.raises(TraceError) as caught:
            found(node)
        assert str(caught.value).startswith(reason)


def test_modules_and_inputs_are_as_they_were() -> None:
    counting: Any = PARTS["counting"]
    x = X.clone()

    def build(graph: fx.Graph, given: fx.Node) -> fx.Node:
        first = graph.call_module("counting", (given,))
        return graph.call_method("add_", (first, 1))

    found, node = values(build, x)
    assert found(node).shape == (4, 6)
    assert (counting.calls, counting.seen) == (0, [])
    assert torch.equal(x, X)


def test_sizes_that_are_changed_in_place_are_not_followed() -> None:
    def forward(_: Any, x: Tensor) -> Tensor:
        y = x * 1
        before = y.shape[1]
        y.t_()
        return y * (2 if before == 3 and y.shape[1] == 2 else 3)

    x = drawn(0, 2, 3)
    model = Net(forward).eval()
    fused = compiled(model, x, passes=())
    (remark,) = reparam.report(fused).missed
    assert "it changes the sizes of a tensor in place" in remark.message
    same(model, fused, x)


def test_the_type_of_arithmetic_with_sizes_is_no_tensor() -> None:
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.relu() if isinstance(x.shape[1] // 2, int) else -x

    model = Net(forward).eval()
    fused = compiled(model, passes=())
    assert isinstance(fused, fx.GraphModule), reparam.report(fused)
    same(model, fused, X)
