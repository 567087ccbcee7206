"""A model as an ONNX graph: traced by torch.export, translated, cleaned, its tensors named."""

import importlib
import importlib.metadata
import logging
import re
import sys
import threading
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reparam.errors import MissingExtraError
from reparam.export_model import FlatModel, distinct, first_line

EXTRA = {"ml_dtypes", "numpy", "onnx", "onnx_graphsurgeon", "onnx_ir", "onnxruntime", "onnxscript"}
"""What `reparam[onnx]` installs."""

LARGEST_FILE = 2**31 - 2**27
"""Bytes of weights that one protobuf message holds, with room for the graph."""

Axis = tuple[int, int]
"""Number of an input, and an axis of it."""


class NotDynamicError(Exception):
    """An axis can't be left open, with the reason. Not an error: the next attempt fixes it."""


@dataclass(frozen=True)
class Draft:
    """An ONNX file that nobody has run yet.

    Attributes:
        proto: the `onnx.ModelProto` that is in it.
        axes: kind ("batch", "height", "width") of each axis that is dynamic in it.
        labels: what the file calls each of them.
        conditions: Python expressions of `sizes[input, axis]` that hold for the example and that
            the trace took for granted.
    """

    proto: Any
    axes: Mapping[Axis, str]
    labels: Mapping[Axis, str]
    conditions: Sequence[str]


def draft(model: FlatModel, kinds: Sequence[str], opset: int, path: Path) -> Draft:
    """Trace, translate and write a model, with axes of these kinds left open where that can be.

    Weights above protobuf's limit go into a file of their own, `<name>.data`.

    The first axis of an input is the batch, if it is as long as that of the first input. The last
    two of a four-dimensional floating-point one are height and width, if they are as long as those
    of the first such input.

    Raises:
        NotDynamicError: if torch's exporter fails, with its reason.
        OSError: if the file can't be written.
    """
    wanted = {axis: kind for axis, kind in open_axes(model.example).items() if kind in kinds}
    try:
        program = _trace(model, wanted)
        exporter: Any = torch.onnx  # its annotations are not complete
        translated = exporter.export(program, dynamo=True, opset_version=opset, verbose=False)
    except Exception as error:
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        raise NotDynamicError(first_line(error)) from error
    proto = _proto(translated, path)
    if opset_of(proto) != opset:
        raise NotDynamicError(f"torch's exporter gives opset {opset_of(proto)}, not {opset}")
    graph, symbols = _clean(proto, model, wanted)
    labels = {(i, axis): graph.inputs[i].shape[axis] for i, axis in wanted}
    labels = {axis: label for axis, label in labels.items() if isinstance(label, str)}
    proto = extra("onnx_graphsurgeon").export_onnx(graph)
    extra("onnx").save(proto, path, format="protobuf")  # whatever it is called
    return Draft(
        proto, {axis: wanted[axis] for axis in labels}, labels, _conditions(program, symbols)
    )


def _proto(translated: Any, path: Path) -> Any:
    """A translation as a message; with the weights in a file if they are too large for it."""
    weights = [value.const_value for value in translated.model.graph.initializers.values()]
    if sum(weight.nbytes for weight in weights if weight is not None) <= LARGEST_FILE:
        return translated.model_proto
    data = f"{path.name}.data"
    extra("onnx_ir").save(translated.model, path, format="protobuf", external_data=data)
    return extra("onnx").load(path, format="protobuf", load_external_data=False)


def opset_of(proto: Any) -> int:
    """The version of the standard operators that a model uses."""
    return next(used.version for used in proto.opset_import if used.domain in ("", "ai.onnx"))


def extra(module: str) -> Any:
    """Import a module of the extra, untyped.

    Raises:
        MissingExtraError: naming the extra, if it or something that it needs is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        if missing not in EXTRA:
            raise
        raise MissingExtraError(missing, "onnx") from error


@contextmanager
def quiet() -> Generator[None]:
    """Keep the exporters' remarks about themselves away from the user's terminal."""
    graphsurgeon = extra("onnx_graphsurgeon.logger").G_LOGGER
    severity = graphsurgeon.severity
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        graphsurgeon.severity = graphsurgeon.ERROR
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        graphsurgeon.severity = severity
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Muted:
    """A stream that drops what this thread writes: torch.export prints graphs that it gives up."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_axes(tensors: Sequence[Tensor]) -> dict[Axis, str]:
    """The axes of inputs that may be left open, and the kind of each."""
    axes: dict[Axis, str] = {}
    images = [t for t in tensors if t.ndim == 4 and t.is_floating_point()]
    for number, tensor in enumerate(tensors):
        if tensor.ndim and tensor.shape[:1] == tensors[0].shape[:1]:
            axes[number, 0] = "batch"
        if any(tensor is image and image.shape[2:] == images[0].shape[2:] for image in images):
            axes |= {(number, 2): "height", (number, 3): "width"}
    return axes


