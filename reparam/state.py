"""The attributes of modules, to be put back after their forward was run for what it tells."""

import operator
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

OF_TORCH = set(vars(nn.Module())) - {"training"}
"""Where every module keeps its parameters, buffers, parts and hooks."""


PLAIN = (tuple, int, float, str)
"""What is the same if it is equal."""

SIMPLE = (*PLAIN, bool, type(None))
"""What holds nothing that a forward could change."""

_MISSING = object()

DEEPEST = 4
"""How deep objects of the user's are looked into."""


class State:
    """The attributes of a module, and what is in its lists and other objects, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        """Remember them as they are."""
        self.module = module
        self.attributes = dict(vars(module))
        self.registries: list[tuple[str, Any, Any]] = []
        self.held: list[tuple[str, Any, Any]] = []
        self.tensors: list[tuple[str, Tensor, int, Tensor]] = []
        for name, value in self.attributes.items():
            kind = cast("Any", type(value))
            if kind in SIMPLE and kind is not tuple:
                continue
            if name in OF_TORCH:
                copy = getattr(value, "copy", None)
                self.registries += [] if copy is None else [(name, value, copy())]
                continue
            if kind is not tuple:
                self.held += [(name, held, _content(held)) for held in _holders(value, DEEPEST)]
            tensors = _tensors(name, value)
            self.tensors += [(name, t, t._version, t.detach().clone()) for t in tensors]

    def restore(self) -> str | None:
        """Put all back; the name of an attribute that was changed, if one was."""
        now = vars(self.module)
        changed: list[str] = []
        if [*now] != [*self.attributes] or not _identical(now.values(), self.attributes.values()):
            changed = [name for name in {**now, **self.attributes} if self._differs(name, now)]
        filled = [each for each in self.registries if each[1] or each[2]]  # most are empty
        for name, holder, content in filled + self.held:
            inside = _inside(holder)
            if list(_items(inside)) != list(_items(content)):
                if not _remembers(inside, content):
                    changed.append(name)
                inside.clear()
                getattr(inside, "extend" if isinstance(content, list) else "update")(content)
        for name, tensor, version, content in self.tensors:
            if tensor._version != version:
                changed.append(name)
                tensor.detach().copy_(content)
        for name in changed:
            if name in self.attributes:
                now[name] = self.attributes[name]
            else:
                del now[name]
        return changed[0] if changed else None

    def _differs(self, name: str, now: dict[str, Any]) -> bool:
        return now.get(name, _MISSING) is not self.attributes.get(name, _MISSING)


class LayerState:
    """What a module computes with, by reference, to be put back; few are ever changed."""

    def __init__(self, module: nn.Module) -> None:
        """Remember it as it is."""
        self.held: list[tuple[dict[str, Any], dict[str, Any]]] = []
        if isinstance(module, torch.jit.ScriptModule):  # it makes its methods as they are asked for
            return
        own = vars(module)
        holders: list[dict[str, Any]] = [own]
        holders += [own[name] for name in ("_parameters", "_buffers", "_modules") if name in own]
        self.held = [(holder, holder.copy()) for holder in holders]

    def changed(self) -> str | None:
        """The name of an attribute that is another one now, if there is one."""
        for now, content in self.held:
            if len(now) != len(content) or not _identical(now.values(), content.values()):
                names = (name for name in {**now, **content} if not _same(now, content, name))
                if (changed := next(names, None)) is not None:
                    return changed
        return None

    def restore(self) -> str | None:
        """Put all back; the name of an attribute that was changed, if one was."""
        changed = self.changed()
        if changed is not None:
            for now, content in self.held:
                now.clear()
                now.update(content)
        return changed


def _same(now: dict[str, Any], before: dict[str, Any], name: str) -> bool:
    """Whether an attribute is the same object; a number or a tuple may be an equal one."""
    new, old = (attributes.get(name, _MISSING) for attributes in (now, before))
    return new is old or (type(old) in PLAIN and type(new) in PLAIN and old == new)


def _identical(before: Iterable[Any], now: Iterable[Any]) -> bool:
    """Whether all are the same objects, as they almost always are."""
    return all(map(operator.is_, before, now))


@contextmanager
def kept(model: nn.Module) -> Generator[None]:
    """Put back the attributes of all modules of a model after it has run."""
    states = [State(module) for module in model.modules()]
    try:
        yield
    finally:
        for state in states:
            state.restore()


def _remembers(now: Any, before: Any) -> bool:
    """Whether a dictionary only gained results that no input has a part in.

    It is a cache then: to compute them anew in every call gives the same.
    """
    if not isinstance(now, dict):
        return False
    old = cast("dict[Any, Any]", before)
    new = cast("dict[Any, Any]", now)
    kept = all(key in new and new[key] is value for key, value in old.items())
    added = [value for key, value in new.items() if key not in old]
    return kept and all(isinstance(v, fx.Proxy) and is_constant(v.node) for v in added)


def is_constant(node: fx.Node) -> bool:
    """Whether a node is computed from parameters and buffers alone."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "get_attr"
    return all(map(is_constant, node.all_input_nodes))


def _holds(value: Any) -> bool:
    """Whether something may come to hold other things: a container, or an object of the user's."""
    if _contains(value):
        return True
    kind: Any = value.__class__
    foreign = issubclass(kind, (Tensor, nn.Module, fx.Proxy, type, ModuleType, FunctionType))
    torchs = str(kind.__module__).partition(".")[0] == "torch"
    return not foreign and not torchs and hasattr(value, "__dict__")


def _content(holder: Any) -> Any:
    """What is in a container or an object, in a list, a set or a dictionary of its own."""
    inside = _inside(holder)
    kind: Any = next((kind for kind in (dict, set) if issubclass(type(inside), kind)), list)
    return kind(inside)


def _inside(holder: Any) -> Any:
    attributes: Any = getattr(holder, "__dict__", None)
    return holder if _contains(holder) else attributes


def _contains(value: object) -> bool:
    return isinstance(value, list | dict | set | deque)


def _holders(value: Any, depth: int) -> Iterator[Any]:
    """Something that holds other things, and such things in it."""
    if not depth or not _holds(value):
        return
    yield value
    content = _content(value)
    for each in content.values() if hasattr(content, "values") else content:
        if type(each) not in SIMPLE:
            yield from _holders(each, depth - 1)


def _items(container: Any) -> Iterator[Any]:
    """What tells one content from another, by identity."""
    if isinstance(container, dict):
        pairs = cast("dict[Any, Any]", container).items()
        return ((key, id(value)) for key, value in pairs)
    return (id(value) for value in container)


def plain_tensors(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that modules hold beside parameters and buffers, be it in lists."""
    for module in model.modules():
        yield from tensors_of(module)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """The tensors that one module holds beside parameters and buffers."""
    for name, value in vars(module).items():
        yield from _tensors(name, value)


def _tensors(name: str, value: Any) -> list[Tensor]:
    """The tensors of an attribute that is the user's own."""
    if name in OF_TORCH or not isinstance(value, Tensor | list | tuple | dict):
        return []
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
