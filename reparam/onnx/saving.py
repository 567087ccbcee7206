"""Write an ONNX file; weights that lie beside the old one are copied in pieces."""

from pathlib import Path
from typing import Any, BinaryIO

from reparam.errors import OnnxError
from reparam.export import check_replaceable
from reparam.export_graph import LARGEST_FILE, extra
from reparam.onnx.reading import OnnxFile, Place, bytes_of, external, tensors

PIECE = 2**24
"""Bytes that are copied at a time."""

ALIGNMENT = 4096
"""What the offsets of mapped tensors are multiples of."""

SMALLEST = 1024
"""Bytes of a tensor that is worth a place in a file of weights."""


def check_target(source: OnnxFile, target: Path) -> None:
    """Refuse a target that would overwrite the weights of a source that stays, or a folder.

    Raises:
        OnnxError: if some of them lie where the new file, or its weights, are to be.
        ExportError: if there is no place for a file of weights, and the source has one.
    """
    folder = source.path.parent
    used = {
        Place.of(tensor, folder).path.resolve()
        for tensor in tensors(source.proto)
        if external(tensor)
    }
    data = data_file(target).resolve()
    if target in used or (data in used and target != source.path.resolve()):
        name = target.name if target in used else data.name
        raise OnnxError(
            f"{source.path} has its weights in {name}, which writing {target.name} would replace: "
            "give the target another name"
        )
    if data == source.path.resolve():
        raise OnnxError(
            f"weights of {target.name} might replace {source.path}: give the target another name"
        )
    if used:
        check_replaceable(data_file(target))


def data_file(path: Path) -> Path:
    """The file beside a model that its weights are put in."""
    return path.with_name(f"{path.name}.data")


def save(proto: Any, source: OnnxFile, path: Path) -> list[Path]:
    """Write a model that was made from a file.

    Its weights are put in a file of their own, `<name>.data`, if some that are still there were in
    one of the source's, or if they are more than one message of protobuf holds.

    Returns:
        The files, the model last.
    """
    held = list(tensors(proto))
    apart = any(map(external, held)) or sum(map(bytes_of, held)) > LARGEST_FILE
    if not apart:
        path.write_bytes(proto.SerializeToString())
        return [path]
    data = data_file(path)
    with data.open("wb") as file:
        for tensor in held:
            if external(tensor):
                _copy(Place.of(tensor, source.path.parent), tensor, file, data.name)
            elif tensor.HasField("raw_data") and len(tensor.raw_data) >= SMALLEST:
                _begin(tensor, file, data.name, len(tensor.raw_data))
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
    path.write_bytes(proto.SerializeToString())
    return [data, path]


def _copy(place: Place, tensor: Any, file: BinaryIO, name: str) -> None:
    _begin(tensor, file, name, place.length)
    with place.path.open("rb") as source:
        source.seek(place.offset)
        left = place.length
        while left:
            piece = source.read(min(PIECE, left))
            if not piece:
                raise OSError(f"{place.path} was cut off while it was read")
            file.write(piece)
            left -= len(piece)


def _begin(tensor: Any, file: BinaryIO, name: str, length: int) -> None:
    """Let a tensor say that its bytes lie at the end of a file, and go there."""
    file.write(bytes(-file.tell() % ALIGNMENT))
    extra("onnx.external_data_helper").set_external_data(
        _with_data(tensor), name, offset=file.tell(), length=length
    )


def _with_data(tensor: Any) -> Any:
    """Onnx's helper takes only tensors that hold bytes."""
    if not tensor.HasField("raw_data"):
        tensor.raw_data = b""
    return tensor
