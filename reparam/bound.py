"""Arguments of a forward that a user declares constant, as a part of the model."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from reparam.errors import CaptureError


def split_constants(
    model: nn.Module, constants: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors among constants by the names of arguments, and the others.

    Raises:
        CaptureError: if the model's forward has no such argument.
    """
    names = list(inspect.signature(model.forward).parameters)
    for name in constants:
        if name not in names:
            raise CaptureError(
                f"{type(model).__name__}.forward has no argument {name!r} to hold constant; "
                f"it has {', '.join(names)}"
            )
    tensors = {name: value for name, value in constants.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in constants.items() if name not in tensors}


def bind(graph: fx.Graph, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read tensors from the model in the place of arguments; they go from the graph's inputs.

    Returns:
        Copies of the tensors, by the paths that the graph reads them from.
    """
    kept: dict[str, Tensor] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.target in constants:
            path = f"_constant_{node.target}"
            kept[path] = constants[node.target].detach().clone()
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(path))
            graph.erase_node(node)
    # A graph's inputs come first.
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        if first < node:
            first.prepend(node)
    return kept


class Bound(nn.Module):
    """A model with some arguments held constant: what a compiled one is compared with."""

    def __init__(self, model: nn.Module, constants: Mapping[str, Any]) -> None:
        """The constants are by the names of the forward's arguments."""
        super().__init__()
        self.model = model
        tensors, self.others = split_constants(model, constants)
        self.names = list(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(f"_constant_{name}", tensor)
        held = {*tensors, *self.others}
        parameters = inspect.signature(model.forward).parameters
        self.left = [name for name in parameters if name not in held]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        tensors = {name: self.get_buffer(f"_constant_{name}") for name in self.names}
        given = dict(zip(self.left, args, strict=False))
        return self.model(**given, **kwargs, **tensors, **self.others)
