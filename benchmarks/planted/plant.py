"""Plant a bug into a module as it is imported; no file is touched."""

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from benchmarks.planted.bugs import Bug
from benchmarks.record import ROOT

PLANTED = ("reparam", "passes")
"""The packages that a bug may be planted into."""


class _Loader(SourceFileLoader):
    """Compiles the source with the bug in it; nothing is read from a cache or written to one."""

    bug: Bug

    def get_code(self, fullname: str) -> CodeType:
        text = self.bug.planted(Path(self.path).read_text())
        return compile(text, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Finds the one file that a bug is in, before anybody else does."""

    def __init__(self, bug: Bug) -> None:
        self.bug = bug
        self.file = (ROOT / bug.file).resolve()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in PLANTED:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is None:
                continue
            if spec.origin is not None and Path(spec.origin).resolve() == self.file:
                loader = _Loader(fullname, spec.origin)
                loader.bug = self.bug
                return importlib.machinery.ModuleSpec(fullname, loader, origin=spec.origin)
            return spec
        return None


def plant(bug: Bug) -> None:
    """Plant a bug, for this process and whatever it imports from now on.

    Raises:
        RuntimeError: if the library has been imported already.
    """
    early = [name for name in sys.modules if name.partition(".")[0] in PLANTED]
    if early:
        raise RuntimeError(f"{early[0]} was imported before the bug was planted")
    sys.meta_path.insert(0, _Finder(bug))
