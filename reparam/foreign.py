"""Run a plain torch.fx pass, `GraphModule -> GraphModule`, between our own, and check the whole."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from reparam.capture import Capture, capture, modules_of
from reparam.devices import device_of
from reparam.errors import Declined, first_line, require
from reparam.graph import Call, ValueGraph
from reparam.lift import lift_graph
from reparam.lower import lower
from reparam.report import Remark
from reparam.runs import split_inputs
from reparam.sizes import Assignment
from reparam.verify import EXACT, relative_difference

FxPass = Callable[[fx.GraphModule], fx.GraphModule]
SIZES = (64, 72)
"""Height and width of the images that a pass is checked on if no example inputs are given."""


def run_foreign(
    foreign: FxPass, captured: Capture, values: ValueGraph, example_inputs: Any, verify: bool
) -> tuple[Capture, ValueGraph, Remark]:
    """Run the pass on a copy of the model as it stands.

    Returns:
        What it made, captured and lifted, with an applied remark; or, if the pass fails or
        computes something else, what there was, with a missed one.
    """
    name = getattr(foreign, "__name__", type(foreign).__name__)
    before = lower(values, captured, keep=True)
    try:
        after: Any = foreign(copy.deepcopy(before))
        require(
            isinstance(after, fx.GraphModule),
            f"it returned {type(after).__name__}, not a GraphModule",
        )
        after.graph.lint()
        old, new = map(_parameters, (before, after))
        require(new == old, f"it changes what the model is called with: {_listed(old, new)}")
        after.recompile()
        _keep_modes(before, after)
        error = _difference(before, after, values, example_inputs) if verify else None
        again = capture(after)
        return (
            again,
            lift_graph(again, example_inputs),
            Remark("applied", name, "the whole graph", "rewritten", None, error),
        )
    except Declined as declined:
        reason = declined.reason
    except (Exception, SystemExit) as failure:  # a script's exit too
        line = first_line(failure)
        reason = (
            f"the pass failed with {type(failure).__name__}: {line} "
            "(it was run as a torch.fx pass; one on calls needs @reparam.rewrite)"
        )
    return captured, values, Remark("missed", name, "the whole graph", f"rolled back: {reason}")


def _parameters(module: fx.GraphModule) -> list[tuple[str, tuple[Any, ...]]]:
    """The names of a forward's parameters in order, each with its default if it has one."""
    return [(str(node.target), node.args) for node in module.graph.find_nodes(op="placeholder")]


def _listed(*several: list[tuple[str, tuple[Any, ...]]]) -> str:
    """Parameters before and after, as they stand in a signature."""
    signatures = (
        ", ".join("=".join((name, *map(repr, default))) for name, default in parameters)
        for parameters in several
    )
    return " became ".join(f"({signature})" for signature in signatures)


def _keep_modes(before: fx.GraphModule, after: fx.GraphModule) -> None:
    """Evaluation mode, but for what was in training mode by itself."""
    training = {path for path, module in modules_of(before) if module.training}
    after.eval()
    for path, module in modules_of(after):
        module.training = path in training


def _difference(
    before: fx.GraphModule, after: fx.GraphModule, values: ValueGraph, example_inputs: Any
) -> float:
    """The relative difference of two graph modules in float64.

    Raises:
        Declined: if it is more than rounding, or can't be known.
    """
    drawn = _drawn(values, device_of(before)) if example_inputs is None else example_inputs
    args, kwargs = split_inputs(drawn)
    wide: Any = pytree.tree_map_only(Tensor, _wide, (args, kwargs))
    with torch.no_grad():
        (old, form), (new, other) = (
            pytree.tree_flatten(copy.deepcopy(module).double()(*copy.deepcopy(wide[0]), **wide[1]))
            for module in (before, after)
        )
    require(form == other, "its outputs have another structure")
    worst = max(
        (relative_difference(a, b) for a, b in zip(old, new, strict=True) if isinstance(a, Tensor)),
        default=0.0,
    )
    require(worst <= EXACT, f"its result differs by {worst:.1e}")
    return worst


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _drawn(values: ValueGraph, device: torch.device) -> tuple[Tensor, ...]:
    """Random inputs of the shapes that the graph itself asks for."""
    inputs = [Call(node) for node in values.graph.nodes if node.op == "placeholder"]
    drawn: list[Tensor] = []
    for call in inputs:
        shape = call.shape
        require(shape is not None, "it can't be checked without example_inputs")
        assert shape is not None
        batch = dict.fromkeys(shape.axes[0].symbols if shape.exact and shape.axes else (), 2)
        assignment = Assignment(SIZES, dict(batch))
        sizes = [assignment(size) for size in shape.axes]
        drawn.append(
            torch.randn(sizes if shape.exact else [2, *sizes], dtype=torch.float64, device=device)
        )
    return tuple(drawn)
