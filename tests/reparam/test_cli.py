"""The console script as a user or a script meets it: output, errors, exit codes, files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from reparam import cli
from reparam.errors import ExportError, MissingExtraError, VerificationError
from tests.onnx.files import batch_norm, draw, model, node, statistics

WEIGHTS = {"w": draw(8, 4, 3, 3), **statistics(8)}

SCRIPT = Path(sys.executable).with_name("reparam")

NETS = """
import warnings
import torch
from torch import nn

class Net(nn.Module):
    default_cfg = {"input_size": (3, 16, 16)}

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.branches = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)])
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        y = self.first(x)
        return self.scale * sum(branch(y) for branch in self.branches)

def build():
    print("building a net")
    warnings.warn("a warning of the user's")
    return Net()

def broken():
    return Net(width=3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a user's, with models, and with passes of the user's own."""
    (tmp_path / "acme_nets.py").write_text(NETS)
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "__init__.py").write_text("raise AssertionError('not ours')\n")
    return tmp_path


def reparam(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # other tests run beside this one
        capture_output=True,
        text=True,
        check=False,
    )


def run_file(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that comes out of a file in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path)
    (x,) = session.get_inputs()
    (y,) = session.run(None, {x.name: np.zeros(shape, np.float32)})
    return np.asarray(y).shape


def test_compile_a_registered_model_as_json(tmp_path: Path) -> None:
    sizes = ("--input-size", "3,64,64")
    done = reparam("compile", "fastvit_t8", "-o", "t8.onnx", "--json", *sizes, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["source"] == "fastvit_t8"
    assert result["input_size"] == [3, 64, 64]
    assert result["random_weights"] is True
    assert result["report"]["after"]["operators"]["Conv2d"] == 52
    assert result["onnx"]["nodes"]["Conv"] == 52
    assert result["onnx"]["equivalence"]["equivalent"] is True
    assert result["onnx"]["bytes"] == (tmp_path / "t8.onnx").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["t8.onnx"]
    assert run_file(tmp_path / "t8.onnx", (2, 3, 65, 97)) == (2, 1000)


def test_compile_a_factory_beside_a_folder_of_passes(folder: Path) -> None:
    done = reparam("compile", "acme_nets:build", "-o", "net.onnx", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "building a net\n"
    assert done.stdout.startswith("acme_nets:build, input 1×3×16×16\n")
    for text in ("Operators", "BatchNorm2d", "ONNX file", "2 Conv", "batch, height, width"):
        assert text in done.stdout
    assert run_file(folder / "net.onnx", (3, 3, 20, 24)) == (3, 8, 20, 24)


def test_explain_a_factory_as_json(folder: Path) -> None:
    done = reparam("explain", "acme_nets:build", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {remark["rule"] for remark in result["report"]["applied"]} >= {"fold_batchnorm"}
    assert result["random_weights"] is False
    assert "onnx" not in result


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["explain", "fastvit_t9"],
            "error: no model is named 'fastvit_t9': did you mean fastvit_t",
        ),
        (["explain", "acme_nets:broken"], "error: acme_nets:broken can't be built: TypeError: "),
        (["compile", "fastvit_t8", "-o", "absent/x.onnx"], "error: can't write absent/x.onnx: "),
        (["explain", "fastvit_t8", "--input-size", "4,8,8"], "error: fastvit_t8 can't take an in"),
    ],
)
def test_what_fails_says_so_in_one_sentence(arguments: list[str], says: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    done = reparam(*arguments, folder=folder)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1
    assert sorted(path for path in folder.iterdir() if path.name != "__pycache__") == before


def test_interrupted(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def build():\n"
        "    pathlib.Path('started').touch()\n"
        "    time.sleep(60)\n"
    )
    command = [SCRIPT, "compile", "slow:build", "-o", "x.onnx"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have it ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as running:
        while not (tmp_path / "started").exists() and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate()
    assert running.returncode == 130
    assert "Traceback" not in stderr
    assert not (tmp_path / "x.onnx").exists()


def invoke(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a run inside this process."""
    result = CliRunner().invoke(cli.app, arguments, prog_name="reparam")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a model that is built in no time."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "acme_nets:Net"
    sys.modules.pop("acme_nets", None)


def test_explain_in_tables(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, stdout, stderr = invoke("explain", small)
    assert (code, stderr) == (0, "")
    for text in ("Operators", "whole model: equivalent", "Fused", "fold_batchnorm"):
        assert text in stdout


def test_weights_that_nobody_gave_are_called_random() -> None:
    code, stdout, stderr = invoke("explain", "timm:test_resnet", "--input-size", "3,32,32")
    assert (code, stderr) == (0, "")
    assert "1×3×32×32; weights are random: no checkpoint given" in stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Exit codes: 0, done"),
        (["no-such-command"], "No such command"),
        (["compile", "fastvit_t8"], "Missing option '-o'"),
        (["explain", "fastvit_t8", "--input-size", "3,x"], "'3,x' is no size such as 3,256,256"),
        (["explain", "fastvit_t8", "--input-size", "3,0,0"], "'3,0,0' is no size"),
        (["compile", "fastvit_t8", "-o", "x.onnx", "--opset", "3"], "'--opset'"),
    ],
)
def test_usage_errors(arguments: list[str], says: str) -> None:
    code, stdout, stderr = invoke(*arguments)
    assert code == 2
    assert says in stdout + stderr


