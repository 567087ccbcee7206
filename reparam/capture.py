"""Trace a model into a torch.fx graph, without leaving anything behind in it."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam import known
from reparam.bound import bind, defaults, split_constants, tensor_defaults
from reparam.errors import CaptureError, UntracedError
from reparam.paths import attribute_at
from reparam.places import NO_CODE, explained
from reparam.rebind import rebind
from reparam.runs import split_inputs
from reparam.tracer import Tracer
from reparam.training import check_mode


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
    _looked_up: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, compare=False)

    def attribute(self, path: str) -> Any:
        """What a path of the graph leads to; asked often, while nothing of the model changes."""
        if path not in self._looked_up:
            own = path in self.tensors
            self._looked_up[path] = self.tensors[path] if own else attribute_at(self.root, path)
        return self._looked_up[path]


@dataclass(eq=False, slots=True)
class Source:
    """The traced call that a value was transcribed from.

    Attributes:
        node: the traced call.
        inputs: which of its arguments the value is applied to; the others are constants.
    """

    node: fx.Node
    inputs: tuple[fx.Node, ...]


def path_of(node: fx.Node) -> str:
    """Where the call stands in the model, for names and remarks."""
    if node.op == "call_module" or "name" in node.meta:
        return str(node.meta.get("name", node.target))
    owner = node.meta.get("nn_module_stack")  # as the tracer copies it
    return f"{owner}.{node.name}" if owner and isinstance(owner, str) else node.name


def modules_of(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its path, the model itself first."""
    return model.named_modules()


def checked(model: Any) -> nn.Module:
    """The same, if it is a module with Python code.

    Raises:
        CaptureError: if it is not.
    """
    if isinstance(model, torch.export.ExportedProgram) or _exported(model):
        raise CaptureError(
            "an exported program holds torch's internal operators, not layers to fuse; "
            "compile the model, then export what comes of it"
        )
    if not isinstance(model, nn.Module):
        raise CaptureError(f"compile takes a torch.nn.Module, not {type(model).__name__}")
    lazy = known.TORCH.nn.parameter.is_lazy
    modules: Iterator[Any] = model.modules()
    if any(lazy(p) for module in modules for p in module._parameters.values()):
        raise CaptureError("the model has parameters of no size yet; run it once")
    for path, parameter in model.named_parameters():
        if str(parameter.layout).startswith("torch.sparse"):
            raise CaptureError(
                f"the parameter {path!r} is sparse, and torch copies no such parameters; "
                "hold it as a buffer"
            )
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(f"{NO_CODE} to trace; pass the module it was made from")
    return model


def _exported(model: Any) -> bool:
    """Whether a module is that of an exported program, which refuses to leave training mode."""
    if not isinstance(model, fx.GraphModule) or not model.training:
        return False
    return any(known.internal(node.target) for node in model.graph.nodes)


def capture(
    model: nn.Module,
    example_inputs: Any = None,
    constants: Mapping[str, Any] | None = None,
    method: str = "forward",
) -> Capture:
    """Trace a model in evaluation mode.

    Arguments of its forward that have defaults, and that no example is given of, keep them; the
    result then refuses other values.

    Args:
        model: what is traced.
        example_inputs: of the arguments that are not held constant.
        constants: arguments that are, by their names in the forward.
        method: what is traced.

    Raises:
        TrainingModeError: if it is in training mode.
        CaptureError: if it has no argument of a constant's name.
        UntracedError: if its own forward can't be traced.
    """
    check_mode(model)
    own: Any = type(model).__call__
    if own is not nn.Module.__call__ and not isinstance(model, fx.GraphModule):
        raise UntracedError(type(model).__name__, "its class has a __call__ of its own")
    if method in vars(model):
        raise UntracedError(type(model).__name__, f"its {method} is not that of its class")
    args, kwargs = split_inputs(() if example_inputs is None else example_inputs)
    tensors, others = split_constants(model, constants or {})
    parameters = inspect.signature(getattr(model, method)).parameters
    if _reordered(parameters):
        reason = "it takes keyword-only arguments behind a starred one, which torch.fx reorders"
        raise UntracedError(f"{type(model).__name__}.{method}", reason)
    left = [name for name in parameters if name not in tensors and name not in others]
    examples = {**dict(zip(left, args, strict=False)), **kwargs, **tensors}
    absent = {name: value for name, value in examples.items() if value is None}
    tensors |= tensor_defaults(parameters, examples)
    held = defaults(parameters, examples) | absent | others
    tracer = Tracer(examples, method)
    try:
        graph = tracer.trace(model, held or None)
    except Exception as error:
        name = f"{type(model).__name__}.{method}"
        raise UntracedError(name, explained(model, error)) from error
    taken = dir(model) if tensors else ()  # to list all parts takes long
    kept = bind(graph, parameters, taken, tensors, others)
    captured = Capture(model, graph, tracer.untraced, tracer.tensors | kept, tracer.called)
    rebind(graph, captured.attribute)
    return captured


def _reordered(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether torch.fx would give a forward its arguments in another order."""
    kinds = {parameter.kind for parameter in parameters.values()}
    return {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY} <= kinds