def _trace(model: FlatModel, wanted: Mapping[Axis, str]) -> Any:
    shapes = [
        {a: torch.export.Dim.AUTO for a in range(t.ndim) if (number, a) in wanted}
        for number, t in enumerate(model.example)
    ]
    # As torch's own ONNX exporter does it: else an example of size 1 fixes the axis to 1.
    config: Any = importlib.import_module("torch.fx.experimental._config")
    muted: Any = _Muted(sys.stderr)
    with torch.no_grad(), config.patch(backed_size_oblivious=True), redirect_stderr(muted):
        return torch.export.export(
            model, tuple(model.example), dynamic_shapes=(tuple(shapes),), strict=False
        )


def _conditions(program: Any, symbols: Mapping[str, Axis]) -> list[str]:
    """What the trace took for granted of the sizes of inputs, as expressions of `sizes`."""
    # Private, but nowhere else: the translation to ONNX drops these conditions without a word.
    guards: Sequence[str] = getattr(program, "_guards_code", ())
    size = re.compile(r"L\['tensors'\]\[(\d+)\]\.size\(\)\[(\d+)\]")
    found = [size.sub(r"sizes[\1, \2]", guard) for guard in guards]
    for symbol, bounds in program.range_constraints.items():
        axis = symbols.get(str(symbol))
        if axis is not None:
            number, place = axis
            found.append(f"{bounds.lower} <= sizes[{number}, {place}]")
            if bounds.upper < 2**40:
                found.append(f"sizes[{number}, {place}] <= {bounds.upper}")
    return found


def _clean(proto: Any, model: FlatModel, wanted: Mapping[Axis, str]) -> tuple[Any, dict[str, Axis]]:
    """The graph in order and in its final names, and the trace's symbol for each dynamic axis."""
    surgeon = extra("onnx_graphsurgeon")
    graph, variable = surgeon.import_onnx(proto), surgeon.Variable
    graph.name = "main"
    graph.producer_name, graph.producer_version = "reparam", _version()
    graph.ir_version = proto.ir_version
    if len(graph.inputs) != len(model.input_names) or len(graph.outputs) != len(model.output_names):
        raise NotDynamicError(
            f"the exporter kept {len(graph.inputs)} inputs and {len(graph.outputs)} outputs of "
            f"{len(model.input_names)} and {len(model.output_names)}"
        )
    graph.cleanup().toposort()
    symbols: dict[str, Axis] = {}
    dimensions: dict[str, str] = {}
    for (number, axis), kind in wanted.items():
        symbol = graph.inputs[number].shape[axis]
        if isinstance(symbol, str) and symbol not in symbols:
            symbols[symbol] = (number, axis)
            taken = kind in dimensions.values()
            dimensions[symbol] = f"{model.input_names[number]}_{kind}" if taken else kind
    tensors: dict[str, Any] = graph.tensors()
    for tensor, name in zip(graph.inputs, model.input_names, strict=True):
        _rename(tensors, tensor, name)
    for tensor, name in zip(graph.outputs, model.output_names, strict=True):
        _rename(tensors, tensor, name)
    for name, tensor in list(tensors.items()):
        plain = name.removeprefix("model.")  # the attribute of FlatModel
        if plain not in tensors:
            _rename(tensors, tensor, plain)
        if isinstance(tensor, variable) and tensor.shape is not None:
            tensor.shape = [_substituted(size, dimensions) for size in tensor.shape]
    return graph, symbols


def _rename(tensors: dict[str, Any], tensor: Any, name: str) -> None:
    """Give a tensor a name; whichever has it now gets another one."""
    holder = tensors.get(name)
    if holder is tensor:
        return
    if holder is not None:
        holder.name = distinct([name], tensors)[0]
        tensors[holder.name] = holder
    del tensors[tensor.name]
    tensor.name = name
    tensors[name] = tensor


def _substituted(size: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(size, str):
        return size
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size)


def _version() -> str:
    try:
        return importlib.metadata.version("reparam")
    except importlib.metadata.PackageNotFoundError:
        return ""  # from a checkout that is not installed
