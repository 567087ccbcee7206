"""The launcher that lets timm run beside any build of torch."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests import with_torchvision

ROOT = Path(__file__).parent.parent

SHOW_ITSELF = """
import json, sys, torch
print(json.dumps([
    __name__,
    sys.argv[1:],
    "torchvision" in sys.modules,
    torch.library.register_fake.__module__,
]))
sys.exit(3)
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that imports look into first; the real torchvision is back afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    with mock.patch.dict(sys.modules):
        with_torchvision._forget("torchvision")
        yield tmp_path


def write_torchvision(folder: Path, source: str) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "part.py").write_text("loaded = True\n")
    (folder / "torchvision" / "__init__.py").write_text(source)


@pytest.mark.parametrize("kind", ["module", "script"])
def test_runs_a_program_as_python_would(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "show_itself.py"
    script.write_text(SHOW_ITSELF)
    program = {"module": "show_itself", "script": str(script)}[kind]
    done = subprocess.run(
        [sys.executable, "-m", "tests.with_torchvision", program, "--flag", "a b"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == '["__main__", ["--flag", "a b"], true, "torch.library"]\n', done.stderr
    assert done.returncode == 3


def test_without_a_program_says_how_to_use_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.with_torchvision"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.startswith("usage: ")
    assert done.returncode != 0


def test_timm_builds_a_model() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("fastvit_t8").eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_leaves_out_the_fakes_that_have_no_operator(packages: Path) -> None:
    write_torchvision(
        packages,
        """
import torch
from torchvision import part

@torch.library.register_fake("torchvision::no_such_operator")
def kernel():
    return "still a function"
""",
    )
    ordinary = torch.library.register_fake
    with_torchvision.import_torchvision()
    assert sys.modules["torchvision"].kernel() == "still a function"
    assert sys.modules["torchvision.part"].loaded
    assert torch.library.register_fake is ordinary


def test_other_namespaces_keep_their_fakes(packages: Path) -> None:
    write_torchvision(
        packages,
        """
import torch

torch.library.register_fake("torchvision::no_such_operator", lambda: None)
torch.library.register_fake("elsewhere::no_such_operator", lambda: None)
""",
    )
    with pytest.raises(RuntimeError, match="operator elsewhere::no_such_operator does not exist"):
        with_torchvision.import_torchvision()


def test_another_error_is_not_swallowed(packages: Path) -> None:
    write_torchvision(packages, "raise RuntimeError('the disk is on fire')")
    with pytest.raises(RuntimeError, match="on fire"):
        with_torchvision.import_torchvision()


def test_a_dependency_that_torchvision_lacks_is_not_swallowed(packages: Path) -> None:
    write_torchvision(packages, "import no_such_dependency")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        with_torchvision.import_torchvision()


def test_goes_on_where_torchvision_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with_torchvision.import_torchvision()
