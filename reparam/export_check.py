"""Run an ONNX file in ONNX Runtime, at the example's sizes and at others, and compare."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from reparam.devices import CPU
from reparam.errors import ExportError, VerificationError
from reparam.export_graph import Axis, Draft, NotDynamicError, extra
from reparam.export_model import FlatModel, first_line
from reparam.runs import Run, float64_outputs, varied
from reparam.verify import VARIANTS, Equivalence, judged

Shapes = tuple[tuple[int, ...], ...]

Resize = Mapping[str, tuple[float, int]]
"""By kind of axis, what its size is multiplied with, and what is added then."""

# Always tried: odd sizes, of images wider than the example's and of images higher.
_RESIZES: tuple[Resize, ...] = (
    {"batch": (1, 1), "height": (0.25, 1), "width": (1, 2)},
    {"batch": (0.5, 1), "height": (1, 1), "width": (0.25, 2)},
)
# For models that take multiples of something only.
_MULTIPLES: tuple[Resize, ...] = (
    {"batch": (1, 1), "height": (1, 32), "width": (1, 64)},
    {"batch": (1, 1), "height": (2, 0), "width": (2, 0)},
)
# Sizes that may break a condition: of these the model is tried at the small ones.
_SMALL: tuple[tuple[float, int], ...] = ((1, -1), (1, 1), (0.5, 0), (0.25, 0), (0, 1), (2, 0))
_LARGE: tuple[tuple[float, int], ...] = ((8, 1), (64, 0), (0, 2**20))


# The example is varied until each output has so many elements, or so often: a few elements say
# little of the errors that are to be compared.
_ELEMENTS = 128
_MOST_RUNS = 32


def check(path: Path, model: FlatModel, draft: Draft) -> tuple[Equivalence, tuple[Shapes, ...]]:
    """Run a file and compare it with the model that it was made from.

    It is run on the example; where it has dynamic axes also at other sizes, among them some that
    break what the trace took for granted, as far as the model itself takes them.

    Returns:
        The worst figures, and the shapes of the inputs that the file was run on.

    Raises:
        ExportError: if the file is not valid, does not run, or computes something else.
        NotDynamicError: if that is so at other sizes only, or if no other size could be tried.
    """
    session = _open(path)
    first = _shapes(model.example)
    try:
        runs = _run_example(session, model)
        figures = _judge(runs)
    except VerificationError as error:
        raise ExportError(f"the exported model computes something else: {error}") from error
    done: list[Shapes] = [first]
    varied: set[Axis] = set()
    for shapes, only_if_needed in _other_shapes(first, draft):
        axes = {(i, a) for i, a in draft.axes if shapes[i][a] != first[i][a]}
        if shapes in done or not axes or (only_if_needed and varied == set(draft.axes)):
            continue
        inputs = _resized(model.example, shapes)
        if not _accepts(model, inputs):
            continue
        try:
            runs.append(_run(session, model, inputs))
            figures = _judge(runs)
        except (ExportError, VerificationError) as error:
            raise NotDynamicError(f"at {shapes_text(shapes)} {error}") from error
        done.append(shapes)
        varied |= axes
    if varied != set(draft.axes):
        raise NotDynamicError("no other size was found that the model takes")
    return figures, tuple(done)


def shapes_text(shapes: Shapes) -> str:
    """The shapes of all inputs, to be read."""
    return " and ".join("×".join(map(str, shape)) for shape in shapes)


def _open(path: Path) -> Any:
    runtime = extra("onnxruntime")
    try:
        extra("onnx").checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(
            f"onnx.checker refuses the exported model: {first_line(error)}"
        ) from error
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # be it called .ort
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime can't load the exported model: {first_line(error)}"
        ) from error


def _run_example(session: Any, model: FlatModel) -> list[Run]:
    """Run the example, and variants of it if there is little to compare, or a difference."""
    runs = [_run(session, model, model.example)]
    elements = min((t.numel() for t in runs[0].exact), default=_ELEMENTS)
    wanted = min(ceil(_ELEMENTS / max(elements, 1)), _MOST_RUNS)
    if runs[0].exact and not judged(runs, other_runtime=True).equivalent:
        wanted = max(wanted, VARIANTS)
    for shift in range(1, wanted):
        inputs = varied(model.example, shift)
        if _accepts(model, inputs):
            runs.append(_run(session, model, inputs))
    return runs


def _run(session: Any, model: FlatModel, inputs: Sequence[Tensor]) -> Run:
    """Run both, and the model in float64, on the same inputs.

    Raises:
        ExportError: if ONNX Runtime can't, or the model can't in float64.
        VerificationError: if shapes or dtypes differ.
    """
    with torch.no_grad():
        expected = [t.cpu() for t in model(*(t.clone() for t in inputs))]
    names = [node.name for node in session.get_inputs()]
    try:
        feed = {
            name: tensor.cpu().contiguous().numpy()
            for name, tensor in zip(names, inputs, strict=True)
        }
        found = [torch.as_tensor(array, device=CPU) for array in session.run(None, feed)]
    except Exception as error:
        raise ExportError(f"ONNX Runtime can't run it: {first_line(error)}") from error
    for name, y_model, y in zip(model.output_names, expected, found, strict=True):
        if (y.shape, y.dtype) != (y_model.shape, y_model.dtype):
            raise VerificationError(
                f"{name} is {tuple(y.shape)} {y.dtype}, not {tuple(y_model.shape)} {y_model.dtype}"
            )
    try:
        exact = [t.cpu() for t in float64_outputs(model, tuple(inputs))]
    except Exception as error:
        raise ExportError(
            f"the model does not run in float64, to compare with: {first_line(error)}"
        ) from error
    floats = [i for i, t in enumerate(expected) if t.is_floating_point()]
    return Run([expected[i] for i in floats], [found[i] for i in floats], exact)


def _judge(runs: Sequence[Run]) -> Equivalence:
    """Compare all runs.

    Raises:
        VerificationError: if the file is not as good as the model is.
    """
    figures = judged(runs, other_runtime=True)
    if not figures.equivalent:
        raise VerificationError(
            f"its outputs are off by {figures.rmse_fused:.1e} (RMS, against float64), "
            f"the model's own by {figures.rmse_model:.1e}, of {figures.rms:.1e}"
        )
    return figures


def _accepts(model: FlatModel, inputs: Sequence[Tensor]) -> bool:
    try:
        with torch.no_grad():
            return all(t.numel() for t in model(*(t.clone() for t in inputs)))
    except Exception:
        return False


def _other_shapes(first: Shapes, draft: Draft) -> Iterator[tuple[Shapes, bool]]:
    """Other shapes to try; with True those that are of use only while an axis has kept its size."""

    def resized(resize: Resize) -> Shapes:
        return _changed(first, {axis: resize[kind] for axis, kind in draft.axes.items()})

    tried = [resized(resize) for resize in _RESIZES]
    for condition in draft.conditions:
        code = compile(condition, "<condition>", "eval")
        if all(_holds(code, shapes) for shapes in tried):
            breaking = _breaking_shapes(code, condition, first, draft)
            tried.extend(() if breaking is None else (breaking,))
    yield from ((shapes, False) for shapes in tried)
    yield from ((resized(resize), True) for resize in _MULTIPLES)


def _breaking_shapes(code: CodeType, condition: str, first: Shapes, draft: Draft) -> Shapes | None:
    """Shapes near the example's at which a condition of the trace does not hold, if there are any.

    Raises:
        NotDynamicError: if only shapes break it that are too large to be tried.
    """
    pairs = list(itertools.combinations_with_replacement(draft.axes, 2))
    pairs.sort(key=lambda pair: pair[0] != pair[1])
    for steps in (_SMALL, (*_SMALL, *_LARGE)):
        for (one, two), step, other in itertools.product(pairs, steps, steps):
            shapes = _changed(first, {one: step, two: other})
            if _holds(code, shapes):
                continue
            if steps is _SMALL:
                return shapes
            raise NotDynamicError(f"it was traced for {_readable(condition, draft)} alone")
    return None


def _readable(condition: str, draft: Draft) -> str:
    """A condition in the file's own names."""
    return re.sub(
        r"sizes\[(\d+), (\d+)\]",
        lambda size: draft.labels.get((int(size[1]), int(size[2])), size[0]),
        condition,
    )


