"""Plain torch.fx passes among our own: run in their place, checked as a whole, rolled back."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import passes
import reparam
from reparam.verify import EXACT, relative_difference
from tests.fused import operators
from tests.randomised import randomised
from tests.strategies import drawn


def network() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()
    )
    return randomised(model.double(), images())


def images() -> Tensor:
    return drawn(1, 3, 4, 6, 5)


def assert_unchanged(model: nn.Module, fused: nn.Module) -> None:
    with torch.no_grad():
        assert relative_difference(model(images()), fused(images())) <= EXACT


def relu_to_clamp(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A right one."""
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and isinstance(
            graph_module.get_submodule(node.target), nn.ReLU
        ):
            with graph_module.graph.inserting_before(node):
                new = graph_module.graph.call_function(torch.clamp, node.args, {"min": 0.0})
            node.replace_all_uses_with(new)
            graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return graph_module


def lowers_epsilon(graph_module: fx.GraphModule) -> fx.GraphModule:
    for module in graph_module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return graph_module


def forgets_a_bias(graph_module: fx.GraphModule) -> fx.GraphModule:
    for module in graph_module.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = None
    return graph_module


def returns_two(graph_module: fx.GraphModule) -> fx.GraphModule:
    graph = graph_module.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = ((output.args[0], output.args[0]),)
    return graph_module


def raises(graph_module: fx.GraphModule) -> fx.GraphModule:
    for module in graph_module.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.zero_()  # half done
    raise KeyError("no such node")


def returns_nothing(graph_module: fx.GraphModule) -> Any:
    return None


def returns_a_module(graph_module: fx.GraphModule) -> Any:
    return nn.Identity()


def breaks_the_graph(graph_module: fx.GraphModule) -> fx.GraphModule:
    first, second = [n for n in graph_module.graph.nodes if n.op == "call_module"][:2]
    first.args = (second,)
    return graph_module


def calls_what_is_not_there(graph_module: fx.GraphModule) -> fx.GraphModule:
    node = next(n for n in graph_module.graph.nodes if n.op == "call_module")
    node.target = "absent"
    return graph_module


def exits(graph_module: fx.GraphModule) -> fx.GraphModule:
    raise SystemExit(0)


def renames_the_input(graph_module: fx.GraphModule) -> fx.GraphModule:
    (node,) = graph_module.graph.find_nodes(op="placeholder")
    node.target = "images"
    return graph_module


def gives_a_default(graph_module: fx.GraphModule) -> fx.GraphModule:
    (node,) = graph_module.graph.find_nodes(op="placeholder")
    node.args = (None,)
    return graph_module


def test_a_right_one_is_applied_between_ours() -> None:
    model = network()
    fused = reparam.compile(model, passes=(*passes.DEFAULT, relu_to_clamp, *passes.DEFAULT))
    assert_unchanged(model, fused)
    assert operators(fused) == {"Conv2d": 2, "clamp": 2}
    (applied,) = (r for r in reparam.report(fused).applied if r.rule == "relu_to_clamp")
    assert applied.error is not None
    assert applied.error <= EXACT


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lowers_epsilon, "rolled back: its result differs by"),
        (forgets_a_bias, "rolled back: its result differs by"),
        (returns_two, "rolled back: its outputs have another structure"),
        (raises, "rolled back: the pass failed with KeyError: 'no such node'"),
        (returns_nothing, "rolled back: it returned NoneType, not a GraphModule"),
        (returns_a_module, "rolled back: it returned Identity, not a GraphModule"),
        (breaks_the_graph, "rolled back: the pass failed with RuntimeError"),
        (exits, "rolled back: the pass failed with SystemExit: 0"),
        (
            renames_the_input,
            "rolled back: it changes what the model is called with: (input) became (images)",
        ),
        (
            gives_a_default,
            "rolled back: it changes what the model is called with: (input) became (input=None)",
        ),
        (calls_what_is_not_there, "rolled back: the pass failed with"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
@pytest.mark.parametrize("examples", [False, True], ids=["drawn", "examples"])
def test_a_wrong_one_is_rolled_back_and_named(wrong: Any, reason: str, examples: bool) -> None:
    model = network()
    inputs = images() if examples else None
    fused = reparam.compile(model, inputs, passes=(wrong, *passes.DEFAULT))
    assert_unchanged(model, fused)
    assert operators(fused) == {"Conv2d": 2, "ReLU": 2}
    (missed,) = (r for r in reparam.report(fused).missed if r.rule == wrong.__name__)
    assert missed.message.startswith(reason)


def test_the_listener_hears_of_it() -> None:
    heard: list[str] = []
    reparam.compile(
        network(), passes=(relu_to_clamp, raises), remarks=lambda r: heard.append(r.rule)
    )
    assert heard == ["relu_to_clamp", "raises"]


def test_what_cannot_be_checked_is_rolled_back_unless_examples_are_given() -> None:
    class Free(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x)

    def nothing(graph_module: fx.GraphModule) -> fx.GraphModule:
        return graph_module

    (missed,) = reparam.report(reparam.compile(Free().eval(), passes=(nothing,))).missed
    assert "it can't be checked without example_inputs" in missed.message
    fused = reparam.compile(Free().eval(), images(), passes=(nothing,))
    assert len(reparam.report(fused).applied) == 1


def test_a_layer_left_in_training_mode_stays_so() -> None:
    model = network()
    model[1].train()
    model[1].momentum = 0.0

    def nothing(graph_module: fx.GraphModule) -> fx.GraphModule:
        return graph_module

    fused = reparam.compile(model, passes=(nothing, *passes.DEFAULT))
    assert_unchanged(model, fused)
    assert operators(fused)["BatchNorm2d"] == 1


def test_what_it_is_given_is_a_copy() -> None:
    model = network()
    kept: list[fx.GraphModule] = []

    def keeps(graph_module: fx.GraphModule) -> fx.GraphModule:
        kept.append(graph_module)
        return graph_module

    fused = reparam.compile(model, passes=(keeps,))
    with torch.no_grad():
        for parameter in kept[0].parameters():
            parameter.zero_()
    assert_unchanged(model, fused)
