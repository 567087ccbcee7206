"""`reparam check-pass` as a user or a script meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testing.test_plugin import PASSES

SCRIPT = Path(sys.executable).with_name("reparam")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "passes.py").write_text(
        PASSES
        + "\n\n@reparam.rewrite\ndef look_for_nothing(call):\n    return None\n\n\nNUMBER = 3\n"
        "\n\n@reparam.rewrite\ndef rewrite_that_exits(call):\n    raise SystemExit(0)\n"
        "\n\ndef pass_that_exits(graph_module):\n    raise SystemExit(0)\n"
    )
    return tmp_path


def reparam(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, "check-pass", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_right_pass(folder: Path) -> None:
    done = reparam("acme.passes:fold_norm", "--max-examples", "20", "--seed", "3", folder=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fold_norm: right on all ")


def test_a_wrong_pass(folder: Path) -> None:
    done = reparam("acme.passes:fold_norm_without_epsilon", folder=folder)
    assert done.returncode == 3
    assert done.stderr.startswith("error: fold_norm_without_epsilon, asked about bn1: batchnorm:")
    (folder / "program.py").write_text(done.stdout)
    shown = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 1
    assert "CheckFailed: fold_norm_without_epsilon" in shown.stderr


def test_a_vacuous_pass(folder: Path) -> None:
    done = reparam("acme.passes:look_for_nothing", "--max-examples", "5", "--json", folder=folder)
    assert done.returncode == 3
    verdict = json.loads(done.stdout)
    assert verdict["right"] is False
    assert verdict["program"] == ""
    assert verdict["text"].startswith("look_for_nothing fired on 0 of ")


@pytest.mark.parametrize("name", ["rewrite_that_exits", "pass_that_exits"])
def test_a_pass_that_ends_the_script(folder: Path, name: str) -> None:
    done = reparam(f"acme.passes:{name}", "--max-examples", "5", folder=folder)
    assert done.returncode == 3
    assert "SystemExit: 0" in done.stderr
    assert f"check_model({name}, model" in done.stdout


def test_what_is_no_block(folder: Path) -> None:
    named = "acme.passes:fold_norm", "--block", "acme.passes:NUMBER", "--json"
    done = reparam(*named, folder=folder)
    assert done.returncode == 1
    told = json.loads(done.stdout)["error"]
    assert told["type"] == "PassError"
    assert told["message"] == "a block is a class or function that returns a module, not 3"
    assert not done.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("acme.passes", "'acme.passes' is not of the form package.module:name"),
        ("acme.passes:fold_nor", "has no 'fold_nor': did you mean fold_norm?"),
        ("acme.missing:fold_norm", "the module 'acme.missing' can't be imported"),
        ("acme.passes:NUMBER", "3 is no pass"),
    ],
)
def test_what_is_no_pass(folder: Path, name: str, reason: str) -> None:
    done = reparam(name, folder=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
