"""What ONNX Runtime, and the process with it, dies of (1.31 does)."""

from collections.abc import Iterable
from typing import Any

from reparam.onnx.carried import STANDARD
from reparam.onnx.graphs import subgraphs
from reparam.onnx.translate import Program


def kills_the_runtime(program: Program) -> bool:
    """Whether a file has, or may have, something in it that ONNX Runtime dies of.

    That is a layer norm with an input that is named but left out, a split or a batch norm with such
    a result, and an instance norm of a tensor without elements, which whatever cuts something off
    may leave.
    """
    proto = program.file.proto
    nodes = _with_inner(proto.graph.node)
    bodies = [node for body in proto.functions for node in _with_inner(body.node)]
    if any(map(_leaves_out, (*nodes, *bodies))):
        return True
    instances = any(node.op_type == "InstanceNormalization" for node in nodes)
    return instances and any(_may_leave_nothing(node, program) for node in nodes)


def _with_inner(nodes: Iterable[Any]) -> list[Any]:
    """Nodes, and those of their subgraphs."""
    found = [*nodes]
    for node in found:  # those of its subgraphs follow
        found += [each for graph in subgraphs(node) for each in graph.node]
    return found


def _leaves_out(node: Any) -> bool:
    """Whether a node has something that is named but left out, where that is fatal."""
    if node.domain not in STANDARD:
        return False
    if node.op_type == "LayerNormalization":
        return len(node.input) == 3 and not node.input[2]
    return node.op_type in ("Split", "BatchNormalization") and not all(node.output)


def _may_leave_nothing(node: Any, program: Program) -> bool:
    """Whether a node cuts off of a tensor what may be all of it."""
    if node.domain not in STANDARD or node.op_type not in ("Slice", "Pad"):
        return False
    if node.op_type == "Pad":
        maker = program.makers.get(node.input[1])
        if maker is not None and str(maker.target) in program.constants:
            pads = program.capture.attribute(str(maker.target))
            if not bool((pads < 0).any()):
                return False
    maker = program.makers.get(node.output[0])
    facts = None if maker is None else program.told.learned.get(maker)
    if facts is None:
        return True
    floating = facts.dtype is None or facts.dtype.is_floating_point  # others are sizes
    return floating and not all(size.known and size.factor for size in facts.axes)
