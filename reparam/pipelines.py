"""Load what installed distributions register: pipelines of passes here, models in `sources`.

An entry point names a module, and a name can lead elsewhere: people who write passes have folders
called `passes`. What is loaded is the registering distribution's own file, whatever the name
resolves to. Where it resolves to that file the import is an ordinary one; where it does not, the
package is loaded beside the other one under a private name, so it should import its own parts
relatively.
"""

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import cast

from torch import fx

from reparam.errors import PassError, ReparamError
from reparam.rewrite import Rewrite

GROUP = "reparam.pipelines"
"""The entry point group in which a distribution registers a tuple of passes by name."""

DEFAULT = "default"
"""The name in that group of what `reparam.compile` runs."""

Pass = Rewrite | Callable[[fx.GraphModule], fx.GraphModule]


def default_passes() -> tuple[Pass, ...]:
    """The passes that `reparam.compile` runs when it is given none, in their order.

    They are what the one entry point named `default` in the group `reparam.pipelines` holds.

    Raises:
        PassError: if there is no such entry point or more than one, or if what it names cannot be
            loaded or is no tuple of passes.
    """
    found = list(entry_points(group=GROUP, name=DEFAULT))
    if not found:
        raise PassError(
            f"no pipeline named {DEFAULT!r} is installed (entry point group {GROUP}); "
            "install this project with pip (from a checkout: pip install -e .), or pass passes=…"
        )
    if len(found) > 1:
        raise PassError(
            f"{len(found)} pipelines are named {DEFAULT!r}: {' and '.join(map(describe, found))}; "
            "uninstall all but one of these distributions, or pass passes=…"
        )
    passes = load(found[0])
    if not isinstance(passes, tuple) or not all(map(callable, cast("tuple[object]", passes))):
        raise PassError(f"{describe(found[0])} is no tuple of passes")
    return cast("tuple[Pass, ...]", passes)


def describe(entry_point: EntryPoint) -> str:
    """What an entry point registers and which distribution does, for a message."""
    return f"{entry_point.value} of the distribution {_distribution_name(entry_point)}"


def load(entry_point: EntryPoint, error: type[ReparamError] = PassError) -> object:
    """The object that an entry point names, from its distribution's own files.

    Args:
        entry_point: one that `importlib.metadata.entry_points` found.
        error: what to raise.

    Raises:
        ReparamError: `error`, if the module cannot be imported or does not have the object.
    """
    module = load_module(entry_point, error)
    try:
        return functools.reduce(getattr, entry_point.attr.split("."), module)
    except AttributeError as cause:
        raise error(f"{describe(entry_point)} cannot be loaded: {cause}") from cause


def load_module(entry_point: EntryPoint, error: type[ReparamError] = PassError) -> ModuleType:
    """The module that an entry point names, from its distribution's own files.

    Args:
        entry_point: one that `importlib.metadata.entry_points` found.
        error: what to raise.

    Raises:
        ReparamError: `error`, if the module cannot be imported.
    """
    top, _, rest = entry_point.module.partition(".")
    own = _own_file(entry_point, top)
    try:
        if own is None or _resolves_to(top, own):
            return importlib.import_module(entry_point.module)
        private = f"_{GROUP}.{_distribution_name(entry_point)}.{top}"
        private = re.sub(r"\W+", "_", private)
        _import_file(private, own)
        return importlib.import_module(f"{private}.{rest}" if rest else private)
    except Exception as cause:  # whatever a foreign module raises while it is imported
        raise error(
            f"{describe(entry_point)} cannot be loaded: {type(cause).__name__}: {cause}"
        ) from cause


def _distribution_name(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist else "unknown"


def _own_file(entry_point: EntryPoint, top: str) -> Path | None:
    """The file of a top-level module or package that the distribution itself installed.

    A wheel lists it. An editable install lists a `.pth` file that names the project's folder, or
    runs code that Python's import system alone understands; then, and only then, it is None.
    """
    if entry_point.dist is None:
        return None
    names = (f"{top}/__init__.py", f"{top}.py")
    listed = entry_point.dist.files
    if listed is None:  # it keeps no list: what lies beside its metadata is taken for its own
        folders = [Path(str(entry_point.dist.locate_file("")))]
    else:
        for file in listed:
            if file.as_posix() in names:
                return Path(str(file.locate()))
        paths = [Path(str(file.locate())) for file in listed if file.suffix == ".pth"]
        folders = [
            path.parent / line
            for path in paths
            if path.exists()
            for line in path.read_text().splitlines()
            if not line.startswith(("import ", "import\t", "#"))
        ]
    files = (folder / name for folder in folders for name in names)
    return next((file for file in files if file.is_file()), None)


def _resolves_to(top: str, own: Path) -> bool:
    """Whether `import top` gives that file; nothing is imported to find out."""
    loaded = sys.modules.get(top)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec(top)
        origin = spec.origin if spec else None
    return origin is not None and Path(origin).resolve() == own.resolve()


def _import_file(name: str, file: Path) -> None:
    """Import a file, a package's `__init__.py` included, under a name of our choice, once."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
