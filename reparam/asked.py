"""What is told of a tensor that stands for another one, when Python asks while a forward is traced.

Answers are those for the example inputs. Where others would give another one, the trace is held to
it by an assertion.
"""

import operator
from collections.abc import Mapping
from contextlib import suppress
from types import EllipsisType, NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from reparam import known
from reparam.arguments import depends_on_inputs
from reparam.example_values import ExampleValues
from reparam.paths import attribute_at
from reparam.places import calling_line
from reparam.proxies import NAMES, AttributeProxy

INDICES = (slice, tuple, list, EllipsisType, NoneType, Tensor, fx.Node)
"""By which tensors alone are indexed."""

TORCHS = ("torch.nn.", "torch.ao.nn.")
"""Where torch's own modules are."""


class AskedTracer(fx.Tracer):
    """A tracer that is asked.

    Attributes:
        examples: what is known of the results of calls.
        called: the modules that the graph calls, by path.
    """

    def __init__(self, inputs: Mapping[str, Any] | None) -> None:
        """Take examples by the names of arguments."""
        super().__init__(autowrap_functions=())
        self.examples = ExampleValues(lambda path: attribute_at(self.root, path), inputs or {})
        self._held: dict[fx.Node, fx.Node] = {}
        self.called: dict[str, nn.Module] = {}

    def known_value(self, proxy: fx.Proxy) -> Any:
        """The value for the example inputs, if it is known."""
        return self._example(proxy.node)

    def _example(self, node: fx.Node) -> Any:
        with suppress(TraceError):
            return self.examples(node)
        return None

    def held(self, proxy: fx.Proxy) -> Any:
        """The value for the example inputs; other inputs have to give the same.

        Raises:
            TraceError: if it is not known, or in the memory of a tensor.
        """
        value = self.examples(proxy.node)
        if isinstance(value, Tensor):
            raise TraceError("it depends on the values of a tensor")
        if isinstance(value, tuple | list | dict):
            return self.held_length(proxy)
        self._hold(proxy.node, value)
        return value

    def held_length(self, proxy: fx.Proxy) -> int:
        """The number of parts for the example inputs; other inputs have to have as many."""
        value = self.examples(proxy.node)
        length = len(value)
        node = proxy.node
        if isinstance(value, torch.Size) and node.target in (getattr, "size"):
            counted = self.create_node("call_method", "dim", (node.args[0],), {})
        elif isinstance(value, Tensor):
            counted = self.create_node("call_method", "size", (node, 0), {})
        else:
            counted = self.create_node("call_method", "__len__", (node,), {})
        self._hold(counted, length)
        return length

    def held_keys(self, proxy: fx.Proxy, keys: list[Any]) -> None:
        """Hold a dictionary to its keys, in their order."""
        self._hold(self.create_node("call_function", list, (proxy.node,), {}), keys)

    def is_tensor(self, proxy: fx.Proxy) -> bool:
        """Whether a proxy is known to stand for a tensor; a part of an input, by the examples."""
        if proxy.node.op != "placeholder" and self.uncertain(proxy):
            return isinstance(self.known_value(proxy), Tensor)
        return issubclass(self.examples.kind(proxy.node) or object, Tensor)

    def has(self, proxy: fx.Proxy, name: str) -> bool:
        """Whether what a proxy stands for has an attribute.

        Raises:
            TraceError: if that can't be told.
        """
        kind = self._kind(proxy)
        return hasattr(kind, name) or hasattr(self.known_value(proxy), name)

    def stands_for(self, proxy: fx.Proxy, kinds: Any) -> bool:
        """Whether what a proxy stands for is an instance of a type.

        Raises:
            TraceError: if that can't be told.
        """
        if proxy.node.op == "get_attr":
            return isinstance(self.examples(proxy.node), kinds)
        kind = self._kind(proxy)
        return issubclass(Tensor if issubclass(kind, Tensor) else kind, kinds)

    def _kind(self, proxy: fx.Proxy) -> type:
        """The type of what a proxy stands for; of a part of an input, by the examples alone."""
        node = proxy.node
        kind = self.examples.kind(node)
        if node.op != "placeholder" and self.uncertain(proxy):
            try:
                self._hold_kind(node, self.examples(node))
            except TraceError:
                kind = None
        if kind is None:
            raise TraceError("it depends on the type of a result; pass example_inputs")
        return kind

    def _hold_kind(self, node: fx.Node, value: Any) -> None:
        """Assert what tells a value from those of other types that might stand in its place."""
        if isinstance(value, bool | int | float | str | None):
            self._hold(node, value)
        else:
            self._hold_present(node)

    def uncertain(self, proxy: fx.Proxy) -> bool:
        """Whether it may stand for anything: an input, a result of a user's module, or a part."""
        last: Any = proxy
        while type(last) is AttributeProxy and vars(last)["_node"] is None:  # it is no node yet
            if last.attr in NAMES:
                return False
            last = last.root
        node: fx.Node = last.node
        while reads_part(node) or self._hands_on(node):
            if not isinstance(node.args[0], fx.Node):
                return True
            node = node.args[0]
            if isinstance(self._example(node), Tensor):
                return False
        if node.op == "call_module":
            return not sure(self.called[str(node.target)])
        return node.op == "placeholder"

    def _hands_on(self, node: fx.Node) -> bool:
        """Whether a module returns what it is given, whatever that is."""
        called = self.called[str(node.target)] if node.op == "call_module" else None
        return type(called) is nn.Identity and bool(node.args)

    def _hold_present(self, node: fx.Node) -> None:
        """Assert that something is not None."""
        self._hold(self.create_node("call_function", operator.ne, (node, None), {}), True)

    def _hold(self, node: fx.Node, value: Any) -> None:
        """Assert that a node has a value, unless nothing could give it another one."""
        if node in self._held and not self._held[node]._erased:
            return
        if not depends_on_inputs(node):
            return
        message = f"{known.SAME_WAY} at {calling_line()}"
        condition: Any = node
        if value is False:
            value = 0  # which torch.jit.trace can compare a truth with
        if value is not True:
            condition = self.create_node("call_function", operator.eq, (node, value), {})
        self._held[node] = self.create_node("call_function", known.ASSERT, (condition, message), {})


def reads_part(node: fx.Node) -> bool:
    """Whether a call reads a part of something, by what is no index or name of a tensor's."""
    if node.op == "call_method":
        return node.target not in NAMES
    if node.target is operator.getitem:
        return not isinstance(node.args[1], INDICES)
    return node.target is getattr and node.args[1] not in NAMES


def sure(module: nn.Module) -> bool:
    """Whether a module gives tensors, and never None: torch's own do."""
    if not type(module).__module__.startswith(TORCHS) or known.hooked(module):
        return False
    return "forward" not in vars(module)
