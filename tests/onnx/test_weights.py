"""Weights of every kind and wherever they lie: shared, given as inputs, in files of their own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import passes
from reparam import ExportError, OnnxError, compile_onnx
from reparam.onnx import saving
from tests.onnx.files import (
    IMAGE,
    Result,
    batch_norm,
    draw,
    model,
    node,
    session,
    statistics,
    value,
)

X = draw(2, 4, 9, 8)
WEIGHTS = {"w": draw(4, 4, 3, 3), **statistics(4)}
PADS: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
NODES = [node("Conv", "x w", "a", **PADS), batch_norm("a", "y")]
BEHIND = [NODES[0], batch_norm("a", "b"), node("Relu", "b", "c"), node("Conv", "c v", "y")]
WIDER = WEIGHTS | {"v": draw(64, 4, 1, 1)}
"""A weight that no pass touches."""


def held(proto: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in proto.graph.initializer}


def test_a_weight_that_two_layers_read(tmp_path: Path) -> None:
    """The one with a norm gets a weight of its own, the other keeps the shared one."""
    nodes = [
        node("Conv", "x w", "a", **PADS),
        batch_norm("a", "b"),
        node("Relu", "b", "c"),
        node("Conv", "c w", "y", **PADS),
    ]
    made = Result(tmp_path, model(nodes, WEIGHTS))
    assert made.operators == {"Conv": 2, "Relu": 1}
    assert "w" in held(made.after)
    assert not held(made.after) & set(statistics(4))
    made.same(x=X)


def test_statistics_that_two_norms_read(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "a", **PADS),
        batch_norm("a", "b"),
        node("Relu", "b", "c"),
        batch_norm("c", "y"),
    ]
    made = Result(tmp_path, model(nodes, WEIGHTS))
    assert made.operators == {"Conv": 1, "Relu": 1, "BatchNormalization": 1}
    assert set(statistics(4)) < held(made.after)
    made.same(x=X)


def test_a_weight_that_is_an_input(tmp_path: Path) -> None:
    """It is only a default: who runs the file may give another."""
    proto = model(NODES, WEIGHTS)
    proto.graph.input.append(value("w", (4, 4, 3, 3)))
    made = Result(tmp_path, proto)
    assert made.operators == {"Conv": 1, "BatchNormalization": 1}
    assert [each.name for each in made.after.graph.input] == ["x", "w"]
    made.same(x=X)
    made.same(x=X, w=draw(4, 4, 3, 3, seed=9))


@pytest.mark.parametrize("kind", ["UINT2", "INT2", "INT4", "FLOAT6E2M3", "FLOAT6E3M2"])
@pytest.mark.parametrize("lies", ["raw", "listed", "outside"])
def test_elements_of_less_than_a_byte(tmp_path: Path, kind: str, lies: str) -> None:
    """Several share a byte, and no pass reads them."""
    if not hasattr(TensorProto, kind) or onnx.defs.onnx_opset_version() < 25:
        pytest.skip("this version of ONNX has no such elements")
    number = getattr(TensorProto, kind)
    proto = model(NODES, WEIGHTS, {"x": (1, 4, 3, 1)}, opset=25)
    array = np.array([0, 1] * 6).astype(onnx.helper.tensor_dtype_to_np_dtype(number))
    packed = onnx.helper.make_tensor("q", number, (4, 3, 1), array, raw=lies != "listed")
    proto.graph.initializer.extend([packed, numpy_helper.from_array(np.float32(0.5), "scale")])
    proto.graph.node.append(node("DequantizeLinear", "q scale", "z"))
    proto.graph.output.append(value("z", (4, 3, 1)))
    proto.ir_version = 13
    source, target = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(proto, source, save_as_external_data=lies == "outside", size_threshold=0)
    made = compile_onnx(source, target, passes=passes.DEFAULT)
    assert made.report.after.operators == {"Conv": 1, "DequantizeLinear": 1}
    (kept,) = (each for each in onnx.load(target).graph.initializer if each.name == "q")
    assert np.array_equal(numpy_helper.to_array(kept), array.reshape(4, 3, 1))


@pytest.mark.parametrize("name", ["float16", "float64", "bfloat16"])
def test_dtypes(tmp_path: Path, name: str) -> None:
    kind = getattr(TensorProto, {"float64": "DOUBLE"}.get(name, name.upper()))
    proto = model(NODES, WEIGHTS)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for each in (*proto.graph.input, *proto.graph.output):
        each.type.tensor_type.elem_type = kind
    made = Result(tmp_path, proto)
    assert made.operators == {"Conv": 1}
    assert {tensor.data_type for tensor in made.after.graph.initializer} == {kind}
    if name != "bfloat16":  # which no kernel of ONNX Runtime's takes here
        tolerance = {"float16": 2e-3, "float64": 1e-12}[name]
        made.same(tolerance, x=X.astype(name))


def externally(proto: onnx.ModelProto, path: Path, **options: Any) -> None:
    onnx.save(
        proto,
        path,
        save_as_external_data=True,
        size_threshold=0,
        convert_attribute=False,
        **options,
    )


@pytest.mark.parametrize("one", [True, False])
def test_weights_in_files_of_their_own(tmp_path: Path, one: bool) -> None:
    nodes = [*NODES[:1], batch_norm("a", "b"), node("Conv", "b v", "c"), node("Relu", "c", "d"),
             node("Conv", "d u", "y")]  # fmt: skip
    weights = WEIGHTS | {"v": draw(64, 4, 1, 1), "u": draw(64, 64, 1, 1)}
    options: dict[str, Any] = {"location": "weights.bin"} if one else {}
    externally(model(nodes, weights), tmp_path / "old.onnx", all_tensors_to_one_file=one, **options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    made = compile_onnx(tmp_path / "old.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)
    assert made.report.after.operators == {"Conv": 3, "Relu": 1}
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() - before.keys() == {"new.onnx", "new.onnx.data"}
    assert {name: after[name] for name in before} == before
    assert len(after["new.onnx"]) < 4096
    files = [tmp_path / name for name in ("old.onnx", "new.onnx")]
    old, new = (session(path).run(None, {"x": X})[0] for path in files)
    assert np.abs(old - new).max() < 1e-4 * np.abs(old).max()


def test_where_weights_are_once_all_are_folded(tmp_path: Path) -> None:
    """Then nothing is copied, and what is new is in the file itself."""
    externally(model(NODES, WEIGHTS), tmp_path / "old.onnx", location="weights")
    compile_onnx(tmp_path / "old.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)
    assert {each.name for each in tmp_path.iterdir()} == {"old.onnx", "weights", "new.onnx"}


def test_a_file_that_replaces_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    externally(model(NODES, WEIGHTS), path, location="model.onnx.data")
    expected = session(path).run(None, {"x": X})[0]
    compile_onnx(path, path, passes=passes.DEFAULT)
    assert [each.op_type for each in onnx.load(path).graph.node] == ["Conv"]
    found = session(path).run(None, {"x": X})[0]
    assert np.abs(expected - found).max() < 1e-4 * np.abs(expected).max()
    assert {each.name for each in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}


@pytest.mark.parametrize("target", ["new.onnx", "new.onnx.data"])
def test_a_target_that_would_take_the_weights_of_its_source(tmp_path: Path, target: str) -> None:
    """As after `mv new.onnx old.onnx`, which leaves the weights where they were."""
    externally(model(NODES, WEIGHTS), tmp_path / "old.onnx", location="new.onnx.data")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OnnxError, match=r"old.onnx has its weights in new.onnx.data, .*: give"):
        compile_onnx(tmp_path / "old.onnx", tmp_path / target, passes=passes.DEFAULT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    compile_onnx(tmp_path / "old.onnx", tmp_path / "other.onnx", passes=passes.DEFAULT)
    assert (tmp_path / "new.onnx.data").read_bytes() == before["new.onnx.data"]


def test_a_folder_where_the_weights_of_a_target_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays with all that is in it, whether or not it is known beforehand that there are any."""
    folder = tmp_path / "new.onnx.data"
    folder.mkdir()
    (folder / "precious").write_bytes(b"thesis")
    externally(model(NODES, WEIGHTS), tmp_path / "outside.onnx", location="weights")
    onnx.save(model(NODES, WEIGHTS), tmp_path / "inside.onnx")
    compile_onnx(tmp_path / "inside.onnx", tmp_path / "new.onnx", passes=passes.DEFAULT)
    monkeypatch.setattr(saving, "LARGEST_FILE", 100)
    before = sorted(tmp_path.rglob("*"))
    for source in ("inside.onnx", "outside.onnx"):
        with pytest.raises(ExportError, match=r"can't write .*new.onnx.data: it is a folder"):
            compile_onnx(tmp_path / source, tmp_path / "new.onnx", passes=passes.DEFAULT)
    assert sorted(tmp_path.rglob("*")) == before
    assert (folder / "precious").read_bytes() == b"thesis"


