"""Trace a model into a torch.fx graph, without leaving anything behind in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from reparam import known
from reparam.errors import CaptureError, TrainingModeError
from reparam.meaning import has_meaning


@dataclass(frozen=True)
class Capture:
    """A traced model.

    Attributes:
        root: the model itself, which the graph's paths refer to.
        graph: its computation, in torch.fx form.
        untraced: path of each module that stays whole because it can't be traced, and why.
    """

    root: nn.Module
    graph: fx.Graph
    untraced: dict[str, str]


class _Tracer(fx.Tracer):
    """Traces into user modules; torch's own, and whatever can't be traced, stay whole."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=())
        self.untraced: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if hooked(m) or has_meaning(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            self._forget_after(last)
            self.untraced[path] = str(error).strip().split("\n")[0]
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


def keep_hooks(model: Any, fused: Any) -> None:
    """Give a compiled model the hooks of the model itself; those of its parts stay in place."""
    fused._forward_pre_hooks.update(model._forward_pre_hooks)
    fused._forward_hooks.update(model._forward_hooks)


def modules_of(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its path, the model itself first."""
    return model.named_modules()


def check_mode(model: nn.Module) -> None:
    """Refuse a model in training mode.

    Raises:
        TrainingModeError: naming the first module that behaves differently there.
    """
    if not model.training:
        return
    affected = (known.NORM_BASE, known.DROPOUT_BASE)
    layers = (
        (name, module)
        for name, module in modules_of(model)
        if module.training and isinstance(module, affected)
    )
    name, module = next(layers, ("", model))
    where = f"module {name!r} ({type(module).__name__})" if name else f"{type(module).__name__}"
    raise TrainingModeError(
        f"{where} is in training mode, where it is not the function that it deploys as; "
        "call model.eval() first"
    )


def capture(model: nn.Module) -> Capture:
    """Trace a model in evaluation mode.

    Raises:
        TrainingModeError: if it is in training mode.
        CaptureError: if its own forward can't be traced.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            "a ScriptModule has no Python code left to trace; pass the module it was made from"
        )
    check_mode(model)
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        line = str(error).strip().split("\n")[0]
        raise CaptureError(
            f"{type(model).__name__}.forward can't be traced by torch.fx: {line}; "
            "compile its submodules one by one instead"
        ) from error
    return Capture(model, graph, tracer.untraced)
