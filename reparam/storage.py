"""Memory: what a model keeps, who reads what somebody may write to, and what returns its own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam import known
from reparam.arguments import found
from reparam.capture import Capture

NORM_BASE: Any = known.TORCH.nn.modules.batchnorm._NormBase
"""Batch norms and instance norms."""

WRITING = {
    "batch_norm": ("training", 5, False, ("running_mean", "running_var")),
    "instance_norm": ("use_input_stats", 5, True, ("running_mean", "running_var")),
    "embedding": ("max_norm", 3, None, ("weight",)),
    "embedding_bag": ("max_norm", 3, None, ("weight",)),
}
"""Functions that write to what they are given of a model, if an argument asks for it.

That argument, its place and its default; and which are written to: the first, and what follows.
"""

SHIFTED = (torch.batch_norm, torch.instance_norm)
"""Those of them that take weights first, and statistics two places later."""


LAYERS = (nn.Linear, known.CONV_BASE, known.BATCH_NORM_BASE)
"""Modules that are rewritten to layers, or stay."""

FRESH_MODULES = (*LAYERS, known.ADAPTIVE_POOL_BASE)
"""Modules whose result shares no memory with their input, whatever the mode."""

FRESH_KINDS = {"pointwise", "clamp", "elementwise", "matmul", "attention", "pool", "max_pool"}
FRESH_NAMES = {
    "batch_norm", "cat", "stack", "mean", "sum", "amax", "max_pool2d", "avg_pool2d", "interpolate",
    "flip", "roll", "bmm", "normalize", "repeat_interleave",
}  # fmt: skip
VIEWS = {"contiguous", "detach"}
"""Of these kinds by name, but the result may be the input."""


def statistics(node: fx.Node) -> list[fx.Node]:
    """The tensors in which a function keeps what it has seen, or whose norms it sees to."""
    if known.calls(node) not in WRITING:
        return []
    asked, place, default, names = WRITING[known.calls(node) or ""]
    told = node.args[place] if place < len(node.args) else node.kwargs.get(asked, default)
    first = 3 if node.target in SHIFTED else 1
    given = [*node.args[first : first + len(names)], *map(node.kwargs.get, names)]
    return [] if told is None or told is False else found(given, fx.Node)


def _writes(module: Any) -> bool:
    """Whether one of torch's modules writes to what it keeps itself."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return module.max_norm is not None
    return isinstance(module, NORM_BASE) and module.training and module.track_running_stats


def kept_writable(nodes: Iterable[fx.Node], capture: Capture) -> dict[Any, nn.Module | None]:
    """The memory that modules which stay whole keep, and may write to, with the module."""
    called = {str(node.target) for node in nodes if node.op == "call_module"}
    modules = {path: capture.attribute(path) for path in called}
    whole = (m for path, m in modules.items() if path in capture.untraced or _writes(m))
    return {place_of(tensor): module for module in whole for tensor in _own_tensors(module)}


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


def makes_memory(target: Any) -> bool:
    """Whether a function, method or module that writes nothing is known to return new memory."""
    if isinstance(target, nn.Module):
        return isinstance(target, FRESH_MODULES) or known.kind(target) in FRESH_KINDS
    called = known.name(target) or ""
    return called not in VIEWS and (known.kind(target) in FRESH_KINDS or called in FRESH_NAMES)
