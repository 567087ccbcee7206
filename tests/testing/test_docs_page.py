"""What docs/testing_passes.md shows runs as it is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import passes
from reparam.testing.profiles import FOLDER, PROFILES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing_passes.md").read_text()

MODELS = """
from torch import nn


def build_model():
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), block)
"""


def shown() -> list[str]:
    return re.findall(r"^<!-- runs -->\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.long
def test_the_code_runs(tmp_path: Path) -> None:
    (tmp_path / "acme_models.py").write_text(MODELS)
    *tests, conftest = shown()
    (tmp_path / "conftest.py").write_text(conftest)
    for number, block in enumerate(tests):
        (tmp_path / f"test_{number}.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests" / "plugin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_the_profiles_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| `(reparam-\w+)`(?:, the default)? \| ([\d ]+) \|", PAGE, re.MULTILINE)
    assert {name: int(count.replace(" ", "")) for name, count in rows} == {
        name: profile.max_examples for name, profile in PROFILES.items()
    }


def test_the_table_of_rates_has_every_default_pass() -> None:
    told = re.findall(r"`(\w+)` \| \d+ \|", PAGE)
    assert sorted(told) == sorted(rule.name for rule in passes.DEFAULT)


def test_the_workflow_uses_both() -> None:
    workflow = (ROOT / "examples" / "ci" / "reparam.yml").read_text()
    assert set(re.findall(r"--reparam-profile (\S+)", workflow)) == set(PROFILES)
    assert FOLDER in workflow
    assert "actions/cache@" not in workflow, "it would not save what failed"
