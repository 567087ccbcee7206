"""Environments with nothing in them but what a test installs."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def build_wheel(folder: Path) -> Path:
    """This project as a wheel."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def environment(folder: Path, *projects: Path) -> Path:
    """The folder of the programs of a new environment, in which wheels or projects are installed.

    What they depend on is at hand in it, as it is here; they themselves are not.
    """
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [folder / "bin" / "python", "-m", "pip", "install", "--no-deps", "--no-index"]
    for project in projects:
        subprocess.run([*install, "--no-build-isolation", project], capture_output=True, check=True)
    return folder / "bin"
