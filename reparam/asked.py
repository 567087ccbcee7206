"""What is told of a tensor that stands for another one, when Python asks while a forward is traced.

Answers are those for the example inputs. Where others would give another one, the trace is held to
it by an assertion.
"""

import operator
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from reparam import known
from reparam.arguments import depends_on_inputs
from reparam.example_values import ExampleValues
from reparam.paths import attribute_at
from reparam.places import calling_line


class AskedTracer(fx.Tracer):
    """A tracer that is asked.

    Attributes:
        examples: what is known of the results of calls.
    """

    def __init__(self, inputs: Mapping[str, Any] | None) -> None:
        """Take examples by the names of arguments."""
        super().__init__(autowrap_functions=())
        self.examples = ExampleValues(lambda path: attribute_at(self.root, path), inputs or {})
        self._held: dict[fx.Node, fx.Node] = {}

    def known_value(self, proxy: fx.Proxy) -> Any:
        """The value for the example inputs, if it is known."""
        with suppress(TraceError):
            return self.examples(proxy.node)
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
        """Whether a proxy is known to stand for a tensor."""
        return issubclass(self.examples.kind(proxy.node) or object, Tensor)

    def has(self, proxy: fx.Proxy, name: str) -> bool:
        """Whether what a proxy stands for has an attribute.

        Raises:
            TraceError: if that can't be told.
        """
        kind = self.examples.kind(proxy.node)
        if kind is None:
            raise TraceError("it depends on the type of a result; pass example_inputs")
        return hasattr(kind, name) or hasattr(self.known_value(proxy), name)

    def is_none(self, proxy: fx.Proxy, part: Any) -> bool:
        """Whether a part of several results or arguments is known to be None."""
        node = proxy.node
        if type(part) is not int or node.op not in ("call_module", "placeholder"):
            return False
        called = attribute_at(self.root, str(node.target)) if node.op == "call_module" else None
        if isinstance(called, nn.MultiheadAttention):
            return part == 1 and node.kwargs.get("need_weights", True) is False
        value = self.known_value(proxy)
        parts = cast("list[Any]", value) if isinstance(value, tuple | list) else []
        return part < len(parts) and parts[part] is None

    def stands_for(self, proxy: fx.Proxy, kinds: Any) -> bool:
        """Whether what a proxy stands for is an instance of a type.

        Raises:
            TraceError: if that can't be told.
        """
        if proxy.node.op == "get_attr":
            return isinstance(self.examples(proxy.node), kinds)
        kind = self.examples.kind(proxy.node)
        if kind is None:
            raise TraceError("it depends on the type of a result; pass example_inputs")
        return issubclass(Tensor if issubclass(kind, Tensor) else kind, kinds)

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
