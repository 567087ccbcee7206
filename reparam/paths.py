"""The paths of a result's modules and tensors: none in the way of another, of fx or of Python."""

import itertools
import keyword
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

RESERVED = ("reparam_report", *vars(fx.GraphModule(nn.Module(), fx.Graph())))
"""What a compile sets on its result, and a graph module on itself."""


class Paths:
    """The paths that are taken, and the folders that these lie in."""

    def __init__(self, taken: Iterable[str]) -> None:
        """Start with paths of the model that the result will keep."""
        self._occupied: set[str] = set()
        for path in taken:
            self.occupy(allowed(path))

    def fresh(self, name: str) -> str:
        """A path for a new module: the name, unless it is another's or a folder of others."""
        name = allowed(name)
        if not self._occupied.isdisjoint(prefixes(name)):  # inside a module that is kept whole
            name = name.replace(".", "_")
        numbered = (f"{name}_fused{number}" for number in itertools.count(2))
        names = itertools.chain((name, f"{name}.fused", f"{name}_fused"), numbered)
        return next(path for path in names if self._is_free(path))

    def _is_free(self, path: str) -> bool:
        return f"{path}." not in self._occupied and self._occupied.isdisjoint(prefixes(path))

    def occupy(self, path: str) -> None:
        """Note a path as taken, and the folders that it lies in as folders."""
        self._occupied |= {path, *(f"{folder}." for folder in prefixes(path))}


def allowed(path: str) -> str:
    """The path, but for names that a graph module or Python's grammar has taken."""
    first, *others = path.split(".")
    if first in RESERVED or hasattr(fx.GraphModule, first):
        first = f"{first}_"
    free = (f"{p}_" if hasattr(nn.Module, p) else p for p in others)
    return ".".join(f"{p}_" if keyword.iskeyword(p) else p for p in (first, *free))


def attribute_at(model: nn.Module, path: str) -> Any:
    """What a path leads to: a module, a parameter, a buffer or any attribute.

    Raises:
        AttributeError: if there is nothing.
    """
    owner, _, name = path.rpartition(".")
    holder: Any = model.get_submodule(owner)
    for held in (holder._parameters, holder._buffers):  # which a class may show as something else
        if held.get(name) is not None:
            return held[name]
    return getattr(holder, name)


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, if there is one."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def prefixes(path: str) -> list[str]:
    """The path, and all folders that it lies in, the outermost first."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
