"""Which parts of a module its own code does nothing but call, read from its source.

What is only called can be another module of the same function. Of any other part, the code may
read attributes or call methods that a compiled one does not have.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, cast

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
GOING_THROUGH = ("enumerate", "zip", "reversed", "list", "tuple")
VIEWS = ("values", "items", "children", "named_children")
HANDED_ON = {
    "children", "named_children", "modules", "named_modules", "parameters", "named_parameters",
    "buffers", "named_buffers", "state_dict", "get_submodule", "get_parameter", "get_buffer",
    "apply", "_modules", "_parameters", "_buffers", "__dict__", "keys", "values", "items", "pop",
}  # fmt: skip
"""What of a module, its own code asked for it, gives any of its parts."""

Parents = dict[ast.AST, ast.AST]


def called_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The direct parts of a module that its code only calls; for a container, what it holds.

    None of them is one of torch's own layers, in which there is nothing to compile.
    """
    if "forward" in vars(module):
        return  # it is not that of its class
    functions = [*_functions(type(module)), *_hooks(module)]
    names: dict[nn.Module, list[str]] = {}
    held: Any = module
    for name, part in held._modules.items():
        if part is not None:
            names.setdefault(part, []).append(name)
    for part, called in names.items():
        uses = [_uses(function, name) for function in functions for name in called]
        if None in uses or not any(uses):
            continue
        found = [use for several in uses for use in several or ()]
        inner = [part] if all(use == "call" for use in found) else []
        if type(part) in CONTAINERS and all(use in ("call", "member") for use in found):
            inner = inner or list(part.children())
        yield from (one for one in inner if not _is_layer(one))


def parts_of(module: nn.Module) -> Iterator[nn.Module]:
    """All that `called_parts` could be of a module."""
    if type(module) in CONTAINERS:
        return  # whoever has the container calls what it holds
    pending = list(module.children())
    while pending:
        part = pending.pop()
        yield part
        if type(part) in CONTAINERS:
            pending.extend(part.children())


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and type(module) not in CONTAINERS


def _functions(kind: type[nn.Module]) -> Iterator[ast.FunctionDef | None]:
    """The methods of a class that run once a model is built; None where their source is lost."""
    for owner in kind.__mro__:
        if owner is nn.Module:
            return
        for name, member in vars(owner).items():
            plain = inspect.unwrap(member) if callable(member) else member
            plain = plain.fget if isinstance(plain, property) else plain
            if not inspect.isfunction(plain) or name == "__init__":
                continue
            if str(plain.__module__).startswith("torch.nn.modules.container"):
                continue
            yield _parsed(plain)


def _hooks(module: Any) -> Iterator[ast.FunctionDef | None]:
    """The hooks of a module's forward, which are given the module as a method is."""
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        yield _parsed(hook) if inspect.isfunction(hook) else None


def _parsed(function: Any) -> ast.FunctionDef | None:
    """A function that takes a module first; None where its source is lost."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    first = tree.body[0]
    return first if isinstance(first, ast.FunctionDef) and first.args.args else None


def _uses(function: ast.FunctionDef | None, name: str) -> list[str] | None:
    """How a method uses a part: "call", "member" for a call of what it holds, "other".

    None where that can't be told, since the module itself is handed on.
    """
    if function is None:
        return None
    own = function.args.args[0].arg
    parents: Parents = {c: p for p in ast.walk(function) for c in ast.iter_child_nodes(p)}
    uses: list[str] = []
    for node in ast.walk(function):
        if not (isinstance(node, ast.Name) and node.id == own):
            continue
        holder = parents[node]
        if not isinstance(holder, ast.Attribute):
            return None  # it is passed on, iterated over, or indexed
        if holder.attr in HANDED_ON:
            return None
        if holder.attr == name:
            uses.append(_use(holder, parents, function))
    return uses


def _use(part: ast.AST, parents: Parents, function: ast.FunctionDef) -> str:
    parent = parents[part]
    if _is_called(part, parents) or _is_tested(part, parents):
        return "call"
    if _is_counted(part, parents):
        return "member"
    if isinstance(parent, ast.Subscript) and parent.value is part:
        return "member" if _is_called(parent, parents) else "other"
    through, path = part, ()
    if isinstance(parent, ast.Attribute) and parent.attr in VIEWS and _is_called(parent, parents):
        through = parents[parent]
        path = (1,) if parent.attr in ("items", "named_children") else ()
    position = _position(through, parents, path)
    if position is None:
        return "other"
    loop, steps = position
    target = _step(loop.target, steps)
    return "member" if target is not None and _only_called(target, function) else "other"


def _is_called(node: ast.AST, parents: Parents) -> bool:
    parent = parents[node]
    return isinstance(parent, ast.Call) and parent.func is node


def _is_tested(part: ast.AST, parents: Parents) -> bool:
    """Whether only its presence is asked for, by `is None`."""
    parent = parents[part]
    return isinstance(parent, ast.Compare) and isinstance(parent.ops[0], ast.Is | ast.IsNot)


def _is_counted(part: ast.AST, parents: Parents) -> bool:
    """Whether only its length is asked for, which what a container is compiled to has not."""
    parent = parents[part]
    function = parent.func if isinstance(parent, ast.Call) else None
    return isinstance(function, ast.Name) and function.id == "len"


def _position(node: ast.AST, parents: Parents, path: tuple[int, ...]) -> Any:
    """The loop over a value, and where in the loop's variables its parts are."""
    parent = parents[node]
    if isinstance(parent, ast.For | ast.comprehension) and parent.iter is node:
        return parent, path
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and node in parent.args:
        function = parent.func.id
        if function in ("enumerate", "zip"):
            index = 1 if function == "enumerate" else parent.args.index(cast("ast.expr", node))
            return _position(parent, parents, (index, *path))
        if function in GOING_THROUGH:
            return _position(parent, parents, path)
    return None


def _step(target: ast.expr, steps: tuple[int, ...]) -> str | None:
    """The name among a loop's variables."""
    for step in steps:
        if not isinstance(target, ast.Tuple) or step >= len(target.elts):
            return None
        target = target.elts[step]
    return target.id if isinstance(target, ast.Name) else None


def _only_called(name: str, function: ast.FunctionDef) -> bool:
    """Whether a local name is never read but to be called."""
    called = {id(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)}
    reads = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == name]
    return all(isinstance(n.ctx, ast.Store) or id(n) in called for n in reads)
