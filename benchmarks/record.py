"""Results that take hours to measure, kept one by one in build/evidence.

A run that was stopped goes on where it was, unless the sources are others by now.
"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
"""The root of the project."""

EVIDENCE = ROOT / "build/evidence"

Row = dict[str, Any]


def fingerprint(*more: str) -> str:
    """What tells the sources of the library and of its passes from others.

    Args:
        more: further files or folders that results depend on, from the root of the project.
    """
    digest = hashlib.sha256()
    for path in (ROOT / "reparam", ROOT / "passes", *(ROOT / name for name in more)):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def commit(*more: str) -> str:
    """The last commit that changed these sources, abbreviated."""
    command = ["git", "log", "-1", "--format=%h", "--", "reparam", "passes", *more]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


class Record:
    """A file of results, and those in it that count.

    Attributes:
        rows: by their keys.
    """

    def __init__(self, file: Path, sources: str, *, old: bool = False) -> None:
        """Read what was measured on the same sources; if `old`, on others too."""
        self._file, self._sources = file, sources
        self.rows: dict[tuple[str, ...], Row] = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            key, measured_on, row = json.loads(line)
            if old or measured_on == sources:
                self.rows[tuple(key)] = row

    def keep(self, row: Row, *key: str) -> None:
        """Write a result down as soon as it is there."""
        self.rows[key] = row
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            file.write(json.dumps([key, self._sources, row]) + "\n")
