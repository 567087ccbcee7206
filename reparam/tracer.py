"""Our tracer: effects become nodes, and a trace leaves nothing behind in the model.

torch.fx turns `x += y` into `x + y`, lets a forward write to the model while it is traced, and
freezes random numbers. Here the first becomes the in-place call that it is; the module whose
forward does one of the others stays whole.
"""

import functools
import inspect
import itertools
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError, TracerBase
from torch.utils import _pytree as pytree

from reparam import known
from reparam.arguments import give
from reparam.guarded import Guarded
from reparam.identity import IdentityTracer
from reparam.meaning import has_meaning
from reparam.modes import autocast, require_modes
from reparam.places import NO_CODE, explained
from reparam.proxies import AttributeProxy, TensorProxy, python_asks
from reparam.state import LayerState, State

QUANTIZATION_AWARE = "torch.ao.nn.intrinsic.qat."
"""Where torch's layers are that learn to be quantized, and that its conversion looks for."""

PLAIN = (tuple, list, dict, bool, int, float, str, type(None))
"""Arguments of which fx need not ask what they are; what they hold is for this tracer to say."""

FRAMES = 16
"""How many frames a trace takes, at most, for one that the model takes when it runs."""


class _Scopes(OrderedDict[str, Any]):
    """The modules that a call lies in. Each call keeps a copy: the path of the innermost alone."""

    def __copy__(self) -> str:
        """Where `capture.path_of` finds it."""
        return str(next(reversed(self.values()))[0])


