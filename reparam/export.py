"""Write a model as an ONNX file that has been run, and only then give it its name."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from reparam.errors import ExportError
from reparam.export_check import check, shapes_text
from reparam.export_graph import Draft, NotDynamicError, draft, extra, open_axes, opset_of, quiet
from reparam.export_model import FlatModel
from reparam.training import check_mode
from reparam.verify import Equivalence

DEFAULT_OPSET = 20
"""The first opset that has GELU as one operator."""

LOWEST_OPSET = 18
"""What torch's exporter translates to; anything lower would be converted down from it."""


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that computes what the model computes.

    Attributes:
        path: of the file. The weights of a model above 2 GB are beside it, in `<name>.data`.
        opset: its version of the ONNX operators.
        nodes: how often each operator stands in its graph.
        dynamic: by input, the axes that may have any size, and their names.
        equivalence: ONNX Runtime's outputs (`fused`) and the model's own (`model`), both against
            the model in float64: of all sizes that were tried, those in the middle.
        checked: shapes of the inputs that the file was run on, `1×3×256×256`.
        remarks: why an axis that was to be dynamic is not; what the comparison does not tell.
        bytes: size on disk, weights included.
    """

    path: Path
    opset: int
    nodes: Mapping[str, int]
    dynamic: Mapping[str, Mapping[int, str]]
    equivalence: Equivalence
    checked: tuple[str, ...]
    remarks: tuple[str, ...]
    bytes: int

    @property
    def total(self) -> int:
        """The number of nodes."""
        return sum(self.nodes.values())


def export_onnx(
    fused: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    opset: int | None = None,
    dynamic: bool = True,
) -> OnnxExport:
    """Write a model as an ONNX file.

    The file is checked before it gets its name: by `onnx.checker`, and in ONNX Runtime against the
    model itself, by the measure of `reparam.verify`, on the example and at other sizes. If
    anything fails there is no new file, and one that was there before is as it was.

    Args:
        fused: the model, compiled or not, in evaluation mode. It is not changed.
        path: of the file. Its folder has to exist; a file of that name is replaced.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments. Tensors
            become inputs of the file, named like the parameters; the rest is fixed.
        opset: version of the ONNX operators to use; by default, the lowest with GELU as one.
        dynamic: leave the batch (the first axis) and, of images `(N, C, H, W)`, height and width
            open. An axis at which no size but the example's is right is fixed; the result says so.

    Raises:
        TrainingModeError: if the model is in training mode.
        MissingExtraError: if `reparam[onnx]` is not installed.
        ExportError: if the model can't be exported, the file computes something else, or it can't
            be written.
    """
    for module in ("onnx", "onnxscript", "onnx_graphsurgeon", "onnxruntime"):
        extra(module)
    check_mode(fused)
    opset = DEFAULT_OPSET if opset is None else opset
    newest: int = extra("onnx").defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= newest:
        raise ExportError(f"opset is {opset}: give one from {LOWEST_OPSET} to {newest}")
    target = target_file(path)
    model = FlatModel(fused, example_inputs)
    try:
        with tempfile.TemporaryDirectory(prefix=".reparam-", dir=target.parent) as folder, quiet():
            return _export(model, target, Path(folder), opset, dynamic)
    except OSError as error:
        raise ExportError(f"can't write {target}: {error.strerror or error}") from error


def _export(model: FlatModel, target: Path, folder: Path, opset: int, dynamic: bool) -> OnnxExport:
    """Draft, write and check, with ever fewer axes left open; then move into place."""
    attempts = (("batch", "height", "width"), ("batch",), ()) if dynamic else ((),)
    reasons: dict[str, str] = {}
    for kinds in attempts:
        try:
            found = draft(model, kinds, opset, folder / target.name)
            files = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
            equivalence, checked = check(files[-1], model, found)
            break
        except NotDynamicError as error:
            if not kinds:
                raise ExportError(f"{model.title} can't be exported to ONNX: {error}") from error
            dropped = kinds[1:] or kinds
            reasons |= {kind: str(error) for kind in dropped if kind not in reasons}
    else:
        raise AssertionError("the last attempt has no dynamic axis")
    result = OnnxExport(
        path=target,
        opset=opset_of(found.proto),
        nodes=dict(sorted(Counter(node.op_type for node in found.proto.graph.node).items())),
        dynamic=_by_input(model, found),
        equivalence=equivalence,
        checked=tuple(map(shapes_text, checked)),
        remarks=_remarks(model, found, reasons if dynamic else None),
        bytes=sum(file.stat().st_size for file in files),
    )
    publish(files, target, folder)
    return result


def _remarks(model: FlatModel, found: Draft, reasons: Mapping[str, str] | None) -> tuple[str, ...]:
    """Which axes are fixed, and why, if that was not asked for; and what else is to be said."""
    fixed: dict[str, list[str]] = {}
    for axis, kind in open_axes(model.example).items():
        if axis not in found.axes and reasons is not None:
            because = reasons.get(kind, "the model computes with the size itself")
            fixed.setdefault(because, []).append(kind)
    remarks = [f"{' and '.join(dict.fromkeys(kinds))} fixed: {why}" for why, kinds in fixed.items()]
    if model.random:
        remarks.append("the model's outputs are random: to compare them tells little")
    return tuple(remarks)


def _by_input(model: FlatModel, found: Draft) -> dict[str, dict[int, str]]:
    dynamic: dict[str, dict[int, str]] = {name: {} for name in model.input_names}
    for (number, axis), label in found.labels.items():
        dynamic[model.input_names[number]][axis] = label
    return dynamic


def target_file(path: str | os.PathLike[str]) -> Path:
    """The file to write, links followed.

    Raises:
        ExportError: if there can't be such a file.
    """
    try:
        target = Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise ExportError(f"can't write {path!r}: {_reason(error)}") from error
    check_replaceable(target, path)
    if not target.parent.is_dir():
        raise ExportError(f"can't write {path}: there is no folder {target.parent}")
    return target


def check_replaceable(place: Path, told: str | os.PathLike[str] | None = None) -> None:
    """Refuse to put a file where something is that is none, or that may not be written.

    Args:
        place: of the file.
        told: what the caller calls it; by default, the place.

    Raises:
        ExportError: if there can't be such a file.
    """
    told = place if told is None else told
    try:
        folder, there = place.is_dir(), place.exists()
    except (OSError, ValueError) as error:
        raise ExportError(f"can't write {os.fspath(told)!r}: {_reason(error)}") from error
    if folder:
        raise ExportError(f"can't write {told}: it is a folder")
    if there and not (place.is_file() and os.access(place, os.W_OK)):
        raise ExportError(f"can't write {told}: it is not a file that can be replaced")


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error


def publish(files: list[Path], target: Path, folder: Path) -> None:
    """Move files into place, the model last; if one can't be moved, all is as it was.

    One that takes the place of another has the permissions of that.

    Raises:
        ExportError: if there is something else than a file in the place of one.
        OSError: if one can't be moved.
    """
    *weights, model = files
    for file in weights:
        check_replaceable(target.with_name(file.name))
    for file in files:
        if (old := target.with_name(file.name)).exists():
            shutil.copymode(old, file)
    aside = Path(tempfile.mkdtemp(dir=folder))
    kept: list[tuple[Path, Path]] = []
    moved: list[Path] = []
    try:
        for file in weights:
            place = target.with_name(file.name)
            if place.exists():
                place.replace(aside / file.name)
                kept.append((aside / file.name, place))
            file.replace(place)
            moved.append(place)
        model.replace(target)
    except BaseException:
        for place in moved:
            place.unlink()
        for file, place in kept:
            file.replace(place)
        raise
