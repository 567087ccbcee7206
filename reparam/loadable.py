"""Write a result so that it can be loaded again.

What torch.fx keeps of a pickled module is its code, which it traces anew, with proxies of its own:
they take `x += 1` for `x + 1`, and refuse `x[0] = 1`, `len(x)` and `list(x)`.
"""

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from reparam import known
from reparam.proxies import IN_PLACE
from reparam.sizes import Size

WRITING: dict[Any, str] = {
    getattr(operator, name): f"__{name}__" for name in (*IN_PLACE, "setitem")
}
"""Operators that write, and the methods that are the same. The latter are recorded as they are."""

SIZES = ("size", "dim", "numel", "shape", "ndim", "__len__")
"""The methods and attributes that read sizes."""

NUMBERS = (Size, bool, int)
"""The facts of what nobody can write to."""


def make_loadable(graph: fx.Graph, lowered: Mapping[fx.Node, fx.Node]) -> None:
    """Write calls of a graph in forms that torch's own tracer records.

    Args:
        graph: it is changed.
        lowered: what nodes with facts have become in it.
    """
    numbers = {now for node, now in lowered.items() if isinstance(node.meta.get("facts"), NUMBERS)}
    for node in graph.nodes:
        if _number(node, numbers):
            numbers.add(node)
        if node.op == "call_function" and node.target in WRITING:
            if node.args[0] in numbers:
                node.target = getattr(operator, node.target.__name__.removeprefix("i"))
            else:
                node.op, node.target = "call_method", WRITING[node.target]
        elif node.op == "call_method" and node.target == "__len__":
            node.op, node.target = "call_function", len
        if node.target in (len, list):
            node.meta["is_wrapped"] = True  # as by torch.fx.wrap


def _number(node: fx.Node, numbers: set[fx.Node]) -> bool:
    """Whether a node reads sizes, or computes with nothing but such, whatever its facts tell."""
    if node.op == "call_method":
        return node.target in SIZES
    if node.target is getattr:
        return node.args[1] in SIZES
    of_python = getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
    given = node.all_input_nodes
    return node.op == "call_function" and of_python and given != [] and numbers.issuperset(given)


def without_none_checks(graph: fx.Graph) -> None:
    """Write fx's check that an argument is None as one of a value.

    fx's own is `wrap`ped under a name that no code can look up: to load it breaks all later traces.
    """
    for node in list(graph.nodes):
        if getattr(node.target, "__name__", "") == "_assert_is_none":
            value, message = node.args
            with graph.inserting_before(node):
                same = graph.call_function(operator.eq, (value, None))
                graph.call_function(known.ASSERT, (same, message))
            graph.erase_node(node)
