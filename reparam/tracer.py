"""Our tracer: effects become nodes, and a trace leaves nothing behind in the model.

torch.fx turns `x += y` into `x + y`, lets a forward write to the model while it is traced, and
freezes random numbers. Here the first becomes the in-place call that it is; the module whose
forward does one of the others stays whole.
"""

import inspect
import operator
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.errors import first_line
from reparam.meaning import has_meaning

IN_PLACE = (
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor",
)  # fmt: skip


class _Effects:
    """What both kinds of proxies do beyond fx's own."""

    tracer: Any

    def __setitem__(self, index: Any, value: Any) -> None:
        """Record the assignment."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would be lost."""
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise TraceError(f"it assigns to the attribute {name!r} of a tensor")
        object.__setattr__(self, name, value)


def _in_place(name: str) -> Any:
    function = getattr(operator, name)

    def record(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in IN_PLACE:
    setattr(_Effects, f"__{_name}__", _in_place(_name))


class TensorProxy(_Effects, fx.Proxy):
    """Stands for a tensor."""

    def __getattr__(self, name: str) -> Any:
        """Stand for an attribute of it, or a method."""
        return AttributeProxy(self, name)


class AttributeProxy(_Effects, Attribute):
    """Stands for an attribute, which becomes a node when it is used as a value."""

    def __getattr__(self, name: str) -> Any:
        """Stand for an attribute of the attribute."""
        return AttributeProxy(self, name)


class _NoRandomness(TorchDispatchMode):
    """Refuses random numbers: a trace would freeze them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise TraceError(f"it draws random numbers ({func})")
        return func(*args, **(kwargs or {}))


class Tracer(fx.Tracer):
    """Traces into user modules; torch's own, and whatever can't be traced, stay whole.

    Attributes:
        untraced: the path of each module that stays whole, and why.
        tensors: constants that a forward made, by the path that the graph has for them.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        """Start with nothing traced."""
        super().__init__(autowrap_functions=())
        self.untraced: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        self._autocast = _autocast()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a module.

        Raises:
            Exception: whatever the forward raises on proxies.
        """
        named: Any = (*root.named_parameters(), *root.named_buffers())
        self._names = {id(tensor): name for name, tensor in reversed(named)}
        before = _State(root)
        try:
            with _NoRandomness():
                graph = super().trace(root, concrete_args)
        finally:
            attributes = vars(cast("nn.Module", root))
            for name in [name for name in attributes if name.startswith("_tensor_constant")]:
                self.tensors[name] = attributes.pop(name)
            changed = before.restore()
        if changed:
            raise TraceError(f"it changes its attribute {changed!r}")
        return graph

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Stand for a node."""
        return TensorProxy(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Add a node; refuse one whose dtypes depend on where it stands."""
        if _autocast() != self._autocast:
            raise TraceError("it runs under autocast")
        return super().create_proxy(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole: one of torch's own, with hooks, or with a meaning."""
        if hooked(m) or has_meaning(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Stand for a parameter or buffer, found by identity: fx searches all of them."""
        name = self._names.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace into a module, or keep it whole where that fails."""
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            if hooked(m):
                self.untraced[path] = "it has forward hooks"
            return super().call_module(m, forward, args, kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        before = _State(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
            reason = before.restore()
            if not reason:
                return result
            reason = f"its forward changes its attribute {reason!r}"
        except Exception as error:  # whatever stops it, the module stays whole
            before.restore()
            reason = first_line(error)
        self._forget_after(last)
        self.untraced[path] = reason
        return self.create_proxy("call_module", path, args, kwargs)

    def _forget_after(self, last: fx.Node | None) -> None:
        """Erase what a trace that failed has left in the graph."""
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            self.graph.erase_node(node)


def hooked(module: Any) -> bool:
    """Whether calling the module does more than its forward says."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def defaults(model: nn.Module, given: set[str]) -> dict[str, Any]:
    """Arguments of the forward that keep their defaults: plain ones that no example is given of."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.name not in given and isinstance(parameter.default, bool | int | float | None)
    }


def _autocast() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


class _State:
    """The attributes of a module, and of its lists and dictionaries, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.containers = [
            (value, _copy(value)) for value in self.attributes.values() if _is_container(value)
        ]

    def restore(self) -> str | None:
        """Put all back; the name of an attribute that was changed, if one was."""
        now = vars(self.module)
        changed = [name for name in {**now, **self.attributes} if self._differs(name, now)]
        for container, content in self.containers:
            if list(_items(container)) != list(_items(content)):
                if not _remembers(container, content):
                    changed += [n for n, value in self.attributes.items() if value is container]
                container.clear()
                getattr(container, "extend" if type(container) is list else "update")(content)
        for name in changed:
            if name in self.attributes:
                now[name] = self.attributes[name]
            else:
                del now[name]
        return changed[0] if changed else None

    def _differs(self, name: str, now: dict[str, Any]) -> bool:
        missing = object()
        return now.get(name, missing) is not self.attributes.get(name, missing)


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
    return kept and all(isinstance(v, fx.Proxy) and _is_constant(v.node) for v in added)


def _is_constant(node: fx.Node) -> bool:
    """Whether a node is computed from parameters and buffers alone."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "get_attr"
    return all(map(_is_constant, node.all_input_nodes))


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
