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

METADATA = {
    "size", "dim", "numel", "nelement", "ndimension", "element_size", "stride", "storage_offset",
    "shape", "ndim", "itemsize", "nbytes", "requires_grad", "item", "is_floating_point",
    "is_complex", "is_contiguous", "__len__", "len",
}  # fmt: skip
"""The methods, attributes and functions that give numbers of a tensor, or tuples of numbers."""

NUMBERS = (Size, bool, int)
"""The facts of what nobody can write to."""

PROXY_AWARE = ("_operator", "math", "torch")
"""The modules of functions that a trace records: proxies overload operators and torch's functions,
the tracer patches `math`."""


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
        elif node.target in (torch.tensor, torch.as_tensor) and _one_number(node.args, numbers):
            node.target, node.args = torch.full, ((), *node.args)
        if node.op == "call_function" and _needs_wrap(node.target):
            node.meta["is_wrapped"] = True  # as by torch.fx.wrap
    _hold_buffers(graph, attributes, numbers)


def _number(node: fx.Node, numbers: set[fx.Node]) -> bool:
    """Whether a node reads sizes, or computes with nothing but such, whatever its facts tell."""
    if node.target is getattr:
        return node.args[1] in METADATA
    if known.calls(node) in METADATA:
        return True
    of_python = getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
    given = node.all_input_nodes
    return node.op == "call_function" and of_python and given != [] and numbers.issuperset(given)


def _one_number(arguments: tuple[Any, ...], numbers: set[fx.Node]) -> bool:
    """Whether the first one stands for a number, and not for a tuple of sizes."""
    argument: Any = arguments[0] if arguments else None
    if type(argument) is not fx.Node or argument not in numbers:
        return False
    given: Any = argument.args
    several = argument.target == "size" and len(given) == 1 and not argument.kwargs
    part = argument.target is operator.getitem and isinstance(given[1], slice)
    return not (several or part or (argument.target is getattr and given[1] == "shape"))


def _needs_wrap(function: Any) -> bool:
    """Whether a function would run, with proxies, as the code is traced."""
    home = getattr(function, "__module__", None) or "torch"  # torch's own builtins name none
    return function is not getattr and home.partition(".")[0] not in PROXY_AWARE


def _hold_buffers(graph: fx.Graph, attributes: dict[str, Any], numbers: set[fx.Node]) -> None:
    """Read buffers through an identity module wherever no proxy would see what becomes of them."""
    path, taken = "read", {name.partition(".")[0] for name in attributes}
    while path in taken:
        path += "_"
    buffers: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op == "get_attr" and _is_buffer(attributes.get(str(node.target))):
            buffers.add(node)
        elif not _is_recorded(node, buffers, numbers):
            for source in buffers.intersection(node.all_input_nodes):
                attributes[path] = nn.Identity()
                readers = list(source.users)
                with graph.inserting_after(source):
                    held = graph.call_module(path, (source,))
                for reader in readers:  # all of them, so that a write and later reads are of one
                    reader.replace_input_with(source, held)
                buffers.remove(source)


def _is_buffer(attribute: Any) -> bool:
    """Whether it is a tensor that a trace knows by its numbers alone; parameters have proxies."""
    return isinstance(attribute, Tensor) and not isinstance(attribute, nn.Parameter)


def _is_recorded(node: fx.Node, buffers: set[fx.Node], numbers: set[fx.Node]) -> bool:
    """Whether a trace records a call, with proxies for all but buffers.

    torch asks the tensors among the arguments, and in lists of them, whether they overload it.
    """
    given = set(node.all_input_nodes)
    if node.op not in ("call_function", "call_method") or buffers.isdisjoint(given):
        return True
    if node.meta.get("is_wrapped"):
        return not buffers.issuperset(given)
    if node.target is operator.getitem:
        return node.args[0] not in buffers
    arguments = (*node.args, *node.kwargs.values())
    lists = [cast("list[Any]", each) for each in arguments if isinstance(each, list | tuple)]
    tensors = {each for each in chain(arguments, *lists) if type(each) is fx.Node} - numbers
    return not buffers.issuperset(tensors)


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