def test_a_target_called_like_what_is_put_aside(tmp_path: Path) -> None:
    """Old weights make place for the new ones, and not on the new model."""
    externally(model(BEHIND, WIDER), tmp_path / "old.onnx", location="weights")
    for _ in range(2):
        compile_onnx(tmp_path / "old.onnx", tmp_path / "kept", passes=passes.DEFAULT)
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"old.onnx", "weights", "kept", "kept.data"}
    expected, found = (session(tmp_path / n).run(None, {"x": X})[0] for n in ("old.onnx", "kept"))
    assert np.abs(expected - found).max() < 1e-4 * np.abs(expected).max()


def test_whoever_could_not_read_a_file_can_not_read_the_new_one(tmp_path: Path) -> None:
    externally(model(BEHIND, WIDER), tmp_path / "old.onnx", location="weights")
    files = [tmp_path / name for name in ("new.onnx", "new.onnx.data")]
    (tmp_path / "plain").touch()
    compile_onnx(tmp_path / "old.onnx", files[0], passes=passes.DEFAULT)
    assert {file.stat().st_mode for file in files} == {(tmp_path / "plain").stat().st_mode}
    for file, mode in zip(files, (0o600, 0o640), strict=True):
        file.chmod(mode)
    compile_onnx(tmp_path / "old.onnx", files[0], passes=passes.DEFAULT)
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o640]


