"""Write a result so that it can be loaded again.

What torch.fx keeps of a pickled module is its code, which it traces anew, with proxies of its own:
they take `x += 1` for `x + 1`, and refuse `x[0] = 1`, `len(x)` and `list(x)`. They stand for what
is passed in, for parameters and for what modules return: what is computed of buffers alone would be
computed once, as the pickle is loaded.
"""

import operator
from collections.abc import Mapping
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from reparam import known
from reparam.proxies import IN_PLACE
from reparam.sizes import Size

WRITING: dict[Any, str] = {
    getattr(operator, name): f"__{name}__" for name in (*IN_PLACE, "setitem")
}
"""Operators that write, and the methods that are the same. The latter are recorded as they are."""

NUMBERS_OF = {
    "size", "dim", "numel", "nelement", "ndimension", "element_size", "stride", "storage_offset",
    "shape", "ndim", "itemsize", "nbytes", "requires_grad", "item", "is_floating_point",
    "is_complex", "is_contiguous", "__len__", "len",
}  # fmt: skip
"""The methods, attributes and functions whose results are numbers, or tuples of such."""

NUMBERS = (Size, bool, int)
"""The facts of what nobody can write to."""

PYTHONS = ("_operator", "math")
"""The modules of functions that proxies stand up for by themselves."""


def make_loadable(
    graph: fx.Graph, attributes: dict[str, Any], lowered: Mapping[fx.Node, fx.Node]
) -> None:
    """Write calls of a graph in forms that torch's own tracer records.

    Args:
        graph: it is changed.
        attributes: what it reads by path; the module through which buffers are read goes there.
        lowered: what nodes with facts have become in it.
    """
    numbers = {now for node, now in lowered.items() if isinstance(node.meta.get("facts"), NUMBERS)}
    for node in graph.nodes:
        if _number(node, numbers):
            numbers.add(node)
        if node.op == "call_function" and node.target in WRITING:
            if node.args[0] in numbers:
                plain = node.target.__name__.removeprefix("i")
                node.target = getattr(operator, f"__{plain}__")
            else:
                node.op, node.target = "call_method", WRITING[node.target]
        elif node.op == "call_method" and node.target == "__len__":
            node.op, node.target = "call_function", len
        elif node.target in (torch.tensor, torch.as_tensor) and _one_number(node.args[0], numbers):
            node.target, node.args = torch.full, ((), *node.args)
        if node.op == "call_function" and _unseen(node.target):
            node.meta["is_wrapped"] = True  # as by torch.fx.wrap
    _hold_buffers(graph, attributes, numbers)


def _number(node: fx.Node, numbers: set[fx.Node]) -> bool:
    """Whether a node reads sizes, or computes with nothing but such, whatever its facts tell."""
    if node.target is getattr:
        return node.args[1] in NUMBERS_OF
    if known.calls(node) in NUMBERS_OF:
        return True
    of_python = getattr(node.target, "__module__", "") in (*PYTHONS, "builtins")
    given = node.all_input_nodes
    return node.op == "call_function" and of_python and given != [] and numbers.issuperset(given)


def _one_number(argument: Any, numbers: set[fx.Node]) -> bool:
    """Whether it stands for a number, and not for a tuple of sizes."""
    if argument not in numbers:
        return False
    several = argument.target == "size" and len(argument.args) == 1 and not argument.kwargs
    part = argument.target is operator.getitem and isinstance(argument.args[1], slice)
    return not (several or part or (argument.target is getattr and argument.args[1] == "shape"))


def _unseen(function: Any) -> bool:
    """Whether a function runs as the code is traced, with proxies, unless it is wrapped."""
    home = getattr(function, "__module__", None) or "torch"  # torch's own builtins name none
    return function is not getattr and home.partition(".")[0] not in (*PYTHONS, "torch")


def _hold_buffers(graph: fx.Graph, attributes: dict[str, Any], numbers: set[fx.Node]) -> None:
    """Read buffers through an identity module wherever no proxy would see what becomes of them."""
    seen: set[fx.Node] = set()
    path, taken = "read", {name.partition(".")[0] for name in attributes}
    while path in taken:
        path += "_"
    for node in list(graph.nodes):
        tensor = attributes.get(str(node.target)) if node.op == "get_attr" else None
        buffer = isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
        if not _recorded(node, seen, numbers):
            for source in node.all_input_nodes:
                if source not in seen:
                    attributes[path] = nn.Identity()
                    readers = list(source.users)
                    with graph.inserting_after(source):
                        held = graph.call_module(path, (source,))
                    for reader in readers:
                        reader.replace_input_with(source, held)
                    seen.add(held)
        if not buffer:
            seen.add(node)


def _recorded(node: fx.Node, seen: set[fx.Node], numbers: set[fx.Node]) -> bool:
    """Whether a call with proxies for what is seen is recorded as it is."""
    if node.op not in ("call_function", "call_method") or seen.issuperset(node.all_input_nodes):
        return True
    if node.meta.get("is_wrapped"):
        return not seen.isdisjoint(node.all_input_nodes)
    if node.target is operator.getitem:
        return node.args[0] in seen
    given = (*node.args, *node.kwargs.values())
    lists = [cast("list[Any]", each) for each in given if isinstance(each, list | tuple)]
    tensors = {each for each in chain(given, *lists) if type(each) is fx.Node} - numbers
    return not seen.isdisjoint(tensors)


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
