"""Files that are damaged, or that mean harm: one sentence, and nothing is left behind."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import passes
from reparam import ExportError, OnnxError, PassError, VerificationError, compile_onnx
from reparam.onnx import compiling
from reparam.onnx.nodes import Draft
from tests.onnx.files import Result, batch_norm, draw, model, node, statistics
from tests.onnx.mutated import outcome

WEIGHTS = {"w": draw(4, 4, 3, 3), **statistics(4)}
CONV = node("Conv", "x w", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
FINE = ("refused", "right", "not run")


def proto() -> onnx.ModelProto:
    return model([CONV, batch_norm("a", "y")], WEIGHTS)


def refusal(path: Path) -> str:
    """Why a file is refused, in one line; nothing is left beside it."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(OnnxError) as caught:
        compile_onnx(path, path.with_name("fused.onnx"), passes=passes.DEFAULT)
    assert sorted(path.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def externally(path: Path, location: str) -> None:
    """Write a file whose weights lie elsewhere, by what it says."""
    made = proto()
    onnx.save(made, path, save_as_external_data=True, location="weights", size_threshold=0)
    made = onnx.load(path, load_external_data=False)
    for tensor in made.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = location
    path.write_bytes(made.SerializeToString())


@pytest.mark.parametrize("location", ["../secret", "a/../../secret", "{root}/secret", "link", ""])
def test_row_52_weights_outside_of_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"x" * 4096)
    (folder / "link").symlink_to(tmp_path / "secret")
    externally(folder / "model.onnx", location.format(root=tmp_path))
    assert "lie outside of its folder" in refusal(folder / "model.onnx")


def test_row_52_weights_in_a_folder_that_is_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "weights").write_bytes(b"x" * 4096)
    (folder / "inside").symlink_to(tmp_path / "outside")
    externally(folder / "model.onnx", "inside/weights")
    assert "lie outside of its folder" in refusal(folder / "model.onnx")


def test_row_52_a_function_whose_weights_lie_outside(tmp_path: Path) -> None:
    constant = onnx.TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4])
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="../secret")
    body = [
        onnx.helper.make_node("Constant", [], ["c"], value=constant),
        node("Add", "u c", "v"),
    ]
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("acme", 1)]
    function = onnx.helper.make_function("acme", "Shifted", ["u"], ["v"], body, opsets[:1])
    made = proto()
    made.functions.append(function)
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    assert "lie outside of its folder" in refusal(tmp_path / "model.onnx")


@pytest.mark.parametrize("offset", ["4000", "-1", "many"])
def test_row_53_weights_that_are_cut_off(tmp_path: Path, offset: str) -> None:
    externally(tmp_path / "model.onnx", "weights")
    made = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    entries = {entry.key: entry for entry in made.graph.initializer[0].external_data}
    entries["offset"].value = offset
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    assert "weights" in refusal(tmp_path / "model.onnx")


def test_row_53_sizes_beyond_the_bytes(tmp_path: Path) -> None:
    made = proto()
    made.graph.initializer[0].dims[0] = 2**40
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    assert "declares" in refusal(tmp_path / "model.onnx")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_row_53_files_that_are_cut_off(tmp_path: Path, share: float) -> None:
    content = proto().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content[: int(len(content) * share)])
    refusal(tmp_path / "model.onnx")


def test_row_53_no_onnx_at_all(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("<html>Not found</html>")
    assert "no ONNX file" in refusal(tmp_path / "model.onnx")
    assert "can't read" in refusal(tmp_path / "absent.onnx")


def test_row_53_something_that_nothing_computes(tmp_path: Path) -> None:
    made = proto()
    del made.graph.node[0]
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    refusal(tmp_path / "model.onnx")


def test_row_55_places_that_cannot_be_written(tmp_path: Path) -> None:
    onnx.save(proto(), tmp_path / "model.onnx")
    (tmp_path / "folder.onnx").mkdir()
    for target in (tmp_path / "absent" / "fused.onnx", tmp_path / "folder.onnx"):
        with pytest.raises(ExportError, match="can't write"):
            compile_onnx(tmp_path / "model.onnx", target, passes=passes.DEFAULT)


def test_row_55_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(proto(), tmp_path / "model.onnx")
    (tmp_path / "fused.onnx").write_text("what was there before")

    def full(*_: object) -> list[Path]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiling, "save", full)
    assert "No space left on device" in refusal(tmp_path / "model.onnx")
    assert (tmp_path / "fused.onnx").read_text() == "what was there before"


def test_row_55_a_wrong_result_takes_nobodys_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a node written wrongly, the file would be run, and refused."""
    own = Draft.hold
    monkeypatch.setattr(Draft, "hold", lambda *args: own(*args[:2], args[2] * 1.01, args[3]))
    (tmp_path / "fused.onnx").write_text("what was there before")
    with pytest.raises(VerificationError, match="computes something else"):
        Result(tmp_path, proto())
    assert (tmp_path / "fused.onnx").read_text() == "what was there before"


def test_passes_of_torch_fx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="only rewrites can run"):
        Result(tmp_path, proto(), chosen=[lambda module: module])


def test_numbers_that_are_no_numbers(tmp_path: Path) -> None:
    """A variance below zero makes none, in the original and in what becomes of it."""
    weights = WEIGHTS | {"variance": np.array([-1.0, 1.0, 0.5, 2.0], np.float32)}
    made = Result(tmp_path, model([CONV, batch_norm("a", "y")], weights))
    assert "BatchNormalization" in made.operators


def judged(seeds: range) -> Counter[str]:
    counts = Counter(outcome(seed) for seed in seeds)
    assert not counts.keys() - set(FINE), counts.keys() - set(FINE)
    return counts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each file is compiled in a forked process")
def test_damaged_files() -> None:
    counts = judged(range(40))
    assert counts["refused"] > 10
    assert counts["right"] > 5


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_more_damaged_files(first: int) -> None:
    judged(range(first, first + 250))
