"""ONNX files: what is in them, what ONNX Runtime makes of them, and when there is none."""

import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import passes
import reparam
from fastvit_models.fastvit import FastViTConfig, create_fastvit
from reparam import export_graph
from reparam.errors import ExportError, TrainingModeError, VerificationError
from reparam.export import OnnxExport, export_onnx
from reparam.runs import float64_outputs
from reparam.verify import compare_outputs
from tests.randomised import randomised

ROOT = Path(__file__).parent.parent.parent
IMAGE = torch.linspace(-1, 1, 3 * 12 * 10).reshape(1, 3, 12, 10).sin()


class Residual(nn.Module):
    """Conv, batch norm and a skip: one convolution once it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(self.conv(x))


class Nested(nn.Module):
    """What networks take and return beside tensors."""

    def forward(
        self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None, *, more: list[Tensor]
    ) -> dict[str, Any]:
        total = x * scale + more[0] + more[1]
        return {
            "logits": total if mask is None else total * mask,
            "classes": total.argmax(1),
            "nothing": None,
            "pair": (total.mean(), 3),
            "x": x,
        }


class Flat(nn.Module):
    """Takes images of one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 12 * 10, 4)
        for parameter in self.head.parameters():  # made while tests are collected: no seed is set
            nn.init.trunc_normal_(parameter, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Windows(nn.Module):
    """Takes images of multiples of 4 alone."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 4, 4, w // 4, 4).mean((3, 5))


class Branch(nn.Module):
    """Computes something else at other sizes, and torch.export keeps silent about it."""

    def __init__(self, condition: str) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        conditions = {
            "even": h % 2 == 0,
            "high": h > w,
            "square": h != w + 1,
            "small": h * w < 200,
            "not huge": h * w < 500_000,
            "not high": h < 500_000,
        }
        return x * 2 if conditions[self.condition] else x


class Unsupported(nn.Module):
    """Uses an operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


def open_session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_file(path: Path, *inputs: Tensor) -> list[Tensor]:
    session = open_session(path)
    names = [node.name for node in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.as_tensor(array) for array in session.run(None, feed)]


def assert_file_is(model: nn.Module, path: Path, *inputs: Tensor) -> None:
    with torch.no_grad():
        outputs = model(*inputs)
    expected = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    found = run_file(path, *inputs)
    assert [t.shape for t in found] == [t.shape for t in expected]
    exact = float64_outputs(model, inputs)
    compare_outputs(expected, found, exact, other_runtime=True).raise_if_different()


def fused_residual() -> nn.Module:
    model = randomised(Residual(), torch.randn(4, 3, 12, 10))
    return reparam.compile(model, passes=passes.DEFAULT)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def test_compiled_model_becomes_one_convolution(target: Path) -> None:
    fused = fused_residual()
    found = export_onnx(fused, target, IMAGE)
    assert found.nodes == {"Conv": 1}
    assert found.total == reparam.report(fused).after.total == 1
    assert found.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
    assert found.path == target
    assert found.bytes == target.stat().st_size
    assert found.equivalence.equivalent
    assert found.checked[0] == "1×3×12×10"
    assert len(found.checked) >= 3
    assert found.remarks == ()
    for size in [(2, 3, 5, 31), (1, 3, 1, 1), (5, 3, 40, 3)]:
        assert_file_is(fused, target, torch.randn(size))


def test_file_is_clean_and_says_where_it_comes_from(target: Path) -> None:
    found = export_onnx(randomised(Residual(), torch.randn(4, 3, 12, 10)), target, IMAGE)
    proto = onnx.load(target)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.producer_name == "reparam"
    assert proto.ir_version == 10
    assert [(used.domain, used.version) for used in proto.opset_import] == [("", 20)]
    assert found.opset == 20
    assert [node.name for node in proto.graph.input] == ["x"]
    assert [node.name for node in proto.graph.output] == ["output"]
    assert "conv.weight" in {weight.name for weight in proto.graph.initializer}
    assert not proto.graph.node[0].metadata_props  # the exporter puts paths of this machine there
    assert {"Identity", "Cast", "Dropout"}.isdisjoint(found.nodes)
    assert str(ROOT).encode() not in target.read_bytes()


def test_model_is_not_changed_and_nothing_is_printed(
    target: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = randomised(Residual(), torch.randn(4, 3, 12, 10))
    model.get_submodule("bn").register_buffer("extra", torch.ones(2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    image = IMAGE.clone()
    export_onnx(model, target, image)
    assert torch.equal(image, IMAGE)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.usefixtures("without_annotation_checks")
def test_fastvit_runs_at_other_sizes(features_only: bool, target: Path) -> None:
    config = FastViTConfig((1, 1, 1, 1), 32, 2, attention=not features_only)
    model = create_fastvit(config, num_classes=7, features_only=features_only)
    fused = reparam.compile(
        randomised(model, torch.randn(2, 3, 64, 64)), passes=passes.DEFAULT, verify=False
    )
    found = export_onnx(fused, target, torch.randn(1, 3, 64, 64))
    assert found.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
    assert len(found.checked) >= 3
    names = [node.name for node in open_session(target).get_outputs()]
    assert names == ([f"output_{i}" for i in range(4)] if features_only else ["output"])
    for size in [(3, 3, 97, 161), (1, 3, 32, 32), (2, 3, 128, 64)]:
        assert_file_is(fused, target, torch.randn(size))
    assert {"BatchNormalization", "Identity", "Cast"}.isdisjoint(
        found.nodes if not features_only else set(found.nodes) - {"BatchNormalization"}
    )
    layers = reparam.report(fused).after.operators
    assert found.nodes["Conv"] == layers["Conv2d"]
    assert found.nodes["Gelu"] == layers["GELU"]


def test_inputs_and_outputs_of_every_kind(target: Path) -> None:
    x, y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    found = export_onnx(Nested().eval(), target, {"more": [y, y * 2], "x": x, "scale": 3.0})
    session = open_session(target)
    assert [node.name for node in session.get_inputs()] == ["x", "more_0", "more_1"]
    names = ["logits", "classes", "pair_0", "x_1"]
    assert [node.name for node in session.get_outputs()] == names
    axes = {0: "batch", 2: "height", 3: "width"}
    assert found.dynamic == {"x": axes, "more_0": axes, "more_1": axes}
    with torch.no_grad():
        expected = Nested()(x, 3.0, more=[y, y * 2])
    logits, classes, _, same = run_file(target, x, y, y * 2)
    assert torch.equal(classes, expected["classes"])
    assert torch.equal(same, x)
    assert logits.shape == expected["logits"].shape


def test_positional_and_keyword_inputs_are_the_same(target: Path) -> None:
    model = nn.Bilinear(3, 4, 5).eval()
    one, two = torch.randn(2, 3), torch.randn(2, 4)
    by_position = export_onnx(model, target, (one, two))
    content = target.read_bytes()
    by_keyword = export_onnx(model, target, {"input2": two, "input1": one})
    assert by_keyword == by_position
    assert target.read_bytes() == content
    assert by_position.dynamic == {"input1": {0: "batch"}, "input2": {0: "batch"}}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Flat(), "no other size was found that the model takes"),
        (Branch("even"), "at 1×3×13×4 its outputs are off by"),
        (Branch("high"), "its outputs are off by"),
        (Branch("square"), "its outputs are off by"),
        (Branch("small"), "its outputs are off by"),
        (Branch("not huge"), "it was traced for width*height < 500000 alone"),
        (Branch("not high"), "it was traced for height < 500000 alone"),
        (nn.AdaptiveAvgPool2d(4), "ONNX Runtime can't run it"),
    ],
    ids=["flat", "even", "high", "square", "small", "not huge", "not high", "pool"],
)
def test_size_that_the_file_would_be_wrong_at_is_fixed(
    model: nn.Module, reason: str, target: Path
) -> None:
    found = export_onnx(model.eval(), target, IMAGE)
    assert [list(axes.values()) for axes in found.dynamic.values()] == [["batch"]], found.remarks
    (remark,) = found.remarks
    assert remark.startswith("height and width fixed: ")
    assert reason in remark
    assert_file_is(model, target, torch.randn(3, 3, 12, 10))
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        run_file(target, torch.randn(1, 3, 13, 10))


def test_model_that_takes_multiples_stays_dynamic(target: Path) -> None:
    model = Windows().eval()
    found = export_onnx(model, target, torch.randn(2, 3, 8, 12))
    assert found.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
    assert found.remarks == ()
    assert_file_is(model, target, torch.randn(5, 3, 16, 4))


def test_static_file(target: Path) -> None:
    found = export_onnx(fused_residual(), target, IMAGE, dynamic=False)
    assert found.dynamic == {"x": {}}
    assert found.checked == ("1×3×12×10",)
    assert found.remarks == ()
    (dims,) = [node.shape for node in open_session(target).get_inputs()]
    assert dims == [1, 3, 12, 10]


def test_opset(target: Path) -> None:
    model = nn.GELU().eval()
    assert export_onnx(model, target, IMAGE, opset=21).opset == 21
    assert export_onnx(model, target, IMAGE, opset=18).nodes["Erf"] == 1
    assert onnx.load(target).opset_import[0].version == 18
    for opset in (13, 99):
        with pytest.raises(ExportError, match=rf"opset is {opset}: give one from 18 to "):
            export_onnx(model, target, IMAGE, opset=opset)


def test_weights_above_the_limit_get_a_file_of_their_own(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fused_residual()
    monkeypatch.setattr(export_graph, "LARGEST_FILE", 100)
    data = target.with_name("model.onnx.data")
    large = nn.Linear(300, 40).eval()
    found = export_onnx(large, target, torch.randn(2, 300))
    assert found.bytes == target.stat().st_size + data.stat().st_size
    assert data.stat().st_size >= 4 * 300 * 40
    assert_file_is(large, target, torch.randn(3, 300))
    assert names_in(target.parent) == {"model.onnx", "model.onnx.data"}

    kept = {path: path.read_bytes() for path in (target, data)}
    move = Path.replace

    def full(self: Path, place: Path) -> Path:
        if place == target and self.parent != target.parent:
            raise OSError(28, "No space left on device")
        return move(self, place)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ExportError, match=f"can't write {target}: No space left on device"):
        export_onnx(nn.Linear(300, 20).eval(), target, torch.randn(2, 300))
    assert {path: path.read_bytes() for path in (target, data)} == kept
    assert names_in(target.parent) == {"model.onnx", "model.onnx.data"}

    monkeypatch.undo()
    export_onnx(model, target, IMAGE)
    assert_file_is(model, target, IMAGE)


def test_a_folder_where_the_weights_would_be_stays(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_graph, "LARGEST_FILE", 100)
    folder = target.with_name("model.onnx.data")
    folder.mkdir()
    (folder / "precious").write_bytes(b"thesis")
    with pytest.raises(ExportError, match=r"can't write .*model.onnx.data: it is a folder"):
        export_onnx(nn.Linear(300, 40).eval(), target, torch.randn(2, 300))
    assert names_in(target.parent) == {"model.onnx.data"}
    assert (folder / "precious").read_bytes() == b"thesis"


@pytest.mark.parametrize("name", ["model.json", "model.ort"])
@pytest.mark.parametrize("largest", [100, 2**31], ids=["weights beside it", "weights in it"])
def test_a_file_is_onnx_whatever_it_is_called(
    name: str, largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_graph, "LARGEST_FILE", largest)
    export_onnx(nn.Linear(300, 40).eval(), tmp_path / name, torch.randn(2, 300))
    assert onnx.load(tmp_path / name, "protobuf").graph.node
    beside = {f"{name}.data"} if largest == 100 else set()
    assert names_in(tmp_path) == {name, *beside}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_wrong_translation_leaves_no_file(
    exists: bool, dynamic: bool, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exists:
        target.write_bytes(b"precious")
    translate = torch.onnx.export

    def corrupted(*args: Any, **kwargs: Any) -> Any:
        program: Any = translate(*args, **kwargs)
        weights = next(iter(program.model.graph.initializers.values()))
        assert weights.const_value is not None
        wrong = weights.const_value.numpy() * np.float32(1 + 3e-5)
        weights.const_value = onnx_tensor(wrong)
        return program

    monkeypatch.setattr(torch.onnx, "export", corrupted)
    with pytest.raises(ExportError, match="computes something else: its outputs are off") as caught:
        export_onnx(fused_residual(), target, IMAGE, dynamic=dynamic)
    assert isinstance(caught.value.__cause__, VerificationError)
    assert names_in(target.parent) == ({"model.onnx"} if exists else set())
    assert not exists or target.read_bytes() == b"precious"


def onnx_tensor(array: Any) -> Any:
    import onnx_ir

    return onnx_ir.tensor(array)


def test_full_disk_leaves_the_file_that_was_there(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.write_bytes(b"precious")
    save = onnx.save

    def on_full_disk(*args: Any, **kwargs: Any) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            save(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(onnx, "save", on_full_disk)
    with pytest.raises(ExportError, match=f"can't write {target}: File too large"):
        export_onnx(nn.Linear(300, 40).eval(), target, torch.randn(1, 300))
    assert target.read_bytes() == b"precious"
    assert names_in(target.parent) == {"model.onnx"}


def test_link_is_followed_and_file_replaced(tmp_path: Path) -> None:
    file, link = tmp_path / "file.onnx", tmp_path / "link.onnx"
    file.write_bytes(b"old")
    link.symlink_to(file)
    assert export_onnx(nn.ReLU().eval(), link, IMAGE).path == file
    assert link.is_symlink()
    assert_file_is(nn.ReLU(), file, IMAGE)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/model.onnx", "there is no folder"),
        ("file/model.onnx", "there is no folder"),
        ("folder", "it is a folder"),
        ("", "it is a folder"),
        ("/dev/null", "it is not a file that can be replaced"),
        ("/proc/model.onnx", "can't write /proc/model.onnx"),
        ("model\0.onnx", "can't write"),
        (f"{'long' * 100}.onnx", "File name too long"),
    ],
)
def test_path_that_can_not_be_written(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExportError, match=reason) as caught:
        export_onnx(nn.ReLU().eval(), path, IMAGE)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == {"file", "folder"}
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        (Unsupported(), IMAGE, "Unsupported can't be exported to ONNX: .*_linalg_svd"),
        (nn.Conv2d(5, 1, 1), IMAGE, "Conv2d does not run on the example inputs: .*5 channels"),
        (nn.Conv2d(3, 1, 1), (IMAGE, IMAGE), "can't be called like this: too many positional"),
        (nn.Conv2d(3, 1, 1), {"y": IMAGE}, "can't be called like this: missing a required arg"),
        (nn.Conv2d(3, 1, 1), (), "can't be called like this: missing a required argument"),
        (nn.Conv2d(3, 1, 1), IMAGE[:0], "the example input 'input' is empty"),
        (nn.Conv2d(3, 1, 1, device="meta"), IMAGE, "weight is on the meta device"),
        (nn.Conv2d(3, 1, 1).double(), IMAGE.double(), "ONNX Runtime can't load .* NOT_IMPLEMENTED"),
        (nn.Conv2d(3, 1, 1).bfloat16(), IMAGE.bfloat16(), "onnx.checker refuses .*bfloat16"),
        (nn.Dropout(), 3.0, "no tensor among the example inputs"),
        (nn.Softmax2d(), {"input": "x"}, "no tensor among the example inputs"),
    ],
)
def test_model_that_can_not_be_exported(
    model: nn.Module,
    inputs: Any,
    reason: str,
    target: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ExportError, match=reason) as caught:
        export_onnx(model.eval(), target, inputs)
    assert "\n" not in str(caught.value)
    assert names_in(target.parent) == set()
    assert capfd.readouterr() == ("", "")


