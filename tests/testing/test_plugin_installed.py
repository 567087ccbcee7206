"""A real plug-in: tests/plugin is installed beside reparam, and its own tests are run there."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fresh_environment import ROOT, build_wheel, environment

PLUGIN = ROOT / "tests" / "plugin"


@pytest.mark.long
def test_its_own_tests_pass_where_it_is_installed(tmp_path: Path) -> None:
    project = tmp_path / "plugin"
    shutil.copytree(PLUGIN, project, ignore=shutil.ignore_patterns("__pycache__"))
    programs = environment(tmp_path / "environment", build_wheel(tmp_path / "wheel"), project)
    work = tmp_path / "work"
    shutil.copytree(project / "tests", work / "tests")
    shutil.copy(project / "pyproject.toml", work)  # its settings of pytest
    done = subprocess.run(
        [programs / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout
    wrong = subprocess.run(
        [programs / "reparam", "check-pass", "reparam_gains.negative:drop_epsilon"],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 3, wrong.stderr
    assert "from reparam_gains.negative import drop_epsilon" in wrong.stdout
