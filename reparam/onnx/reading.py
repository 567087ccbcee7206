"""Read an ONNX file, with all that may be wrong about one found out before anything is computed."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reparam.devices import CPU
from reparam.errors import OnnxError, first_line
from reparam.export_graph import extra
from reparam.known import TORCH
from reparam.onnx.arrays import to_torch

LOWEST_OPSET = 11
"""Older operators take as attributes what is an input now."""

DTYPES: dict[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
"""What torch calls the element types of ONNX; tensors of others are carried through unread."""

ITEM_SIZES = {"COMPLEX64": 8, "COMPLEX128": 16, "UINT16": 2, "UINT32": 4, "UINT64": 8}
"""Bytes of an element, of those types that torch is not asked about."""

BITS = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "FLOAT6E2M3": 6,
        "FLOAT6E3M2": 6}  # fmt: skip
"""Of an element, of those types of which several share a byte."""


@dataclass(frozen=True)
class OnnxFile:
    """A file that was read.

    Attributes:
        path: of the file.
        proto: the `onnx.ModelProto`, as it is in the file: weights that lie beside it stay there.
        opset: its version of the standard operators.
    """

    path: Path
    proto: Any
    opset: int

    def content(self, tensor: Any) -> Tensor | None:
        """The numbers of a `TensorProto`; None where torch has no such element type.

        Those that lie in a file of their own are mapped, not read.
        """
        dtype = DTYPES.get(type_name(tensor))
        if dtype is None:
            return None
        numpy = extra("numpy")
        shape = tuple(tensor.dims)
        if not external(tensor):
            return to_torch(extra("onnx.numpy_helper").to_array(tensor)).reshape(shape)
        place = Place.of(tensor, self.path.parent)
        if place.length == 0:
            return torch.empty(shape, dtype=dtype, device=CPU)
        raw = numpy.memmap(place.path, numpy.uint8, "c", place.offset, (place.length,))
        return TORCH.from_numpy(raw).view(dtype).reshape(shape)


@dataclass(frozen=True)
class Place:
    """Where the bytes of a tensor lie, in a file of their own."""

    path: Path
    offset: int
    length: int

    @staticmethod
    def of(tensor: Any, folder: Path) -> "Place":
        """The place of a tensor's bytes, which has to be in the folder of the model.

        Raises:
            OnnxError: if it is elsewhere, or if there are fewer bytes than the tensor has.
        """
        told = {entry.key: entry.value for entry in tensor.external_data}
        name, needed = told.get("location", ""), bytes_of(tensor)
        path = folder / name
        if not name or not _inside(Path(name), folder):
            raise OnnxError(f"the weights of {tensor.name!r} lie outside of its folder: {name!r}")
        if not path.is_file():
            raise OnnxError(f"the weights of {tensor.name!r} are missing: there is no file {name}")
        try:
            offset, length = int(told.get("offset", 0)), int(told.get("length", needed))
        except ValueError as error:
            raise OnnxError(f"{tensor.name!r} does not say where its weights are") from error
        if offset < 0 or length != needed or offset + length > path.stat().st_size:
            raise OnnxError(f"{name} does not hold the {needed} bytes of {tensor.name!r}")
        return Place(path, offset, length)


def _inside(path: Path, folder: Path) -> bool:
    """Whether a relative path leads to something in a folder, without a link on the way."""
    if path.is_absolute() or ".." in path.parts:
        return False
    try:
        return not any((folder / part).is_symlink() for part in (path, *path.parents[:-1]))
    except OSError:  # no file has so long a name
        return False


def external(tensor: Any) -> bool:
    """Whether the bytes of a tensor lie in a file of their own."""
    return bool(tensor.data_location == extra("onnx").TensorProto.EXTERNAL)


def type_name(tensor: Any) -> str:
    """What ONNX calls the type of a tensor's elements."""
    return extra("onnx").TensorProto.DataType.Name(tensor.data_type)


def bytes_of(tensor: Any) -> int:
    """How many bytes a tensor takes, by its type and sizes."""
    name = type_name(tensor)
    size = DTYPES[name].itemsize if name in DTYPES else ITEM_SIZES.get(name, 1)
    return (prod(tensor.dims) * BITS.get(name, 8 * size) + 7) // 8


def message(path: Path) -> Any:
    """The `ModelProto` in a file, whatever the file is called; weights beside it stay there."""
    return extra("onnx").load(str(path), format="protobuf", load_external_data=False)


def read(path: Path) -> OnnxFile:
    """Read a file; weights that lie beside it are looked for, not read.

    Raises:
        OnnxError: if it is not there, is no ONNX file, is cut off, declares sizes beyond its bytes
            or weights outside of its folder, is of an opset that nobody here knows, or not valid.
    """
    onnx = extra("onnx")
    try:
        proto = message(path)
    except OSError as error:
        raise OnnxError(f"can't read {path}: {error.strerror or error}") from error
    except Exception as error:
        raise OnnxError(f"{path} is no ONNX file, or not all of it: {first_line(error)}") from error
    if not proto.graph.node and not proto.graph.output:
        raise OnnxError(f"{path} is no ONNX file, or it is empty: it holds no graph")
    opset = _opset(proto, path)
    for tensor in tensors(proto):
        _check(tensor, path)
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise OnnxError(f"onnx.checker refuses {path}: {first_line(error)}") from error
    return OnnxFile(path, proto, opset)


def _opset(proto: Any, path: Path) -> int:
    versions = [used.version for used in proto.opset_import if used.domain in ("", "ai.onnx")]
    newest: int = extra("onnx").defs.onnx_opset_version()
    if not versions:
        raise OnnxError(f"{path} does not say which version of ONNX's operators it uses")
    if not LOWEST_OPSET <= max(versions) <= newest:
        told = f"those from {LOWEST_OPSET} to {newest} are known"
        raise OnnxError(f"{path} uses version {max(versions)} of ONNX's operators; {told}")
    return max(versions)


def tensors(proto: Any) -> Iterator[Any]:
    """Every `TensorProto` in a model: of its graphs, of its functions, and in their attributes."""
    yield from _in_graph(proto.graph)
    for function in proto.functions:
        yield from _in_nodes(function.node)
    for training in proto.training_info:
        yield from _in_graph(training.initialization)
        yield from _in_graph(training.algorithm)


def _in_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Any) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from [attribute.t] if attribute.HasField("t") else []
        yield from attribute.tensors
        held = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in (*held, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _in_graph(graph)


def _check(tensor: Any, path: Path) -> None:
    """Hold the sizes that a tensor declares against the bytes that it has."""
    known = tensor.data_type in extra("onnx").TensorProto.DataType.values()
    if not known or any(size < 0 for size in tensor.dims):
        raise OnnxError(f"{path}: {tensor.name!r} has no element type, or a negative size")
    if external(tensor):
        Place.of(tensor, path.parent)
        return
    if tensor.HasField("raw_data"):
        held, needed = len(tensor.raw_data), bytes_of(tensor)
    else:
        held, needed = _listed(tensor), prod(tensor.dims)
    if held != needed:
        raise OnnxError(f"{path}: {tensor.name!r} declares {needed} elements or bytes, not {held}")


def _listed(tensor: Any) -> int:
    """How many elements a tensor lists one by one."""
    name = type_name(tensor)
    packed = BITS.get(name) in (2, 4)  # those of 6 bits have an entry each
    if packed or name == "UNDEFINED":
        return prod(tensor.dims)  # nobody here reads those
    field = extra("onnx.helper").tensor_dtype_to_field(tensor.data_type)
    return len(getattr(tensor, field)) // (2 if name.startswith("COMPLEX") else 1)
