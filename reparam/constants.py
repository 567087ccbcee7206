"""Evaluate what depends on parameters, buffers and literals alone, in float64."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.capture import Capture


class _ImpureError(Exception):
    """A call is random, or writes to its input."""


class _PureCalls(TorchDispatchMode):
    """Lets deterministic calls without effects through, and no others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags:
            raise _ImpureError(str(func))
        return func(*args, **(kwargs or {}))


class Constants:
    """The nodes of a traced graph that no input has a part in, and their values.

    Floating-point parameters are widened to float64 before anything is computed from them, so
    that a product of parameters is as exact as the folds that use it.
    """

    def __init__(self, capture: Capture, barred: set[fx.Node]) -> None:
        """`barred` nodes are not evaluated: something writes to them."""
        self._contents: dict[fx.Node, Any] = {}
        self._computed: set[fx.Node] = set()
        for node in capture.graph.nodes:
            if node in barred:
                continue
            if node.op == "get_attr":
                self._contents[node] = capture.attribute(str(node.target))
            elif node.op in ("call_function", "call_method") and self._constant_inputs(node):
                self._evaluate(node)

    def __contains__(self, node: fx.Node) -> bool:
        """Whether the node is a constant."""
        return node in self._contents

    def computed(self, node: fx.Node) -> bool:
        """Whether it is the result of a computation, not an attribute of the model."""
        return node in self._computed

    def content(self, argument: Any) -> Any:
        """The value of a constant node, and None for any other argument."""
        return self._contents.get(argument) if isinstance(argument, fx.Node) else None

    def _constant_inputs(self, node: fx.Node) -> bool:
        inputs = node.all_input_nodes
        return bool(inputs) and all(source in self._contents for source in inputs)

    def _evaluate(self, node: fx.Node) -> None:
        def load(source: fx.Node) -> Any:
            content = self._contents[source]
            wide = isinstance(content, Tensor) and content.is_floating_point()
            return content.detach().double() if wide else content

        args, kwargs = pytree.tree_map_only(fx.Node, load, (node.args, node.kwargs))
        try:
            with torch.no_grad(), _PureCalls():
                if node.op == "call_method":
                    result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                else:
                    result = node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:
            return
        self._contents[node] = result
        self._computed.add(node)
