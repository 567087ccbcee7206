"""Trace a model into a torch.fx graph, without leaving anything behind in it."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam import known
from reparam.bound import bind, split_constants, tensor_defaults
from reparam.errors import CaptureError, TrainingModeError, first_line
from reparam.rebind import rebind
from reparam.tracer import Tracer, defaults
from reparam.verify import split_inputs


@dataclass(frozen=True)
class Capture:
    """A traced model.

    Attributes:
        root: the model itself, which the graph's paths refer to.
        graph: its computation, in torch.fx form.
        untraced: path of each module that stays whole because it can't be traced, and why.
        tensors: constants that a forward made, by path; the model does not have them.
    """

    root: nn.Module
    graph: fx.Graph
    untraced: dict[str, str]
    tensors: dict[str, Tensor]

    def attribute(self, path: str) -> Any:
        """What a path of the graph leads to."""
        if path in self.tensors:
            return self.tensors[path]
        owner, _, name = path.rpartition(".")
        return getattr(self.root.get_submodule(owner), name)

    def owner(self, path: str) -> nn.Module | None:
        """The module at a path, if the model has one there."""
        try:
            return self.root.get_submodule(path)
        except AttributeError:
            return None


HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
"""Where a module keeps the hooks of its forward, and how each wants to be called."""


def keep_hooks(model: Any, fused: Any) -> None:
    """Give a compiled model the hooks of the model itself; those of its parts stay in place."""
    for name in HOOKS:
        getattr(fused, name).update(getattr(model, name))


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


def capture(
    model: nn.Module, example_inputs: Any = None, constants: Mapping[str, Any] | None = None
) -> Capture:
    """Trace a model in evaluation mode.

    Arguments of its forward that have defaults, and that no example is given of, keep them; the
    result then refuses other values.

    Args:
        model: what is traced.
        example_inputs: of the arguments that are not held constant.
        constants: arguments that are, by their names in the forward.

    Raises:
        TrainingModeError: if it is in training mode.
        CaptureError: if its own forward can't be traced, or has no argument of a constant's name.
    """
    whatever: Any = model
    if not isinstance(whatever, nn.Module):
        raise CaptureError(f"compile takes a torch.nn.Module, not {type(whatever).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            "a ScriptModule has no Python code left to trace; pass the module it was made from"
        )
    check_mode(model)
    tracer = Tracer()
    args, kwargs = split_inputs(() if example_inputs is None else example_inputs)
    tensors, others = split_constants(model, constants or {})
    parameters = [p for p in inspect.signature(model.forward).parameters if p not in tensors]
    given = {*[p for p in parameters if p not in others][: len(args)], *kwargs, *tensors}
    tensors |= tensor_defaults(model, given)
    try:
        graph = tracer.trace(model, (defaults(model, given) | others) or None)
    except Exception as error:
        line = first_line(error)
        raise CaptureError(
            f"{type(model).__name__}.forward can't be traced: {line}; "
            "compile its submodules one by one instead"
        ) from error
    kept = bind(graph, model, tensors, others)
    captured = Capture(model, graph, tracer.untraced, tracer.tensors | kept)
    rebind(graph, captured.attribute)
    return captured