class NoFloats(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, training=True)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (NoFloats(), "NoFloats returns no floating-point tensor to compare"),
        (DataDependent(), "DataDependent can't be exported to ONNX: .*data-dependent"),
    ],
)
def test_model_without_one_answer(
    model: nn.Module, reason: str, target: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=reason):
        export_onnx(model.eval(), target, IMAGE)
    assert names_in(target.parent) == set()
    assert capfd.readouterr() == ("", "")


def test_random_model_is_kept_and_named(target: Path) -> None:
    found = export_onnx(Noisy().eval(), target, IMAGE)
    assert found.nodes == {"Dropout": 1}
    assert found.remarks == ("the model's outputs are random: to compare them tells little",)


def test_training_mode_is_refused(target: Path) -> None:
    with pytest.raises(TrainingModeError, match="'bn'"):
        export_onnx(Residual(), target, IMAGE)
    assert names_in(target.parent) == set()


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_missing_extra_is_named(module: str, tmp_path: Path) -> None:
    program = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
import torch
from reparam.errors import MissingExtraError
from reparam.export import export_onnx

try:
    export_onnx(torch.nn.ReLU().eval(), {str(tmp_path / "x.onnx")!r}, torch.randn(1, 2))
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (
        f"the module {module!r} is not installed; install it with: pip install 'reparam[onnx]'"
    )
    assert names_in(tmp_path) == set()


def test_result_is_plain_data(target: Path) -> None:
    found = export_onnx(nn.ReLU().eval(), target, IMAGE)
    assert isinstance(found, OnnxExport)
    assert isinstance(found.nodes, Mapping)
    assert isinstance(found.checked, Sequence)
    assert found.total == sum(found.nodes.values()) == 1
