"""Go through the arguments of calls: tuples, lists, dictionaries and slices, nested at will."""

from collections.abc import Callable
from typing import Any

from torch.fx.node import map_aggregate


def mapped(argument: Any, kind: type | tuple[type, ...], function: Callable[[Any], Any]) -> Any:
    """The same structure with a function of each leaf of a kind in its place."""
    return map_aggregate(argument, lambda leaf: function(leaf) if isinstance(leaf, kind) else leaf)


def found(argument: Any, kind: type | tuple[type, ...]) -> list[Any]:
    """The leaves of a kind, in order, one entry per position."""
    leaves: list[Any] = []
    mapped(argument, kind, leaves.append)
    return leaves
