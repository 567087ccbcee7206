"""Arguments of a forward that a user declares constant, as a part of the model."""

import inspect
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor, fx, nn

from reparam.errors import CaptureError
from reparam.loadable import without_none_checks

PREFIX = "_constant_"
"""What the paths of constants begin with."""


def split_constants(
    model: nn.Module, constants: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors among constants by the names of arguments, and the others.

    Raises:
        CaptureError: if the model's forward has no such argument.
    """
    parameters = inspect.signature(model.forward).parameters
    named = {
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    for name, value in constants.items():
        if name not in named:
            raise CaptureError(
                f"{type(model).__name__}.forward has no argument {name!r} to hold constant; "
                f"it has {', '.join(parameters)}"
            )
        if not isinstance(value, Tensor | bool | int | float | str | None):
            raise CaptureError(
                f"constant {name!r} is a {type(value).__name__}, neither a tensor nor a plain value"
            )
    tensors = {name: value for name, value in constants.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in constants.items() if name not in tensors}


Parameters = Mapping[str, inspect.Parameter]


def tensor_defaults(parameters: Parameters, given: Container[str]) -> dict[str, Tensor]:
    """The arguments of a forward that keep a tensor as their default."""
    return {
        name: p.default
        for name, p in parameters.items()
        if isinstance(p.default, Tensor) and name not in given
    }


def defaults(parameters: Parameters, given: Container[str]) -> dict[str, Any]:
    """Arguments of a forward that keep their defaults: plain ones that no example is given of."""
    return {
        name: p.default
        for name, p in parameters.items()
        if name not in given and isinstance(p.default, bool | int | float | str | None)
    }


def bind(
    graph: fx.Graph,
    parameters: Parameters,
    taken: Container[str],
    constants: Mapping[str, Tensor],
    plain: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Read tensors from the model in the place of arguments; constants are no inputs any more.

    Args:
        graph: as it was traced, with the plain constants in their places.
        parameters: of the forward that was traced.
        taken: the names that the model has.
        constants: the tensors, by the names of arguments.
        plain: the others.

    Returns:
        Copies of the tensors, by the paths that the graph reads them from.
    """
    kept: dict[str, Tensor] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder" and _specialised(node, plain, parameters):
            _erase_guards(graph, node)
        elif node.op == "placeholder" and _specialised(node, parameters, parameters):
            node.target = str(node.target).rpartition("_")[0]
        elif node.op == "placeholder" and node.all_input_nodes:
            (default,) = node.all_input_nodes
            node.args = ()  # a tensor, which stands behind the inputs
            if not default.users:
                graph.erase_node(default)
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.target in constants:
            path = f"{PREFIX}{node.target}"
            while path in taken:
                path += "_"
            kept[path] = constants[node.target].detach().clone()
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(path))
            graph.erase_node(node)
    _put_inputs_first(graph)
    without_none_checks(graph)
    return kept


def _put_inputs_first(graph: fx.Graph) -> None:
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        if first < node:
            first.prepend(node)


def _specialised(node: fx.Node, plain: Mapping[str, Any], declared: Container[str]) -> bool:
    """Whether an input is one that tracing has held to a value, and numbered."""
    name, _, number = str(node.target).rpartition("_")
    return number.isdigit() and name in plain and str(node.target) not in declared


def _erase_guards(graph: fx.Graph, node: fx.Node) -> None:
    """Erase an input with all that is computed from it: comparisons and assertions."""
    for user in list(node.users):
        _erase_guards(graph, user)
    graph.erase_node(node)


class Entry(nn.Module):
    """A model that is called by another of its methods."""

    def __init__(self, model: nn.Module, method: str) -> None:
        """Take the model and the method's name."""
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        return getattr(self.model, self.method)(*args, **kwargs)


class Bound(nn.Module):
    """A model with some arguments held constant: what a compiled one is compared with."""

    def __init__(self, model: nn.Module, constants: Mapping[str, Any]) -> None:
        """The constants are by the names of the forward's arguments."""
        super().__init__()
        self.model = model
        tensors, self.others = split_constants(model, constants)
        self.names = list(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(f"{PREFIX}{name}", tensor)
        held = {*tensors, *self.others}
        parameters = inspect.signature(model.forward).parameters
        self.left = [name for name in parameters if name not in held]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        # The forward may write to its arguments.
        tensors = {name: self.get_buffer(f"{PREFIX}{name}").clone() for name in self.names}
        given = dict(zip(self.left, args, strict=False))
        return self.model(**given, **kwargs, **tensors, **self.others)