def test_version() -> None:
    assert invoke("--version") == (0, "reparam 0.1.0\n", "")


def test_help_tells_the_exit_codes() -> None:
    for command in ([], ["compile"], ["explain"]):
        assert "3, the result does" in " ".join(invoke(*command, "--help")[1].split())


def output_refusal(path: Path) -> str:
    # The model is not even looked for: the output comes first.
    code, stdout, stderr = invoke("compile", "no_such_model", "-o", str(path))
    assert (code, stdout) == (1, "")
    return stderr


def test_outputs_that_are_refused_before_the_work(tmp_path: Path) -> None:
    assert "end it in .onnx" in output_refusal(tmp_path / "x.pth")
    (tmp_path / "folder.onnx").mkdir()
    assert "not a file that can be replaced" in output_refusal(tmp_path / "folder.onnx")
    assert "there is no folder" in output_refusal(tmp_path / "absent" / "x.onnx")
    assert "no model is named" in output_refusal(tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="even root can write everywhere else")
def test_folder_that_cannot_be_written_to() -> None:
    assert output_refusal(Path("/proc/x.onnx")).startswith("error: can't write /proc/x.onnx: ")


def test_missing_extra_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    assert "pip install 'reparam[onnx]'" in output_refusal(tmp_path / "x.onnx")


def exported_from_a_difference() -> ExportError:
    error = ExportError("the exported model computes something else")
    error.__cause__ = VerificationError("different")
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (VerificationError("the compiled model computes something else"), 3),
        (exported_from_a_difference(), 3),
        (MissingExtraError("onnx", "onnx"), 1),
    ],
)
def test_errors_as_json(
    error: Exception, expected: int, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "export_onnx", fail)
    code, stdout, stderr = invoke("compile", small, "-o", "x.onnx", "--json")
    assert (code, stderr) == (expected, "")
    described = {"type": type(error).__name__, "message": str(error)}
    assert json.loads(stdout) == {"error": described}


def test_unverified_on_request(small: str) -> None:
    code, stdout, _ = invoke("compile", small, "-o", "x.onnx", "--no-verify")
    assert code == 0
    assert "unverified" in stdout


def test_python_m_reparam_is_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reparam", "explain", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Usage: reparam explain" in done.stdout


def test_a_file(tmp_path: Path) -> None:
    """A model that exists only as a file, compiled and explained."""
    made = model([node("Conv", "x w", "c", kernel_shape=[3, 3]), batch_norm("c", "y")], WEIGHTS)
    onnx.save(made, tmp_path / "model.onnx")
    done = reparam("compile", "model.onnx", "-o", "fused.onnx", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 Conv" in done.stdout
    assert "checked at" in done.stdout
    assert run_file(tmp_path / "fused.onnx", (2, 4, 9, 8)) == (2, 8, 7, 6)
    done = reparam("explain", "model.onnx", "--json", folder=tmp_path)
    result = json.loads(done.stdout)
    assert result["report"]["after"]["operators"] == {"Conv": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fused.onnx", "model.onnx"]


def test_a_file_takes_no_options_of_models(tmp_path: Path) -> None:
    for option in (["--opset", "18"], ["--input-size", "3,8,8"], ["--checkpoint", "x.pth"]):
        code, _, stderr = invoke("compile", "model.onnx", "-o", "fused.onnx", *option)
        assert code == 2
        assert "does not go with an ONNX file" in stderr
    code, _, stderr = invoke("explain", str(tmp_path / "absent.onnx"))
    assert (code, stderr.count("\n")) == (1, 1)