def test_the_weights_of_a_target_do_not_replace_its_source(tmp_path: Path) -> None:
    externally(model(BEHIND, WIDER), tmp_path / "net.data", location="weights")
    before = (tmp_path / "net.data").read_bytes()
    with pytest.raises(OnnxError, match=r"weights of net might replace .*net.data: give"):
        compile_onnx(tmp_path / "net.data", tmp_path / "net", passes=passes.DEFAULT)
    assert (tmp_path / "net.data").read_bytes() == before
    assert not (tmp_path / "net").exists()


def test_more_than_one_message_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is above 2 GB gets a file for its weights; here, what is above 100 bytes."""
    monkeypatch.setattr(saving, "LARGEST_FILE", 100)
    monkeypatch.setattr(saving, "SMALLEST", 16)
    made = Result(tmp_path, model(NODES, WEIGHTS))
    assert (tmp_path / "fused.onnx.data").stat().st_size >= 4 * 4 * 9 * 4
    assert made.made.bytes > (tmp_path / "fused.onnx").stat().st_size
    made.same(x=X)


def test_a_constant_node(tmp_path: Path) -> None:
    constant = onnx.helper.make_node(
        "Constant", [], ["w"], "constant", value=numpy_helper.from_array(WEIGHTS["w"], "value")
    )
    made = Result(tmp_path, model([constant, *NODES], statistics(4)))
    assert made.operators == {"Conv": 1}
    made.same(x=X)


@pytest.mark.parametrize("constant", [False, True])
def test_weights_whose_names_are_like_those_that_are_made_up(
    tmp_path: Path, constant: bool
) -> None:
    """A product with a factor is held beside the file's own weights, and replaces none of them."""
    weights = {name: draw(6, 6, seed=seed) for seed, name in enumerate(("weight", "weight_2"))}
    nodes = [
        node("Gemm", "x weight", "a", alpha=2.0),
        node("Gemm", "a weight_2", "b"),
        node("Relu", "b", "c"),
        node("Gemm", "c weight", "d", alpha=0.5),
        node("Gemm", "d weight_2", "y"),
    ]
    if constant:
        content = numpy_helper.from_array(weights.pop("weight_2"), "value")
        nodes.insert(0, onnx.helper.make_node("Constant", [], ["weight_2"], value=content))
    made = Result(tmp_path, model(nodes, weights, {"x": ("n", 6)}))
    assert made.operators == {"Gemm": 2, "Relu": 1}
    made.same(x=draw(3, 6))


