"""The examples of custom passes run as scripts and show what they say."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(name: str) -> dict[str, str]:
    """What an example prints, by the heading that it stands under."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^(\w+):(.*)$", done.stdout, flags=re.MULTILINE)
    assert parts[0] == ""
    return {
        heading: first + rest
        for heading, first, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


def test_custom_pass() -> None:
    printed = run("custom_pass.py")
    right, wrong = printed["fold_relu_gain"], printed["fold_any_gain"]
    for text, rule in ((right, "fold_relu_gain"), (wrong, "fold_any_gain")):
        assert "13 operators before, 11 after" in text
        assert text.count(f"applied  {rule}: ") == 2
        assert text.count(f"missed   {rule}: ") == 1
        assert "equivalent: " in text
    assert "only a positive factor commutes with a ReLU (relu_2)" in right
    assert re.search(r"its replacement differs by \S+, so it was not done", wrong)


def test_custom_lift() -> None:
    printed = run("custom_lift.py")
    assert printed["Unknown"].count("it can't be traced and stays as it is") == 3
    for name in ("Unknown", "Mistaken"):
        assert "8 operators before, 8 after" in printed[name]
        assert f"2 Conv2d, 3 {name}, 2 add, 1 relu" in printed[name]
    known = printed["FrozenBatchNorm2d"]
    assert "8 operators before, 2 after" in known
    assert "1 Conv2d, 1 relu" in known
    assert "applied  fold_identity: " in known
    assert all("equivalent: " in text for text in printed.values())


def test_custom_fx_pass() -> None:
    printed = run("custom_fx_pass.py")
    right, wrong = printed["decompose_hardswish"], printed["approximate_gelu"]
    assert "applied  fold_batchnorm: " in right
    assert "applied  decompose_hardswish: the whole graph: rewritten" in right
    assert "Hardswish" not in right
    assert "1 relu6" in right
    assert re.search(r"missed   approximate_gelu: the whole graph: rolled back: its result", wrong)
    assert "1 GELU" in wrong
    assert all("equivalent: " in text for text in printed.values())


def test_onnx_file() -> None:
    """Its account is a table, with no headings."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "onnx_file.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "BatchNormalization" in done.stdout
    assert "equivalent: " in done.stdout