def _changed(shapes: Shapes, steps: Mapping[Axis, tuple[float, int]]) -> Shapes:
    changed = [list(shape) for shape in shapes]
    for (number, axis), (factor, addend) in steps.items():
        changed[number][axis] = max(1, int(factor * changed[number][axis]) + addend)
    return tuple(map(tuple, changed))


def _shapes(tensors: Sequence[Tensor]) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors)


def _resized(tensors: Sequence[Tensor], shapes: Shapes) -> list[Tensor]:
    """Tensors of other shapes made of the same numbers; what is added to a batch is mirrored."""
    found: list[Tensor] = []
    for tensor, shape in zip(tensors, shapes, strict=True):
        larger = tensor
        for axis, size in enumerate(shape):
            index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
            larger = larger.index_select(axis, index)
        if shape and shape[0] > len(tensor):
            larger[len(tensor) :] = larger[len(tensor) :].flip(-1)
        found.append(larger)
    return found


def _holds(code: CodeType, shapes: Shapes) -> bool:
    """Whether a condition holds, or can't be evaluated here."""
    sizes = {(i, axis): n for i, shape in enumerate(shapes) for axis, n in enumerate(shape)}
    names: dict[str, Any] = {"__builtins__": {}, "max": max, "min": min, "sizes": sizes}
    try:
        return bool(eval(code, names))
    except Exception:
        return True
