"""How a file and what became of it are compared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import passes
from reparam import (
    Call,
    OnnxCompilation,
    OnnxError,
    Replace,
    VerificationError,
    compile_onnx,
    rewrite,
)
from reparam.algebra import batch_norm_affine, exact
from reparam.composition import compose
from reparam.onnx import running
from reparam.onnx.fatal import kills_the_runtime
from reparam.onnx.reading import read
from reparam.onnx.translate import translated
from reparam.values import BatchNorm, Conv
from tests.onnx.files import Result, Sizes, batch_norm, draw, model, node, statistics, value

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


def test_a_wrong_fold_beside_one_of_half_precision_that_is_not(tmp_path: Path) -> None:
    """Only what new weights were rounded to tells how far off a file may be."""
    nodes = [
        POOLED[0],
        node("BatchNormalization", "c gamma beta mean variance", "b", epsilon=1e-3),
        node("Cast", "half", "one", to=TensorProto.FLOAT),
        node("Mul", "b one", "y"),
    ]
    onnx.save(model(nodes, WEIGHTS | {"half": np.array([1], np.float16)}), tmp_path / "old.onnx")
    with pytest.raises(VerificationError, match="computes something else"):
        compile_onnx(
            tmp_path / "old.onnx", tmp_path / "new.onnx", passes=[forget_epsilon], verify=False
        )


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


@pytest.mark.parametrize("ending", ["json", "ort", "textproto"])
@pytest.mark.parametrize("reference", [True, False])
def test_a_file_is_what_it_holds_and_not_what_it_is_called(
    tmp_path: Path, ending: str, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither onnx nor ONNX Runtime is asked to guess."""
    monkeypatch.setattr(running, "kills_the_runtime", lambda _: reference)
    target = tmp_path / f"new.{ending}"
    for source in (tmp_path / f"old.{ending}", tmp_path / "old.onnx"):
        onnx.save(model(POOLED, WEIGHTS), source, "protobuf")
        made = compile_onnx(source, target, passes=passes.DEFAULT)
        assert made.equivalence is not None
        left = onnx.load(target, "protobuf").graph.node
        assert [each.op_type for each in left] == ["Conv", "GlobalAveragePool", "Squeeze"]


@pytest.mark.parametrize("first", ["x", "z"])
def test_sizes_of_one_name_are_one_number(tmp_path: Path, first: str) -> None:
    """Or a product of two inputs would never run."""
    inputs: dict[str, Sizes] = {"x": ("b", "t"), "z": ("t", 8)}
    given = {name: inputs[name] for name in (first, *(inputs.keys() - {first}))}
    nodes = [node("MatMul", "x z", "p"), node("Mul", "p scale", "m"), node("Add", "m shift", "y")]
    weights = {"scale": draw(8), "shift": draw(8, seed=1)}
    made = Result(tmp_path, model(nodes, weights, given)).made
    assert made.equivalence is not None
    shapes = {"x": "{}×{}", "z": "{1}×8"}
    sizes = [(2, 64), (2, 96), (1, 33)]
    assert made.checked == tuple(" and ".join(shapes[n].format(*s) for n in given) for s in sizes)


def test_a_size_that_no_other_has_is_drawn_for_itself(tmp_path: Path) -> None:
    """The batch is that of all inputs; an image is as wide as it likes."""
    nodes = [node("Conv", "x w", "c"), batch_norm("c", "y"), node("Relu", "e", "r")]
    inputs: dict[str, Sizes] = {"x": ("n", 4, "h", None), "e": ("n", None)}
    made = Result(tmp_path, model(nodes, WEIGHTS, inputs, ("y", "r"))).made
    assert made.checked == ("2×4×64×64 and 2×64", "2×4×64×96 and 2×96", "1×4×33×33 and 1×33")


def died(*_: Any, **__: Any) -> None:
    pytest.fail("the process would be gone")


