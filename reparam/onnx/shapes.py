"""What a file tells of its tensors, and ONNX's own inference of what follows."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from torch import Tensor

from reparam.export_graph import extra
from reparam.facts import TensorFacts
from reparam.onnx.arrays import to_numpy
from reparam.onnx.carried import STANDARD
from reparam.onnx.graphs import subgraphs
from reparam.onnx.reading import DTYPES, external, tensors
from reparam.sizes import Size, SymbolTable

HIDDEN = "reparam.hidden"
"""A domain of which ONNX infers nothing."""

SMALL = 1024
"""Elements of tensors that sizes may be computed from: those of larger ones are not looked at."""

LOWEST_IR = 4
"""Before, every initializer had to be an input as well."""

UNINFERRED = ("HardSwish", "Mish")
"""Functions of single elements whose sizes ONNX's own inference does not tell."""


def skeleton(proto: Any) -> Any:
    """A copy without the numbers of its weights, and without what it tells of its tensors."""
    onnx = extra("onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.value_info[:]
    for node in (*copy.graph.node, *(node for body in copy.functions for node in body.node)):
        _forget_bodies(node)
    for tensor in tensors(copy):
        if prod(tensor.dims) > SMALL and not external(tensor):
            for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                tensor.ClearField(name)
            tensor.data_location = onnx.TensorProto.EXTERNAL
    copy.graph.value_info.extend(_told_by_readers(copy.graph))
    return copy


def _told_by_readers(graph: Any) -> Iterator[Any]:
    """What a layer says of what it reads, where an operator that ONNX does not know makes that.

    By ONNX's own rules its input is of the type of its weight, and of as many axes.
    """
    unknown = {name for node in graph.node if node.domain not in STANDARD for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        layer = node.domain in STANDARD and node.op_type in ("Conv", "ConvTranspose", "Gemm")
        if layer and node.input[0] in unknown and (weight := weights.get(node.input[1])):
            unknown.remove(node.input[0])
            make = extra("onnx.helper").make_tensor_value_info
            yield make(node.input[0], weight.data_type, [None] * len(weight.dims))


def _forget_bodies(node: Any) -> None:
    """Take away what the subgraphs of a node say of sizes: not every runtime holds them to it."""
    for graph in subgraphs(node):
        del graph.value_info[:]
        for value in (*graph.input, *graph.output):
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        for inner in graph.node:
            _forget_bodies(inner)


def facts_of(
    bare: Any, symbols: SymbolTable, constants: Mapping[str, Tensor]
) -> Iterator[tuple[str, TensorFacts]]:
    """What a file tells of its inputs, and ONNX's inference of shapes of what follows.

    Args:
        bare: the file's skeleton.
        symbols: of its sizes.
        constants: what some of its nodes are known to compute.
    """
    onnx = extra("onnx")
    plain = onnx.ModelProto()
    plain.CopyFrom(bare)
    plain.ir_version = max(plain.ir_version, LOWEST_IR)
    kept = [node for node in plain.graph.node if not constants.keys() & set(node.output)]
    del plain.graph.node[:]
    plain.graph.node.extend(kept)
    given = {value.name for value in plain.graph.input}
    held = [tensor for tensor in plain.graph.initializer if tensor.name not in given]
    del plain.graph.initializer[:]
    plain.graph.initializer.extend(held)  # what is an input as well may be any number
    plain.graph.initializer.extend(
        onnx.numpy_helper.from_array(to_numpy(content), name) for name, content in constants.items()
    )
    for node in plain.graph.node:
        if node.op_type in UNINFERRED and not node.domain:
            node.op_type = "Relu"
            node.ClearField("attribute")
    for output in plain.graph.output:  # nobody holds a file to what it says of these
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    _hide_tables(plain)
    graph = onnx.shape_inference.infer_shapes(plain, data_prop=True).graph
    inputs = {value.name for value in graph.input}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        name = onnx.TensorProto.DataType.Name(kind.elem_type) if kind.elem_type else ""
        if kind.HasField("shape") and name in DTYPES:
            sizes = (_size(size, symbols, value.name in inputs) for size in kind.shape.dim)
            yield value.name, TensorFacts(tuple(sizes), True, DTYPES[name])


def _hide_tables(plain: Any) -> None:
    """Hide what makes integers with several axes from ONNX's inference, which takes them for one.

    What is inferred without their numbers stays.
    """
    onnx = extra("onnx")
    told = {value.name for value in plain.graph.value_info}
    known = onnx.shape_inference.infer_shapes(plain).graph.value_info
    kinds = {value.name: value.type.tensor_type for value in known}
    integers = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    tables = {
        name
        for name, kind in kinds.items()
        if kind.elem_type in integers and (not kind.HasField("shape") or len(kind.shape.dim) > 1)
    }
    for node in plain.graph.node:
        if tables & set(node.output):
            node.domain = HIDDEN
    del plain.graph.value_info[:]
    plain.graph.value_info.extend(value for value in known if value.name in tables | told)
    plain.opset_import.add(domain=HIDDEN, version=1)


def _size(told: Any, symbols: SymbolTable, given: bool) -> Size:
    """A size as the file tells it; of inputs, those of one name are the same."""
    if told.HasField("dim_value") and told.dim_value >= 0:
        return Size(told.dim_value)
    if told.dim_param and given:
        return symbols.derived(("named", told.dim_param))
    return symbols.fresh()
