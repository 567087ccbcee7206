"""What people get from `pip install`: three packages, typed, and no tests."""

import subprocess
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path, PurePosixPath

import pytest

from tests.fresh_environment import ROOT, build_wheel, environment

PACKAGES = {"reparam", "passes", "fastvit_models"}
PLUGIN = "pytest_reparam.py"
"""Of pytest: a module of its own, since importing it must not import torch."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("wheel")))


def read_metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_holds_the_three_packages_and_the_plugin(wheel: zipfile.ZipFile) -> None:
    tops = {PurePosixPath(path).parts[0] for path in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {*PACKAGES, PLUGIN}


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
    assert dict(entry_points["pytest11"]) == {"reparam": "pytest_reparam"}
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


USE = """
import fastvit_models, reparam
fused = reparam.compile(fastvit_models.create_model("fastvit_t8").eval(), verify=False)
print(reparam.report(fused).after.operators["Conv2d"])
"""


@pytest.mark.parametrize("foreign", [False, True], ids=["plain", "beside_passes_of_ones_own"])
def test_works_where_it_is_installed(wheel: zipfile.ZipFile, tmp_path: Path, foreign: bool) -> None:
    folder = tmp_path / "work"
    (folder / "passes").mkdir(parents=True)
    if foreign:
        (folder / "passes" / "__init__.py").write_text("raise RuntimeError('not yours')")
    binaries = environment(tmp_path / "environment", Path(str(wheel.filename)))
    (folder / "use.py").write_text(USE)
    used = subprocess.run(
        [binaries / "python", "use.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (used.returncode, used.stdout.strip()) == (0, "52"), used.stderr
    command = [binaries / "reparam", "compile", "fastvit_t8", "--input-size", "3,32,32"]
    made = subprocess.run(
        [*command, "-o", "x.onnx"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert (folder / "x.onnx").stat().st_size > 0
