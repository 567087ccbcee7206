"""What something is by identity, for code that asks `is None` or `is True` while it is traced.

Python itself answers that: a stand-in is never None. So where a part of an input, or of what a
user's module returns, may be None, the code that reads it is looked at. If it asks, the example
inputs tell what the part is, and the trace is held to that; without them, the trace gives up.
"""

from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from reparam.asked import AskedTracer, sure
from reparam.proxies import NAMES, AttributeProxy
from reparam.tested import NOTHING, Constants, tested_arguments, tested_result


class IdentityTracer(AskedTracer):
    """A tracer that gives None itself, not what stands for it."""

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

    def called_method(self, result: Any, method: Any, compared: Callable[[], Constants]) -> Any:
        """What a method returns: of a dictionary's `get`, a part; others may have an effect.

        Raises:
            TraceError: if it is compared, and not known.
        """
        if method.attr == "get":
            return self.part(result, method.root, compared)
        return self.result(result, compared)

    def returned(self, result: Any, frame: FrameType | None) -> Any:
        """What a module returns, to the code that calls it, past a frame within the call.

        Raises:
            TraceError: if it is compared, and not known.
        """
        if isinstance(result, fx.Proxy):
            return self.result(result, partial(tested_result, frame, None))
        if type(result) is not tuple:
            return result
        parts = cast("tuple[Any, ...]", result)
        return tuple(self._returned_part(*part, frame) for part in enumerate(parts))

    def _returned_part(self, number: int, part: Any, frame: FrameType | None) -> Any:
        if not isinstance(part, fx.Proxy):
            return part
        return self.result(part, partial(tested_result, frame, number))

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


def left_out(module: nn.Module, node: fx.Node) -> bool:
    """Whether a call of an attention is told to return None for its weights."""
    if not isinstance(module, nn.MultiheadAttention) or not sure(module):
        return False
    given = node.args[4] if len(node.args) > 4 else node.kwargs.get("need_weights", True)
    return given is False