@pytest.mark.parametrize("fatal", ["Split", "BatchNormalization", "function"])
def test_results_that_are_left_out_are_run_by_the_reference(
    tmp_path: Path, fatal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime runs into what is not there; only some operators look."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", died)
    split = helper.make_node("Split", ["b", "lengths"], ["y", "", "z"], axis=1)
    norm = helper.make_node("BatchNormalization", ["b", "gamma", "beta", "mean", "variance"],
                            ["y", "", "z"], training_mode=1)  # fmt: skip
    called = helper.make_node("Pieces", ["b", "lengths"], ["y", "z"], domain="acme")
    last = {"Split": split, "BatchNormalization": norm, "function": called}[fatal]
    weights = WEIGHTS | {"lengths": np.array([2, 4, 2])}
    nodes = [node("Conv", "x w", "c"), batch_norm("c", "b")]
    proto = model(nodes, weights, {"x": (1, 4, 7, 7)}, outputs=("b",))
    proto.graph.node.append(last)
    del proto.graph.output[:]
    second = (8,) if last is norm else (1, 2, 5, 5)
    proto.graph.output.extend([value("y", (1, None, 5, 5)), value("z", second)])
    if last is called:
        names = (["b", "lengths"], ["y", "z"])
        opset = helper.make_opsetid("", 17)
        proto.functions.append(helper.make_function("acme", "Pieces", *names, [split], [opset]))
        proto.opset_import.add(domain="acme", version=1)
    onnx.save(proto, tmp_path / "old.onnx")
    made = compile_onnx(tmp_path / "old.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)
    assert made.equivalence is not None
    assert made.report.applied


def test_an_instance_norm_of_nothing_is_run_by_the_reference(tmp_path: Path) -> None:
    """ONNX Runtime loads it, but as it runs, the process is gone."""
    nodes = [
        node("Conv", "x w", "c"),
        batch_norm("c", "b"),
        node("Slice", "b start end axis", "d"),
        node("InstanceNormalization", "d gamma beta", "y"),
    ]
    bounds = {"start": np.array([100]), "end": np.array([2**31 - 1]), "axis": np.array([2])}
    onnx.save(model(nodes, WEIGHTS | bounds, {"x": (1, 4, "h", "w")}), tmp_path / "old.onnx")
    made = compile_onnx(tmp_path / "old.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)
    assert made.equivalence is not None
    assert made.report.applied


@pytest.mark.parametrize(
    ("pads", "size", "killing"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], "h", False),
        ([0, 0, -9, 0, 0, 0, 0, 0], "h", True),
        ([0, 0, -9, 0, 0, 0, 0, 0], 16, False),
    ],
)
def test_which_paddings_leave_nothing(
    tmp_path: Path, pads: list[int], size: int | str, killing: bool
) -> None:
    nodes = [node("Pad", "x pads", "p"), node("InstanceNormalization", "p gamma beta", "y")]
    weights = {name: statistics(4)[name] for name in ("gamma", "beta")}
    proto = model(nodes, weights | {"pads": np.array(pads)}, {"x": (1, 4, size, 16)})
    onnx.save(proto, tmp_path / "old.onnx")
    assert kills_the_runtime(translated(read(tmp_path / "old.onnx"))) is killing


CONVOLVED = [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), batch_norm("c", "b")]
CLASSES = [*CONVOLVED, node("GlobalAveragePool", "b", "g"), node("Flatten", "g", "f")]


def of_type(name: str, kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    return helper.make_value_info(name, kind)


def compiled(
    folder: Path, nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]
) -> OnnxCompilation:
    """A file with whatever outputs, compiled; the graph of the result is in `new.onnx`."""
    proto = model(CONVOLVED, WEIGHTS | {"half": np.array([4, 4])}, outputs=("b",), opset=18)
    del proto.graph.node[:], proto.graph.output[:]
    proto.graph.node.extend(nodes)
    proto.graph.output.extend(outputs)
    proto.opset_import.add(domain="ai.onnx.ml", version=2)
    onnx.save(proto, folder / "old.onnx")
    return compile_onnx(folder / "old.onnx", folder / "new.onnx", passes=passes.DEFAULT)


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
MAPS = helper.make_sequence_type_proto(
    helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
)
OTHERS = {
    "optional": ([*CONVOLVED, node("Optional", "b", "y")], helper.make_optional_type_proto(FLOATS)),
    "sequence": (
        [*CONVOLVED, node("Softmax", "b", "s"), node("SplitToSequence", "s half", "y", axis=1)],
        helper.make_sequence_type_proto(FLOATS),
    ),
    "map": (
        [*CLASSES, node("ZipMap", "f", "y", domain="ai.onnx.ml", classlabels_int64s=[*range(8)])],
        MAPS,
    ),
}


