"""Evaluate what depends on parameters, buffers and literals alone, in float64."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reparam import known
from reparam.arguments import mapped
from reparam.capture import Capture
from reparam.devices import on_cpu
from reparam.values import Opaque


class _ImpureError(Exception):
    """A call is random, or writes to its input."""


DISCRETE = {
    "round", "floor", "ceil", "trunc", "frac", "sign", "sgn", "heaviside", "remainder", "fmod",
    "floor_divide", "eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin", "argsort", "sort",
    "topk", "kthvalue", "median", "mode", "unique", "_unique2", "bucketize", "searchsorted",
    "isclose", "nonzero", "nextafter", "threshold", "hardshrink",
}  # fmt: skip
"""Operators of torch's that jump: what they make in float64 may be another thing."""


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


class _PureCalls(TorchDispatchMode):
    """Lets deterministic calls without effects through, and no others.

    Attributes:
        discrete: whether any of them jumps.
    """

    discrete = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags:
            raise _ImpureError(str(func))
        result = func(*args, **(kwargs or {}))
        integral = any(not t.is_floating_point() for t in pytree.tree_leaves(result) if _is(t))
        name = func.overloadpacket.__name__
        bits = name == "view" and func._overloadname == "dtype"
        jumps = name in DISCRETE or "fake_quantize" in name or bits
        options: dict[str, Any] = kwargs or {}
        rounds = options.get("rounding_mode") is not None
        self.discrete |= integral or jumps or rounds
        return result


def evaluate(function: Opaque, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """What a call of constants results in: as exact as can be, and as the model computes it.

    The exact one is computed in float64, unless a step on the way jumps: in float64 it might jump
    elsewhere than in the model.

    Args:
        function: what is called.
        args: a `Pair` may stand anywhere in them.
        kwargs: likewise.

    Raises:
        Exception: whatever the call raises, and if it is random or writes to a tensor.
    """
    if not getattr(function.target, "foldable", True):
        raise _ImpureError(f"{function.__name__} is left to whoever runs it")
    exact, plain = (
        mapped((args, kwargs), Pair, lambda pair, which=which: pair.contents[which])
        for which in (0, 1)
    )
    with torch.no_grad(), _PureCalls() as calls:
        result = function(*plain[0], **plain[1])
    if calls.discrete or not all(map(_is, pytree.tree_leaves(result))):
        return result, result  # a dtype, or a number of bytes, say
    with torch.no_grad(), _PureCalls():
        return function.widened()(*exact[0], **exact[1]), result


@dataclass(frozen=True, eq=False)
class Pair:
    """A constant in float64 on the CPU, and as it is in the model."""

    contents: tuple[Any, Any]

    @staticmethod
    def of(content: Any, plain: Any) -> "Pair":
        """A pair, the exact content widened."""

        def wide(tensor: Tensor) -> Tensor:
            here = on_cpu(tensor).detach()
            return here.double() if here.is_floating_point() else here

        return Pair((mapped(content, Tensor, wide), plain))


class Constants:
    """The nodes of a traced graph that no input has a part in, and their values.

    Floating-point parameters are widened to float64 before anything is computed from them, so
    that a product of parameters is as exact as the folds that use it.
    """

    def __init__(self, capture: Capture, barred: set[fx.Node]) -> None:
        """`barred` nodes are not evaluated: something writes to them."""
        self._contents: dict[fx.Node, Any] = {}
        self._computed: set[fx.Node] = set()
        self._plain: dict[fx.Node, Any] = {}
        for node in capture.graph.nodes:
            if node in barred:
                continue
            if node.op == "get_attr":
                self._plain[node] = capture.attribute(str(node.target))
                self._contents[node] = mapped(self._plain[node], Tensor, on_cpu)
            elif node.op.startswith("call_") and self._constant_inputs(node):
                self._evaluate(node, _function(capture, node))

    def __contains__(self, node: fx.Node) -> bool:
        """Whether the node is a constant."""
        return node in self._contents

    def operations(self, node: fx.Node, inputs: Iterable[fx.Node]) -> int:
        """How many constants are computed for a call that is not applied to them."""
        if not self._computed:
            return 0
        pending = [source for source in node.all_input_nodes if source not in inputs]
        needed: set[fx.Node] = set()
        while pending:
            source = pending.pop()
            if source in self._computed and source not in needed:
                needed.add(source)
                pending.extend(source.all_input_nodes)
        return len(needed)

    def content(self, argument: Any) -> Any:
        """The value of a constant node, and None for any other argument."""
        return self._contents.get(argument) if isinstance(argument, fx.Node) else None

    def plain(self, argument: Any) -> Any:
        """A constant as it is in the model, and None for any other argument."""
        return self._plain.get(argument) if isinstance(argument, fx.Node) else None

    def dtype(self, node: Any) -> torch.dtype | None:
        """The dtype that a constant has in the model, which its content is wider than."""
        plain = self.plain(node)
        return plain.dtype if isinstance(plain, Tensor) else None

    def _constant_inputs(self, node: fx.Node) -> bool:
        inputs = node.all_input_nodes
        return bool(inputs) and all(source in self._contents for source in inputs)

    def _evaluate(self, node: fx.Node, function: Opaque) -> None:
        """Keep the result of a call, unless it is random or has an effect."""

        def load(source: fx.Node) -> Pair:
            return Pair.of(self._contents[source], self._plain[source])

        args, kwargs = mapped((node.args, node.kwargs), fx.Node, load)
        try:
            exact, self._plain[node] = evaluate(function, args, kwargs)
            self._contents[node] = mapped(exact, Tensor, on_cpu)
        except Exception:
            return
        self._computed.add(node)


def _function(capture: Capture, node: fx.Node) -> Opaque:
    """What a call calls: a function, a method by its name, or a module of torch's own."""
    target: Any = node.target
    if node.op != "call_module":
        return Opaque(target)
    module = capture.attribute(target)
    plain = known.torchs_own(module) and not known.hooked(module) and not module.training
    return Opaque(module if plain else _refuse)


def _refuse(*_: Any, **__: Any) -> Any:
    """Stand for a module that may have any effect."""
    raise _ImpureError
