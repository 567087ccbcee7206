"""Run an ONNX file in ONNX Runtime, at the example's sizes and at others, and compare."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reparam.errors import ExportError, VerificationError
from reparam.export_graph import Axis, Draft, NotDynamicError, extra
from reparam.export_model import FlatModel, first_line
from reparam.verify import Equivalence, compare_outputs, float64_outputs

# How the axes of each kind are resized. The first two are always tried: odd sizes, one image wider
# and one higher than it was. The rest are for models that take multiples of something only.
_RESIZES: tuple[Mapping[str, tuple[float, int]], ...] = (
    {"batch": (1, 1), "height": (1, 1), "width": (0.5, 1)},
    {"batch": (2, 1), "height": (0.5, 1), "width": (1, 2)},
    {"batch": (1, 1), "height": (1, 32), "width": (1, 64)},
    {"batch": (1, 1), "height": (2, 0), "width": (2, 0)},
)

Shapes = tuple[tuple[int, ...], ...]


def check(path: Path, model: FlatModel, draft: Draft) -> tuple[Equivalence, list[Shapes]]:
    """Run a file and compare it with the model that it was made from.

    It is run on the example; where it has dynamic axes also at other sizes, and at sizes that
    break what the trace took for granted, as far as the model itself takes them.

    Returns:
        The worst figures, and all shapes of inputs it was run at.

    Raises:
        ExportError: if the file is not valid, does not run, or computes something else.
        NotDynamicError: if that is so at other sizes only, or if none could be tried.
    """
    session = _open(path)
    try:
        worst = _compare(session, model, model.example)
    except VerificationError as error:
        raise ExportError(f"the exported model computes something else; {error}") from error
    shapes = tuple(tuple(tensor.shape) for tensor in model.example)
    done, varied = [shapes], set[Axis]()
    for other in _other_shapes(shapes, draft):
        different = {a for a in draft.axes if other[a[0]][a[1]] != shapes[a[0]][a[1]]}
        if other in done or not different or (different <= varied and len(done) > 2):
            continue
        inputs = _resized(model.example, other)
        if not _accepts(model, inputs):
            continue
        try:
            figures = _compare(session, model, inputs)
        except (ExportError, VerificationError) as error:
            raise NotDynamicError(f"at {_text(other)} {error}") from error
        worst = max(worst, figures, key=lambda f: f.rmse_fused)
        done.append(other)
        varied |= different
    fixed = sorted(set(draft.axes.values()) - {draft.axes[axis] for axis in varied})
    if set(draft.axes) - varied:
        raise NotDynamicError(f"the model takes no other {' and '.join(fixed)} that was tried")
    return worst, done


def _text(shapes: Shapes) -> str:
    return " and ".join("×".join(map(str, shape)) for shape in shapes)


def _open(path: Path) -> Any:
    runtime = extra("onnxruntime")
    try:
        extra("onnx").checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"onnx.checker refuses the exported model: {first_line(error)}") from error
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime can't load the exported model: {first_line(error)}"
        ) from error