@pytest.mark.parametrize("kind", [*OTHERS])
def test_outputs_that_are_no_tensors(tmp_path: Path, kind: str) -> None:
    """They are compared tensor by tensor, number by number."""
    nodes, told = OTHERS[kind]
    made = compiled(tmp_path, nodes, [of_type("y", told)])
    assert made.equivalence is not None
    assert made.equivalence.equivalent
    assert made.equivalence.dtype == "float32"
    assert 0 < made.equivalence.rmse_model < 1e-5 * made.equivalence.rms
    assert "BatchNormalization" not in made.report.after.operators


@pytest.mark.parametrize("kind", [*OTHERS])
def test_a_wrong_fold_among_outputs_that_are_no_tensors(tmp_path: Path, kind: str) -> None:
    nodes, told = OTHERS[kind]
    compiled(tmp_path, nodes, [of_type("y", told)])
    proto = onnx.load(tmp_path / "old.onnx")
    next(n for n in proto.graph.node if n.op_type == "BatchNormalization").attribute.append(
        helper.make_attribute("epsilon", 1e-2)
    )
    onnx.save(proto, tmp_path / "old.onnx")
    with pytest.raises(VerificationError, match="computes something else"):
        compile_onnx(
            tmp_path / "old.onnx", tmp_path / "new.onnx", passes=[forget_epsilon], verify=False
        )


def test_labels_beside_numbers(tmp_path: Path) -> None:
    labels = node("LabelEncoder", "m", "label", domain="ai.onnx.ml", keys_int64s=[*range(8)],
                  values_strings=[*"abcdefgh"], default_string="?")  # fmt: skip
    nodes = [*CLASSES, node("ArgMax", "f", "m", axis=1, keepdims=0), labels]
    outputs = [value("f", ("n", 8)), value("label", ("n",), TensorProto.STRING)]
    made = compiled(tmp_path, nodes, outputs)
    assert made.equivalence is not None
    assert made.equivalence.rmse_model > 0
    assert made.report.applied


@pytest.mark.parametrize("depth", [1, 6])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_inside(tmp_path: Path, depth: int, name: str) -> None:
    """Float32 comes and goes, as converters write it; folded weights are rounded all the same."""
    kind = getattr(TensorProto, name.upper())
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes, weights = [node("Cast", "x", "x0", to=kind)], dict[str, Any]()
    for i in range(depth):
        held = {"w": draw(8, 8 if i else 4, 3, 3, seed=i) / 6, **statistics(8)}
        weights |= {f"{key}{i}": array.astype(dtype) for key, array in held.items()}
        nodes += [
            node("Conv", f"x{i} w{i}", f"c{i}", pads=[1, 1, 1, 1]),
            node("BatchNormalization", f"c{i} gamma{i} beta{i} mean{i} variance{i}", f"b{i}"),
            node("Relu", f"b{i}", f"x{i + 1}"),
        ]
    nodes.append(node("Cast", f"x{depth}", "y", to=TensorProto.FLOAT))
    onnx.save(model(nodes, weights), tmp_path / "old.onnx")
    made = compile_onnx(tmp_path / "old.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)
    assert "BatchNormalization" not in made.report.after.operators
    if made.equivalence is not None:  # no kernel here takes bfloat16, perhaps
        assert made.equivalence.dtype == "float32"
        assert made.equivalence.equivalent


def test_a_wrong_fold_in_half_precision(tmp_path: Path) -> None:
    """An epsilon of a tenth of the variance is more than any rounding."""
    weights = {name: array.astype(np.float16) for name, array in WEIGHTS.items() if name != "axes"}
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Conv", "h w", "c"),
        node("BatchNormalization", "c gamma beta mean variance", "b", epsilon=0.1),
        node("Cast", "b", "y", to=TensorProto.FLOAT),
    ]
    onnx.save(model(nodes, weights), tmp_path / "old.onnx")
    with pytest.raises(VerificationError, match="computes something else"):
        compile_onnx(
            tmp_path / "old.onnx", tmp_path / "new.onnx", passes=[forget_epsilon], verify=False
        )
