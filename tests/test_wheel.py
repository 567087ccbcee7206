"""What people get from `pip install`: three packages, typed, and no tests."""

import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"reparam", "passes", "fastvit_models"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def read_metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_holds_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {PurePosixPath(path).parts[0] for path in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= set(wheel.namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= files


def test_declares_the_command_and_the_doors(wheel: zipfile.ZipFile) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(read_metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {"reparam": "reparam.cli:main"}
    assert dict(entry_points["reparam.pipelines"]) == {"default": "passes:DEFAULT"}
    assert dict(entry_points["reparam.models"]) == {"fastvit_models": "fastvit_models:MODELS"}


def test_carries_its_licence(wheel: zipfile.ZipFile) -> None:
    assert "Apache License" in read_metadata(wheel, "licenses/LICENSE")
    assert "License-Expression: Apache-2.0" in read_metadata(wheel, "METADATA")


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = {
        requirement.partition(">=")[0].partition("[")[0] for row in lists for requirement in row
    }
    pinned = {
        line.partition("==")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    assert needed - {"reparam"} == pinned
