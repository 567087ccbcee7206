"""A split into a sequence whose items are read one by one is a split into as many tensors.

Torch's newer exporter writes each `split` and `chunk` as a `SplitToSequence`, whose results only a
`SequenceAt` reads. Shapes end there, and so would all that follows from them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor

from reparam.export_graph import extra
from reparam.facts import TensorFacts
from reparam.onnx.carried import STANDARD
from reparam.onnx.graphs import all_names, outer
from reparam.onnx.nodes import Draft
from reparam.onnx.reading import OnnxFile

LOWEST_OPSET = 13
"""Of a `Split` that takes its lengths as an input."""

MOST = 2**10
"""Pieces of a split that are told apart."""

Contents: TypeAlias = Mapping[str, Tensor]
Facts: TypeAlias = Mapping[str, TensorFacts]


def with_splits(file: OnnxFile, contents: Contents, facts: Facts) -> OnnxFile | None:
    """The file with such splits written as `Split`; None if there are none.

    Args:
        file: the file.
        contents: of the tensors that are constants, by their names.
        facts: of its tensors.
    """
    graph = file.proto.graph
    if file.opset < LOWEST_OPSET:
        return None
    made, gone = dict[str, Any](), set[str]()
    lengths = dict[str, list[int]]()
    for node in graph.node:
        if node.domain not in STANDARD or node.op_type != "SplitToSequence":
            continue
        sizes = _lengths(node, contents, facts)
        items = None if sizes is None else _items(graph, node.output[0], len(sizes), contents)
        if sizes is None or items is None:
            continue
        lengths[node.output[0]] = sizes
        made[node.output[0]] = items
        gone |= set(items.values())
    if not made:
        return None
    draft = Draft(file.opset, all_names(graph))
    for node in graph.node:
        items = made.get(node.output[0]) if node.output else None
        if items is not None:
            draft.nodes.append(_split(draft, node, items, lengths[node.output[0]]))
        elif not gone & set(node.output):
            draft.nodes.append(node)
    proto = type(file.proto)()
    proto.CopyFrom(file.proto)
    proto.graph.ClearField("node")
    proto.graph.node.extend(draft.nodes)
    proto.graph.initializer.extend(draft.initializers)
    return replace(file, proto=proto)


def _lengths(node: Any, contents: Contents, facts: Facts) -> list[int] | None:
    """The lengths of the pieces, where they are known."""
    told = contents.get(node.input[1]) if len(node.input) > 1 else None
    if told is None:
        return None
    if told.ndim == 1:
        return [int(length) for length in told] if len(told) <= MOST else None
    known, length = facts.get(node.input[0]), int(told)
    squeezed = any(each.name == "keepdims" and each.i == 0 for each in node.attribute)
    if squeezed or known is None or not known.axes[_axis(node)].known:
        return None  # runtimes differ on whether one number for all is told to drop the axis
    size = known.axes[_axis(node)].factor
    if length < 1 or not 0 < size <= length * MOST:
        return None
    return [min(length, size - at) for at in range(0, size, length)]


def _axis(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _items(graph: Any, sequence: str, count: int, contents: Contents) -> dict[int, str] | None:
    """The items of a sequence that are read, by their places; None if it is read otherwise."""
    if any(value.name == sequence for value in graph.output):
        return None
    items = dict[int, str]()
    for node in graph.node:
        if sequence not in (*node.input, *outer(node)):
            continue
        place = contents.get(node.input[1]) if len(node.input) == 2 else None
        reads = node.domain in STANDARD and node.op_type == "SequenceAt"
        if not reads or place is None or place.numel() != 1:
            return None
        index = int(place)
        if not -count <= index < count or index % count in items:
            return None
        items[index % count] = node.output[0]
    return items or None


def _split(draft: Draft, node: Any, items: Mapping[int, str], lengths: list[int]) -> Any:
    """A `Split` in place of a node; its results have the names of the items."""
    sequence, axis = node.output[0], _axis(node)
    sizes = draft.integers(lengths, f"{sequence}_lengths")
    outputs = [items.get(i) or draft.fresh(f"{sequence}_{i}") for i in range(len(lengths))]
    split = type(node)()
    split.CopyFrom(node)
    for field in ("op_type", "input", "output", "attribute"):
        split.ClearField(field)
    helper = extra("onnx.helper")
    split.MergeFrom(helper.make_node("Split", [node.input[0], sizes], outputs, axis=axis))
    return split