def test_a_scale_of_float64_is_no_convolution(tmp_path: Path) -> None:
    """ONNX Runtime has none in float64; the matrix product behind the reshape made it seem one."""
    nodes = [
        batch_norm("x", "a"),
        node("BatchNormalization", "a variance beta mean variance", "b"),
        node("Relu", "b", "o"),
        node("Reshape", "a sizes", "c"),
        node("Transpose", "c", "d", perm=[0, 2, 1]),
        node("MatMul", "d k", "y"),
    ]
    weights = {"k": draw(4, 3, dtype=np.float64), **statistics(4, np.float64)}
    proto = model(nodes, weights | {"sizes": np.array([0, 4, -1])}, outputs=("o", "y"),
                  kind=TensorProto.DOUBLE)  # fmt: skip
    made = Result(tmp_path, proto)
    assert "Conv" not in made.operators
    assert "BatchNormalization" not in made.operators
    made.same(1e-12, x=X.astype(np.float64))


def test_an_initializer_that_is_an_output(tmp_path: Path) -> None:
    proto = model(NODES, WEIGHTS)
    proto.graph.output.append(value("gamma", (4,)))
    made = Result(tmp_path, proto)
    assert made.operators == {"Conv": 1}
    _, gamma = made.same(x=X)
    assert np.array_equal(gamma, WEIGHTS["gamma"])


def test_a_sparse_weight_stays(tmp_path: Path) -> None:
    dense = np.zeros((4, 6), np.float32)
    dense[1, 2], dense[3, 5] = 2.0, -1.0
    nodes = [node("MatMul", "x s", "m"), batch_norm("m", "y")]
    proto = model(nodes, statistics(6) | {"s": dense}, {"x": IMAGE[:2]})
    (kept,) = (tensor for tensor in proto.graph.initializer if tensor.name == "s")
    proto.graph.initializer.remove(kept)
    rows = np.flatnonzero(dense)
    values = numpy_helper.from_array(dense.flatten()[rows], "s")
    places = numpy_helper.from_array(rows.astype(np.int64), "s_places")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4, 6]))
    made = Result(tmp_path, proto)
    assert list(made.after.graph.sparse_initializer) == list(proto.graph.sparse_initializer)
    made.same(x=draw(5, 4))


LARGE = (2_200_000, 256)
"""Rows and columns of a table above 2 GB."""

COMPILE = """
import sys
from pathlib import Path

import passes, reparam

made = reparam.compile_onnx(*sys.argv[1:], passes=passes.DEFAULT)
assert made.equivalence is not None and made.equivalence.equivalent
peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
print(1024 * int(peak.split()[1]))
"""


@pytest.mark.long
def test_a_file_above_2_gb(tmp_path: Path) -> None:
    """It is copied in pieces: at no time is it in memory."""
    table = onnx.TensorProto(name="table", data_type=TensorProto.FLOAT, dims=LARGE)
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="table.bin")
    nodes = [
        node("Gather", "table i", "rows"),
        node("Reshape", "rows sizes", "x"),
        node("Conv", "x w", "a", **PADS),
        batch_norm("a", "y"),
    ]
    weights = WEIGHTS | {"sizes": np.array([-1, 4, 8, 8])}
    proto = model(nodes, weights, {"i": ("n",)}, kind=TensorProto.INT64)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    proto.graph.initializer.append(table)
    size = 4 * LARGE[0] * LARGE[1]
    with (tmp_path / "table.bin").open("wb") as file:  # whose middle takes no place on the disk
        file.write(draw(3, LARGE[1]).tobytes())
        file.truncate(size - 4 * LARGE[1])
        file.seek(0, 2)
        file.write(draw(1, LARGE[1]).tobytes())
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(proto, old)
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, old, new], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < size / 2
    after = onnx.load(new, load_external_data=False)
    assert [each.op_type for each in after.graph.node] == ["Gather", "Reshape", "Conv"]
    assert (tmp_path / "new.onnx.data").stat().st_size >= size
    feed = {"i": np.array([0, 1, 2, LARGE[0] - 1])}
    expected, found = (session(path).run(None, feed)[0] for path in (old, new))
    assert np.abs(expected[-1]).max() > 0
    assert np.abs(expected - found).max() < 1e-4 * np.abs(expected).max()
    for path in (tmp_path / "table.bin", tmp_path / "new.onnx.data"):
        path.unlink()  # pytest would keep them for three runs
