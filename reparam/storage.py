"""The memory of what a model keeps, and who reads what somebody may write to."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from reparam.capture import Capture


def kept_writable(nodes: Iterable[fx.Node], capture: Capture) -> dict[Any, nn.Module | None]:
    """The memory that modules which stay whole keep, and may write to, with the module."""
    whole = {str(n.target) for n in nodes if n.op == "call_module"} & capture.untraced.keys()
    modules = map(capture.attribute, whole)
    return {place_of(tensor): module for module in modules for tensor in _own_tensors(module)}


def _own_tensors(module: nn.Module) -> tuple[Tensor, ...]:
    return (*module.parameters(), *module.buffers())


def place_of(content: Any) -> Any:
    """What tells the memory of a tensor from that of others."""
    on_meta = not isinstance(content, Tensor) or content.is_meta or not content.numel()
    return id(content) if on_meta else content.untyped_storage().data_ptr()


def owners(held: Mapping[Any, nn.Module | None], capture: Capture) -> set[fx.Node]:
    """The calls that read a parameter or buffer that is written to, by whatever path.

    A module that alone may write to what it keeps is none of them.
    """
    if not held:
        return set()
    found: set[fx.Node] = set()
    for node in capture.graph.nodes:
        if node.op == "call_module":
            module = capture.attribute(str(node.target))
            places = map(place_of, _own_tensors(module))
            if any(held.get(place, module) is not module for place in places):
                found.add(node)
        elif node.op == "get_attr" and place_of(capture.attribute(str(node.target))) in held:
            found |= {node, *node.users}
    return found
