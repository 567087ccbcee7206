"""How a file and what became of it are compared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import passes
from reparam import Call, OnnxError, Replace, VerificationError, compile_onnx, rewrite
from reparam.algebra import batch_norm_affine, exact
from reparam.composition import compose
from reparam.onnx import running
from reparam.values import BatchNorm, Conv
from tests.onnx.files import Result, batch_norm, draw, model, node, statistics, value

POOLED = [
    node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
    node("GlobalAveragePool", "c", "p"),
    node("Squeeze", "p axes", "s"),
    batch_norm("s", "y"),
]
WEIGHTS = {"w": draw(8, 4, 3, 3), "axes": np.array([2, 3]), **statistics(8)}


@rewrite(on=BatchNorm)
def forget_epsilon(call: Call) -> Replace | None:
    """Wrong: an epsilon of a thousandth of the variance is left out."""
    norm, conv = call.value, call.inputs[0].value
    if not (isinstance(norm, BatchNorm) and isinstance(conv, Conv)):
        return None
    wrong = compose(batch_norm_affine(replace(norm, eps=0.0)), exact(conv))
    return Replace(wrong, *call.inputs[0].inputs)


def test_few_numbers_that_are_rounded_badly_are_no_difference(tmp_path: Path) -> None:
    """A mean is far less than what it is of, and less of it is lost than of the folded bias."""
    made = Result(tmp_path, model(POOLED, WEIGHTS))
    assert made.operators == {"Conv": 1, "GlobalAveragePool": 1, "Squeeze": 1}
    made.same(x=draw(2, 4, 9, 9))


@pytest.mark.parametrize("known", [True, False])
def test_a_wrong_fold_is_one_however_few_numbers_there_are(
    tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(running, "_exact", _unknown)
    norm = node("BatchNormalization", "c gamma beta mean variance", "b", epsilon=1e-3)
    nodes = [POOLED[0], norm, node("GlobalAveragePool", "b", "y")]
    onnx.save(model(nodes, WEIGHTS), tmp_path / "old.onnx")
    with pytest.raises(VerificationError, match="computes something else"):
        compile_onnx(
            tmp_path / "old.onnx", tmp_path / "new.onnx", passes=[forget_epsilon], verify=False
        )
    assert not (tmp_path / "new.onnx").exists()


def _unknown(*_: Any) -> None:
    """What torch runs of a file with operators that it does not know."""


def test_integers_alone_tell_nothing_of_roundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then weights that are rounded otherwise tell it."""
    monkeypatch.setattr(running, "_exact", _unknown)
    nodes = [
        node("Gather", "table i", "rows"),
        node("Gemm", "rows a", "g"),
        batch_norm("g", "y"),
    ]
    weights = {"table": draw(9, 8), "a": draw(8, 6), **statistics(6)}
    proto = model(nodes, weights, {"i": ("n",)}, kind=TensorProto.INT64)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(proto, tmp_path / "old.onnx")
    made = compile_onnx(tmp_path / "old.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)
    assert made.equivalence is not None
    assert made.equivalence.equivalent
    assert made.equivalence.rmse_model > 0
    left = onnx.load(tmp_path / "new.onnx").graph.node
    assert [each.op_type for each in left] == ["Gather", "Gemm"]


def test_a_file_that_the_checker_refuses_is_named(tmp_path: Path) -> None:
    proto = model(POOLED, WEIGHTS)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "old.onnx")
    with pytest.raises(OnnxError, match=r"onnx.checker refuses .*old.onnx: Field 'shape'"):
        compile_onnx(tmp_path / "old.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)


def test_what_the_reference_runs_is_compared_in_it(tmp_path: Path) -> None:
    """ONNX Runtime has no such sequences of bfloat16: it would load the result, not the source."""
    nodes = [
        node("Conv", "x w", "c"),
        batch_norm("c", "y"),
        node("SplitToSequence", "b lengths", "q", axis=1),
        node("SequenceAt", "q first", "z"),
    ]
    weights = WEIGHTS | {"lengths": np.array([2, 2]), "first": np.array(0)}
    proto = model(nodes[:2], weights)
    proto.graph.node.extend(nodes[2:])
    proto.graph.input.append(value("b", (2, 4), TensorProto.BFLOAT16))
    proto.graph.output.append(value("z", (2, 2), TensorProto.BFLOAT16))
    onnx.save(proto, tmp_path / "old.onnx")
    made = compile_onnx(tmp_path / "old.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)
    assert made.equivalence is not None
    assert [each.op_type for each in onnx.load(tmp_path / "new.onnx").graph.node] == [
        "Conv",
        "Split",
    ]


def test_what_onnx_runtime_dies_of_is_run_by_the_reference(tmp_path: Path) -> None:
    """An input that is left out, but named: it brings the process down as it is loaded."""
    nodes = [
        node("Conv", "x w", "c"),
        batch_norm("c", "b"),
        node("LayerNormalization", "b scale -", "y", axis=1),
    ]
    weights = WEIGHTS | {"scale": draw(8, 5, 5)}
    onnx.save(model(nodes, weights, inputs={"x": (1, 4, 7, 7)}), tmp_path / "old.onnx")
    made = compile_onnx(tmp_path / "old.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)
    assert made.equivalence is not None
    assert made.report.applied
