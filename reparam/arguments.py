"""Go through the arguments of calls, nested at will, and on to what they are computed from."""

from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate


def mapped(argument: Any, kind: type | tuple[type, ...], function: Callable[[Any], Any]) -> Any:
    """The same structure with a function of each leaf of a kind in its place."""
    return map_aggregate(argument, lambda leaf: function(leaf) if isinstance(leaf, kind) else leaf)


def found(argument: Any, kind: type | tuple[type, ...]) -> list[Any]:
    """The leaves of a kind, in order, one entry per position."""
    leaves: list[Any] = []
    mapped(argument, kind, leaves.append)
    return leaves


def give(node: fx.Node, args: Any) -> None:
    """Set the arguments of a node that was made without them.

    To make it with them, fx would search them for raw symbolic sizes; to set them as an attribute,
    it would look the node up among its like. Both take longer than all else of it.
    """
    object.__setattr__(node, "args", args)


def depends_on_inputs(node: fx.Node) -> bool:
    """Whether another input of the model could give another result of a call."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        source = pending.pop()
        if source.op == "placeholder":
            return True
        if source not in seen:
            seen.add(source)
            pending.extend(source.all_input_nodes)
    return False


def dismantle(*graphs: fx.Graph) -> None:
    """Free graphs that nobody will look at again.

    Their nodes hold each other, and the search for such cycles would take longer.
    """
    for graph in graphs:
        nodes: Any = reversed(graph.nodes)
        for node in nodes:  # each still holds the one before it, as do its arguments
            node._remove_from_list()
            node.users.clear()
        vars(graph).clear()