class Tracer(IdentityTracer):
    """Traces into user modules; torch's own, and whatever can't be traced, stay whole.

    Attributes:
        untraced: the path of each module that stays whole, and why.
        tensors: constants that a forward made, by the path that the graph has for them.
        examples: what is known of the results of calls.
    """

    proxy_buffer_attributes = True

    def __init__(self, inputs: Mapping[str, Any] | None = None, method: str = "forward") -> None:
        """Start with nothing traced; `inputs` are examples by the names of arguments."""
        super().__init__(inputs)
        self.traced_func_name = method
        self.untraced: dict[str, str] = {}
        self.module_stack = _Scopes()
        self.tensors: dict[str, Tensor] = {}
        self._layers: dict[int, LayerState] = {}
        self._given: dict[int, tuple[Tensor, int]] = {}
        self._autocast = autocast()
        self._thread = threading.get_ident()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a module.

        Raises:
            Exception: whatever the forward raises on proxies.
        """
        modules: list[nn.Module] = [*root.modules()]
        own = [m for m in modules if not type(m).__module__.startswith("torch.")]
        self._layers = {id(module): LayerState(module) for module in modules}
        before = [*map(State, own), *self._layers.values()]
        self._thread = threading.get_ident()
        try:
            with torch.no_grad(), Guarded(root), _deeper_stack():
                graph = super().trace(root, concrete_args)
        finally:
            attributes = vars(cast("nn.Module", root))
            for name in [name for name in attributes if name.startswith("_tensor_constant")]:
                self.tensors[name] = attributes.pop(name)
            changed = _restored(before)
            self._layers = {}  # a cycle of fx's keeps the tracer for a while
        if changed:
            raise TraceError(f"it changes its attribute {changed!r}")
        if any(tensor._version != version for tensor, version in self._given.values()):
            raise TraceError("it writes to a tensor that it made, after it was read")
        return graph

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The forward and its proxies. While it runs, and no longer, Python asks the tracer."""
        forward, args = super().create_args_for_root(root_fn, is_module, concrete_args)

        @functools.wraps(forward)
        def heeded(*args: Any) -> Any:
            with python_asks(self):
                result = forward(*args)
            if any(type(leaf).__module__ == "numpy" for leaf in pytree.tree_leaves(result)):
                raise TraceError("it returns a number of NumPy's")
            return result

        return heeded, args

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Stand for a node."""
        return TensorProxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, *rest: Any, **more: Any) -> fx.Node:
        """Add a node; refuse one that depends on the mode in which it stands."""
        require_modes(self._autocast)
        if getattr(target, "__name__", target) in known.RESIZING:
            raise TraceError("it changes the sizes of a tensor in place")
        node = super().create_node(kind, target, (), *rest, **more)
        give(node, args)
        return node

    def create_arg(self, a: Any) -> Any:
        """An argument or a result as the graph keeps it; dictionaries stay of their kind."""
        if type(a) is TensorProxy or type(a) is AttributeProxy:
            return a.node
        kind = cast("Any", type(a))
        if kind in PLAIN:
            return TracerBase.create_arg(self, a)
        if kind is Tensor:
            self._given.setdefault(id(a), (a, a._version))
        if isinstance(a, int | float | str) and not isinstance(a, Enum):
            return _plain(a)
        if is_dataclass(a) and not isinstance(a, type):  # some are dictionaries as well
            given = {field.name: getattr(a, field.name) for field in fields(a)}
            self._require_fields(a, given, lambda: kind(**given))
            parts = {name: self.create_arg(value) for name, value in given.items()}
            return self.create_node("call_function", kind, (), parts)
        if hasattr(kind, "_asdict"):  # a named tuple
            self._require_fields(a, cast("Any", a)._asdict(), lambda: kind(*cast("Any", a)))
        if issubclass(kind, dict) and kind is not dict:
            return self._rebuilt(cast("dict[Any, Any]", a))
        return super().create_arg(a)

    def _require_fields(self, a: Any, given: Mapping[str, Any], build: Callable[[], Any]) -> None:
        """Refuse an object that is not what becomes of its fields: it would be another one."""
        kind, last = type(a).__name__, self._last()
        try:
            again = build()
            same = all(getattr(again, name) is value for name, value in given.items())
        except Exception as error:
            raise TraceError(f"it makes a {kind}, which is not made of its fields") from error
        same &= self._last() is last  # to make it computes nothing
        if not same or getattr(again, "__dict__", {}).keys() != getattr(a, "__dict__", {}).keys():
            raise TraceError(f"it makes a {kind}, which computes some of its fields")

    def _last(self) -> fx.Node | None:
        """The latest call."""
        return next(iter(reversed(self.graph.nodes)), None)

    def _rebuilt(self, dictionary: dict[Any, Any]) -> fx.Node:
        """A call that makes a dictionary of the same kind."""
        kind: Any = type(dictionary)
        if kind is not OrderedDict:
            raise TraceError(f"it returns or passes on a {kind.__name__}")
        pairs = [(key, self.create_arg(value)) for key, value in dictionary.items()]
        return self.create_node("call_function", kind, (pairs,), {})

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole: one of torch's own, with hooks, or with a meaning."""
        if known.hooked(m) or has_meaning(m) or isinstance(m, torch.jit.ScriptModule):
            return True
        if type(m).__module__.startswith(QUANTIZATION_AWARE):
            return True  # to fx a sequence of layers, by its base class
        return super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Stand for a parameter or buffer, found by identity: fx searches all of them."""
        if not isinstance(attr_val, Tensor) or self._elsewhere():
            return attr_val
        name = self._names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace into a module, or keep it whole where that fails."""
        if self._elsewhere():
            return forward(*args, **kwargs)
        if known.compiled(m):
            return cast("Any", m)._orig_mod(*args, **kwargs)
        paths: Any = self.submodule_paths
        if m not in paths:  # made in a forward, or kept in a list of Python's
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            if known.hooked(m):
                self.untraced[path] = "it has hooks"
            elif isinstance(m, torch.jit.ScriptModule):
                self.untraced[path] = NO_CODE
            return self._whole(path, m, args, kwargs)
        last = self._last()
        parts = itertools.islice(m.modules(), 1, None)
        before, scopes = [State(m), *map(LayerState, parts)], dict(self.module_stack)
        result = reason = None
        try:
            result = super().call_module(m, forward, *self.identified_arguments(m, args, kwargs))
            changed = _restored(before)
            if changed:
                reason = explained(m, f"its forward changes its attribute {changed!r}")
        except Exception as error:  # whatever stops it, the module stays whole
            _restored(before)
            reason = explained(m, error)
        if reason is None:
            return self.returned(result, inspect.currentframe())
        self._forget_after(last)
        self.module_stack.clear()
        self.module_stack.update(scopes)
        self.untraced[path] = reason
        return self._whole(path, m, args, kwargs)

    def _whole(self, path: str, m: nn.Module, args: Any, kwargs: Any) -> Any:
        """A call of a module as it is.

        Raises:
            TraceError: if it is not as it was.
        """
        if self._layers[id(m)].changed():
            raise TraceError("it changes a layer while it runs")
        self.called[path] = m
        result = self.create_proxy("call_module", path, args, kwargs)
        return self.returned(result, inspect.currentframe())

    def _elsewhere(self) -> bool:
        """Whether it is another thread that calls, which fx lets in too: it runs the model."""
        return threading.get_ident() != self._thread

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        """The paths of parameters and buffers, by identity: most models are of layers alone."""
        named: Any = (*self.root.named_parameters(), *self.root.named_buffers())
        return {id(tensor): name for name, tensor in reversed(named)}

    def _forget_after(self, last: fx.Node | None) -> None:
        """Erase what a trace that failed has left in the graph."""
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            self.graph.erase_node(node)


@contextmanager
def _deeper_stack() -> Generator[None]:
    """Let a trace go as deep as the model does when it runs."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit * FRAMES)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _restored(states: Iterable[State | LayerState]) -> str | None:
    """Put modules back; the name of an attribute that was changed, if one was."""
    return next(iter([name for state in states if (name := state.restore())]), None)


def _plain(a: Any) -> Any:
    """A number or text of NumPy's as one of Python's: in code, it would stand as NumPy prints it.

    Raises:
        TraceError: if it is of another class that is derived from a plain one.
    """
    if type(a).__module__ != "numpy":
        raise TraceError(f"it passes on a {type(a).__name__}, which is no plain number or text")
    return a.item()
