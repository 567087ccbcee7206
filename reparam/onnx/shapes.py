"""What a file tells of its tensors, and ONNX's own inference of what follows."""

from collections.abc import Iterator
from typing import Any

from reparam.errors import OnnxError, first_line
from reparam.export_graph import extra
from reparam.facts import TensorFacts
from reparam.onnx.reading import DTYPES, OnnxFile, external, tensors
from reparam.sizes import Size, SymbolTable

SMALL = 1024
"""Elements of tensors that sizes may be computed from: those of larger ones are not looked at."""


def skeleton(proto: Any) -> Any:
    """A copy without the numbers of its weights, and without what it tells of its tensors."""
    onnx = extra("onnx")
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.value_info[:]
    for tensor in tensors(copy):
        count = 1
        for size in tensor.dims:
            count *= size
        if count > SMALL and not external(tensor):
            for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                tensor.ClearField(name)
            tensor.data_location = onnx.TensorProto.EXTERNAL
    return copy


def facts_of(file: OnnxFile, symbols: SymbolTable) -> Iterator[tuple[str, TensorFacts]]:
    """What the file tells of its inputs, and ONNX's inference of shapes of what follows."""
    onnx = extra("onnx")
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton(file.proto), data_prop=True).graph
    except Exception as error:
        raise OnnxError(f"{file.path} is not valid: {first_line(error)}") from error
    inputs = {value.name for value in graph.input}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        name = onnx.TensorProto.DataType.Name(kind.elem_type) if kind.elem_type else ""
        if kind.HasField("shape") and name in DTYPES:
            sizes = (_size(size, symbols, value.name in inputs) for size in kind.shape.dim)
            yield value.name, TensorFacts(tuple(sizes), True, DTYPES[name])


def _size(told: Any, symbols: SymbolTable, given: bool) -> Size:
    """A size as the file tells it; of inputs, those of one name are the same."""
    if told.HasField("dim_value") and told.dim_value >= 0:
        return Size(told.dim_value)
    if told.dim_param and given:
        return symbols.derived(("named", told.dim_param))
    return symbols.fresh()
