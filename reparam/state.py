"""The attributes of modules, to be put back after their forward was run for what it tells."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

OF_TORCH = set(vars(nn.Module())) - {"training"}
"""Where every module keeps its parameters, buffers, parts and hooks."""


PLAIN = (tuple, int, float, str)
"""What is the same if it is equal."""


class State:
    """The attributes of a module, and of its lists and dictionaries, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        """Remember them as they are."""
        self.module = module
        self.attributes = dict(vars(module))
        self.containers = [
            (value, _copy(value)) for value in self.attributes.values() if _is_container(value)
        ]
        self.tensors = [
            (name, tensor, tensor._version, tensor.detach().clone())
            for name, value in self.attributes.items()
            for tensor in _tensors(name, value)
        ]

    def restore(self) -> str | None:
        """Put all back; the name of an attribute that was changed, if one was."""
        now = vars(self.module)
        changed = [name for name in {**now, **self.attributes} if self._differs(name, now)]
        for container, content in self.containers:
            empty = not container and not content  # as most are
            if not empty and list(_items(container)) != list(_items(content)):
                if not _remembers(container, content):
                    changed += [n for n, value in self.attributes.items() if value is container]
                container.clear()
                getattr(container, "extend" if type(container) is list else "update")(content)
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
        missing = object()
        return now.get(name, missing) is not self.attributes.get(name, missing)


def attributes_of(module: Any) -> tuple[Any, ...]:
    """What a module computes with: its tensors and hyper-parameters."""
    own = cast("dict[str, Any]", vars(module))
    return (*own.values(), *module._parameters.values(), *module._buffers.values())


def same_attributes(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether attributes are the same objects; a number or a tuple may be an equal one."""
    return len(before) == len(now) and all(
        old is new or (type(old) in PLAIN and old == new)
        for old, new in zip(before, now, strict=True)
    )


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


def _is_container(value: Any) -> bool:
    return type(value) in (list, dict, set)


def _copy(container: Any) -> Any:
    return type(container)(container)


def _items(container: Any) -> Iterator[Any]:
    """What tells one content from another, by identity."""
    if isinstance(container, dict):
        pairs = cast("dict[Any, Any]", container).items()
        return ((key, id(value)) for key, value in pairs)
    return (id(value) for value in container)


def plain_tensors(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that modules hold beside parameters and buffers, be it in lists."""
    for module in model.modules():
        for name, value in vars(module).items():
            yield from _tensors(name, value)


def _tensors(name: str, value: Any) -> list[Tensor]:
    """The tensors of an attribute that is the user's own."""
    if name in OF_TORCH or not isinstance(value, Tensor | list | tuple | dict):
        return []
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
