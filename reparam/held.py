"""Hold a result to the axes and the kind of its example inputs, where something depends on them.

A layer of tokens takes images too, and an average over axis 1 is then another one. Integers that
are doubled may overflow before they are halved, which floating-point numbers do not. What the model
itself demands, an image with a batch axis say, is not asserted.
"""

import operator
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

from torch import Tensor, fx

from reparam import known
from reparam.capture import Capture
from reparam.facts import TensorFacts
from reparam.graph import INPUT, Call, ValueGraph
from reparam.learned import Learned, given_facts
from reparam.lift import lift_graph
from reparam.operators import Norm
from reparam.sizes import SymbolTable
from reparam.values import Conv, Layout, Opaque, Shape, Sum

ANY_RANK = ("pointwise", "elementwise", "clamp", "max_pool")
"""What does the same to the last axes, however many there are before them."""


def lift_held(
    captured: Capture, example_inputs: Any, told: Mapping[str, int]
) -> tuple[ValueGraph, dict[str, int]]:
    """Transcribe a traced model, after writing into its trace what the transcript depends on.

    Args:
        captured: the trace.
        example_inputs: those of the compile.
        told: how many axes inputs have by an earlier compile, which asserted what mattered.

    Returns:
        The transcript, and how many axes inputs have.
    """
    held = lift_graph(captured, example_inputs)
    given = given_facts(captured.graph, example_inputs, SymbolTable())
    axes = {str(node.target): len(facts.axes) for node, facts in given.items()}
    untold = [node for node in given if told.get(str(node.target)) != len(given[node].axes)]
    if not untold:
        return held, {**told, **axes}
    demanded = False

    def enough(learned: Learned) -> bool:
        nonlocal demanded
        demanded = all(_complete(learned.get(node)) for node in untold)
        return demanded

    alone = lift_graph(captured, enough=enough)
    if demanded:
        return held, axes
    placeholders = [node for node in captured.graph.nodes if node.op == "placeholder"]
    inputs = dict(zip(placeholders, _inputs(alone), strict=True))
    ranked = _depending(alone, held, _ranked)
    linear = [call for call in held.calls() if isinstance(call.value, Conv | Sum)]
    summed = _depending(alone, held, _summed) if len(linear) > 1 else set[Call]()
    before = len(captured.graph.nodes)
    with captured.graph.inserting_after(placeholders[-1]):
        for node in reversed(untold):
            facts, call = given[node], inputs[node]
            floating = facts.dtype is not None and facts.dtype.is_floating_point
            if call in ranked and not _exact(call):
                _assert_rank(captured.graph, node, len(facts.axes))
            if call in summed and floating and not _floating(call):
                _assert_floating(captured.graph, node)
    same = len(captured.graph.nodes) == before
    return held if same else lift_graph(captured, example_inputs), axes


def _complete(facts: TensorFacts | None) -> bool:
    return facts is not None and facts.exact and facts.dtype is not None


def _inputs(values: ValueGraph) -> list[Call]:
    return [call for call in values.calls() if call.value is INPUT]


def _depending(alone: ValueGraph, held: ValueGraph, meaning: Callable[[Call], Any]) -> set[Call]:
    """What leads to calls of which more is known with example inputs than without."""
    pairs = list(zip_longest(alone.calls(), held.calls()))
    if any(a is None or b is None for a, b in pairs):
        return set(alone.calls())
    pending = [a for a, b in pairs if meaning(a) != meaning(b)]
    found: set[Call] = set()
    while pending:
        call = pending.pop()
        if call not in found:
            found.add(call)
            pending.extend(call.inputs)
    return found


def _ranked(call: Call) -> Any:
    """What a call was understood as, as far as it may depend on a number of axes."""
    value = call.value
    reads = [_exact(source) for source in call.inputs]
    if isinstance(value, Opaque):
        where = (value.kind, value.axes, value.index) if isinstance(value, Layout) else ()
        return type(value), where, () if known.kind(value.target) in ANY_RANK else reads
    fields = {n: getattr(value, n) for n in getattr(value, "__dataclass_fields__", {})}
    plain = {name: held for name, held in fields.items() if not isinstance(held, Tensor)}
    grouped = isinstance(value, Norm) and value.kind == "group"
    # Of a tensor that goes, a size is read from another one, which has it at that place.
    sized = isinstance(value, Shape) and _may_go(call.inputs[0])
    return type(value), plain, reads if grouped or sized else ()


def _may_go(call: Call) -> bool:
    """Whether a pass may take a call away."""
    value = call.value
    return value is not INPUT and (not isinstance(value, Opaque) or isinstance(value, Layout))


def _summed(call: Call) -> Any:
    """Whether what is summed or scaled is known to be floating-point numbers."""
    value = call.value
    scales = isinstance(value, Conv) and not call.traits.convolution
    return [*map(_floating, call.inputs)] if scales or isinstance(value, Sum) else ()


def _exact(call: Call) -> bool:
    """Whether all axes of a tensor are known."""
    return call.shape is not None and call.shape.exact


def _floating(call: Call) -> bool:
    dtype = None if call.shape is None else call.shape.dtype
    return dtype is not None and dtype.is_floating_point


def _assert_rank(graph: fx.Graph, node: fx.Node, axes: int) -> None:
    """Write an assertion at the insertion point: its parts come in the opposite order."""
    rank = graph.call_function(getattr, (node, "ndim"))
    with graph.inserting_after(rank):
        same = graph.call_function(operator.eq, (rank, axes))
    with graph.inserting_after(same):
        graph.call_function(known.ASSERT, (same, f"{known.SAME_RANK}: {node.target} has {axes}"))


def _assert_floating(graph: fx.Graph, node: fx.Node) -> None:
    """Write an assertion at the insertion point."""
    floating = graph.call_method("is_floating_point", (node,))
    with graph.inserting_after(floating):
        graph.call_function(known.ASSERT, (floating, f"{known.SAME_KIND}: {node.target}"))
