"""The demo on real images: what it shows, and when it fails."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor, fx, nn

import reparam
from examples import digits

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/digits.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def read_row(name: str, output: str) -> tuple[float, float]:
    """The two figures of a row of the table."""
    cells = re.search(rf"{name} +│ +([\d.,]+)\D* │ +([\d.,]+)", output)
    assert cells, output
    before, after = (float(cell.replace(",", "")) for cell in cells.groups())
    return before, after


def test_shows_the_same_predictions_from_fewer_operators(tmp_path: Path) -> None:
    target = tmp_path / "digits.onnx"
    done = run("--epochs", "1", "--output", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 450 predictions differ." in done.stdout
    accuracy, fused_accuracy = read_row("accuracy, held-out images", done.stdout)
    assert accuracy == fused_accuracy
    for name in ("operators", "parameters"):
        before, after = read_row(name, done.stdout)
        assert before > after > 0
    for batch in (1, 64):
        assert all(latency > 0 for latency in read_row(f"latency, batch {batch}", done.stdout))
    assert "Declined" in done.stdout
    assert target.exists()  # which reparam.export_onnx has run


def test_a_differing_prediction_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def miscompile(model: nn.Module, images: Tensor) -> fx.GraphModule:
        fused = compile_correctly(model, images)
        with torch.no_grad():
            for parameter in fused.get_submodule("head").parameters():
                parameter.neg_()
        return fused

    compile_correctly = reparam.compile
    monkeypatch.setattr(reparam, "compile", miscompile)
    monkeypatch.setattr(digits, "train", lambda *_: None)
    monkeypatch.setattr(digits, "measure_latency", lambda *_: (1.0, 1.0, 1.0))
    threads = torch.get_num_threads()
    try:
        with pytest.raises(typer.Exit) as stopped:
            digits.main()
    finally:
        torch.set_num_threads(threads)
    assert stopped.value.exit_code == 1


def test_a_folder_that_is_missing_is_noticed_before_the_training() -> None:
    done = run("--output", "no_such_folder/digits.onnx")
    assert done.returncode == 2
    assert "there is no folder no_such_folder" in done.stderr
    assert "Training" not in done.stdout
