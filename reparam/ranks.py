"""Hold a result to the number of axes of its example inputs, where something depends on it.

A layer of tokens takes images too, and an average over axis 1 is then another one. What the model
itself demands, an image with a batch axis say, is not asserted.
"""

import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from reparam import known
from reparam.capture import Capture
from reparam.graph import INPUT, Call, ValueGraph
from reparam.learned import given_facts
from reparam.lift import lift_graph
from reparam.operators import Norm
from reparam.sizes import SymbolTable
from reparam.values import Layout, Opaque


def lift_held(
    captured: Capture, example_inputs: Any, told: Mapping[str, int]
) -> tuple[ValueGraph, dict[str, int]]:
    """Transcribe a traced model, after writing into its trace what the transcript depends on.

    Args:
        captured: the trace.
        example_inputs: those of the compile.
        told: how many axes inputs have by an earlier compile, which asserted it where it mattered.

    Returns:
        The transcript, and how many axes inputs have.
    """
    held = lift_graph(captured, example_inputs)
    given = given_facts(captured.graph, example_inputs, SymbolTable())
    if not given:
        return held, dict(told)
    ranks = {node: len(facts.axes) for node, facts in given.items()}
    alone = lift_graph(captured)
    placeholders = [node for node in captured.graph.nodes if node.op == "placeholder"]
    inputs = [call for call in alone.calls() if call.value is INPUT]
    demanded = [n for n, call in zip(placeholders, inputs, strict=True) if _exact(call)]
    axes = {str(node.target): rank for node, rank in ranks.items()}
    untold = [
        node
        for node in given
        if node.users and node not in demanded and told.get(str(node.target)) != ranks[node]
    ]
    if not untold or [*map(_meaning, alone.calls())] == [*map(_meaning, held.calls())]:
        return held, axes
    with captured.graph.inserting_after(placeholders[-1]):
        for node in reversed(untold):
            _assert_rank(captured.graph, node, ranks[node])
    return lift_graph(captured, example_inputs), axes


def _exact(call: Call) -> bool:
    """Whether all axes of a tensor are known."""
    return call.shape is not None and call.shape.exact


def _meaning(call: Call) -> Any:
    """What a call was understood as, as far as it may depend on a number of axes."""
    value = call.value
    if not isinstance(value, Opaque):
        fields = getattr(value, "__dataclass_fields__", {})
        held = {name: getattr(value, name) for name in fields}
        inputs = isinstance(value, Norm) and value.kind == "group" and _exact(call.inputs[0])
        return type(value), {n: v for n, v in held.items() if not isinstance(v, Tensor)}, inputs
    elementwise = known.kind(value.target) in ("pointwise", "elementwise")
    inputs = () if elementwise else [_exact(source) for source in call.inputs]
    where = (value.kind, value.axes, value.index) if isinstance(value, Layout) else ()
    return type(value), where, inputs


def _assert_rank(graph: fx.Graph, node: fx.Node, axes: int) -> None:
    """Write an assertion at the insertion point: its parts come in the opposite order."""
    message = f"{known.SAME_RANK}: {node.target} has {axes}"
    rank = graph.call_function(getattr, (node, "ndim"))
    with graph.inserting_after(rank):
        same = graph.call_function(operator.eq, (rank, axes))
    with graph.inserting_after(same):
        graph.call_function(known.ASSERT, (same, message))
