"""What is told of a tensor that stands for another one, when Python asks while a forward is traced.

Answers are those for the example inputs. Where others would give another one, the trace is held to
it by an assertion.
"""

import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import EllipsisType, NoneType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from reparam import known
from reparam.arguments import depends_on_inputs
from reparam.example_values import ExampleValues
from reparam.paths import attribute_at
from reparam.places import calling_line
from reparam.proxies import NAMES, AttributeProxy
from reparam.tested import NOTHING, Constants, tested_arguments

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
        """Whether a proxy is known to stand for a tensor."""
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
            kind = None
            with suppress(TraceError):
                value: object = self.examples(node)
                kind = type(value)
                self._hold_kind(node, value)
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
        while type(last) is AttributeProxy and last._node is None:  # it is no node yet
            if last.attr in NAMES:
                return False
            last = last.root
        node = last.node
        while reads_part(node):
            node = node.args[0]
            if isinstance(self._example(node), Tensor):
                return False
        if node.op == "call_module":
            return not sure(self.called[node.target])
        return node.op == "placeholder"

    def is_none(self, proxy: fx.Proxy, index: Any) -> bool:
        """Whether a part of what one of torch's modules gives is None."""
        node: Any = proxy.node
        if type(index) is not int or node.op != "call_module":
            return False
        return index == 1 and left_out(self.called[node.target], node)

    def part(self, part: Any, whole: fx.Proxy, compared: Callable[[], Constants]) -> Any:
        """A part of what may be anything: what it is itself, where Python asks that by identity.

        Args:
            part: stands for the part.
            whole: what it is a part of.
            compared: gives the constants that it is compared with.

        Raises:
            TraceError: if it is compared, and not known.
        """
        if not self.uncertain(whole):
            return part
        asked, own = compared(), type(part) is AttributeProxy
        if own and not asked and part.attr in NAMES:
            return part
        try:
            value: object = self.examples(whole.node)
            if isinstance(value, Tensor):
                return part
            value = getattr(value, part.attr) if own else self.examples(part.node)
        except TraceError as unknown:
            return self._unknown(part, asked, unknown)
        return self._identified(part, value, asked)

    def result(self, proxy: Any, compared: Callable[[], Constants]) -> Any:
        """The result of a call, likewise.

        Raises:
            TraceError: if it is compared, and not known.
        """
        return self._asked(proxy, compared()) if self.uncertain(proxy) else proxy

    def _asked(self, proxy: Any, asked: Constants) -> Any:
        if not asked:
            return proxy
        try:
            value = self.examples(proxy.node)
        except TraceError as unknown:
            return self._unknown(proxy, asked, unknown)
        return self._identified(proxy, value, asked)

    def identified_arguments(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a module, as its forward may ask by identity what they are.

        Raises:
            TraceError: if one that it asks about is not known.
        """
        asked = tested_arguments(cast("Any", type(module)).forward)
        if not asked:
            return args, kwargs
        given = [self._argument(a, asked.get(place, NOTHING)) for place, a in enumerate(args)]
        named = {name: self._argument(a, asked.get(name, NOTHING)) for name, a in kwargs.items()}
        return tuple(given), named

    def _argument(self, argument: Any, asked: Constants) -> Any:
        """One argument; an input of the model is what its example says, or no constant."""
        if not isinstance(argument, fx.Proxy) or argument.node.op == "placeholder":
            return argument
        return self._asked(argument, asked) if asked and self.uncertain(argument) else argument

    def _unknown(self, part: Any, asked: Constants, unknown: TraceError) -> Any:
        for constant in asked:
            what = "a part of an input, or of what a module returns,"
            raise TraceError(f"it asks whether {what} is {constant}; {unknown}")
        return part

    def _identified(self, proxy: fx.Proxy, value: object, asked: Constants) -> Any:
        if value is None or (asked and isinstance(value, bool)):
            self._hold(proxy.node, 1 if value is True else value)  # of all that is true, True
            return value
        if asked - {None} and not isinstance(value, int | float | str):
            raise TraceError("it asks whether a tensor or a container is a constant")
        if asked - {None}:
            self._hold(proxy.node, value)
        elif asked:
            self._hold_present(proxy.node)
        return proxy

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


def left_out(module: nn.Module, node: fx.Node) -> bool:
    """Whether a call of an attention is told to return None for its weights."""
    if not isinstance(module, nn.MultiheadAttention) or not sure(module):
        return False
    given = node.args[4] if len(node.args) > 4 else node.kwargs.get("need_weights", True)
    return given is False
