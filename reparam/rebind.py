"""Put two ways of writing things in a traced graph into a form without side effects.

A border that is written by assignment is a padding with that constant. A tensor that is reshaped
as another reads that one's sizes, not the tensor.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from reparam import known
from reparam.arguments import found, mapped
from reparam.devices import CPU
from reparam.lift_operators import integers, pad_with
from reparam.values import Opaque

SIZES = ((1, 1), (2, 3), (5, 4), (9, 8))
"""Images on which assignments are tried out."""


LARGEST = 32
"""Beyond it, an index is not tried out."""

Attribute = Callable[[str], Any]


def rebind(graph: fx.Graph, attribute: Attribute) -> None:
    """Rewrite a traced graph in place; it computes the same.

    Args:
        graph: what a trace made.
        attribute: what a path in it leads to.
    """
    for node in list(graph.nodes):
        as_other = node.target in ("reshape_as", "view_as") and len(node.args) == 2
        if node.op == "call_method" and as_other:
            with graph.inserting_before(node):
                sizes = graph.call_method("size", (node.args[1],))
            node.target = str(node.target).removesuffix("_as")
            node.args = (node.args[0], sizes)
        elif node.op == "call_function" and node.target is F.pad and len(node.args) > 1:
            _rebind_border(graph, node, attribute)


def _rebind_border(graph: fx.Graph, padded: fx.Node, attribute: Attribute) -> None:
    """Replace a padding and assignments to its whole border by a padding with a constant."""
    writes = [user for user in padded.users if _assigns(user, padded)]
    if not writes or any(node.users for node in writes):
        return
    readers = [user for user in padded.users if user not in writes]
    sides, constant = integers(padded.args[1]), writes[0].args[2]
    if sides is None or len(sides) != 4 or (readers and min(readers) < max(writes)):
        return
    shape = _per_channel(constant, attribute)
    if shape is None or any(node.args[2] is not constant for node in writes):
        return
    largest = max(map(abs, (*sides, *found([node.args[1] for node in writes], int))))
    if largest > LARGEST:
        return
    # More images, channels, rows and columns than any index counts up to.
    sizes = [(largest + 1, largest + 2, *size) for size in (*SIZES, (largest + 1, largest + 2))]
    if not all(_fills_border(padded, sides, writes, size, shape) for size in sizes):
        return
    pairs = ((sides[2], sides[3]), (sides[0], sides[1]))
    with graph.inserting_after(max(writes)):
        whole = graph.call_function(pad_with, (padded.args[0], pairs, constant))
    whole.meta = dict(padded.meta)
    for reader in readers:
        reader.replace_input_with(padded, whole)
    for node in (*reversed(writes), padded):
        graph.erase_node(node)
    graph.lint()


def _assigns(user: fx.Node, padded: fx.Node) -> bool:
    """Whether a call assigns to a part of a tensor."""
    return known.name(user.target) == "setitem" and user.args[0] is padded


def _per_channel(constant: Any, attribute: Attribute) -> tuple[int, ...] | None:
    """The shape of what is assigned, if that is a number for each channel, or one for all.

    None if it is anything else, or not computed from parameters alone.
    """
    try:
        content = _evaluated(constant, attribute)
    except Exception:  # it depends on an input, or can't be computed by itself
        return None
    if not isinstance(content, Tensor) or content.ndim not in (3, 4):
        return None
    if not content.is_meta and not bool(torch.isfinite(content).all()):
        return None  # what is not finite can be written, but not added and taken off
    return tuple(content.shape) if content.numel() == content.shape[-3] else None


def _evaluated(node: Any, attribute: Attribute) -> Any:
    """A node without inputs of the model above it."""
    if node.op == "get_attr":
        return attribute(str(node.target))
    args, kwargs = mapped((node.args, node.kwargs), fx.Node, lambda n: _evaluated(n, attribute))
    with torch.no_grad():
        return Opaque(node.target)(*args, **kwargs)


def _fills_border(
    padded: fx.Node,
    sides: tuple[int, ...],
    writes: list[fx.Node],
    size: tuple[int, int, int, int],
    shape: tuple[int, ...],
) -> bool:
    """Whether, for images of a size, just the border is written, and all of it.

    Args:
        padded: the padding.
        sides: by how much it pads.
        writes: the assignments.
        size: (batch, channels, height, width).
        shape: of the constant in the model: (channels, 1, 1), or with one axis more.
    """
    images = torch.zeros(size, device=CPU)
    channels = 1 if shape[-3] == 1 else size[1]
    numbers = torch.arange(1.0, channels + 1, device=CPU).reshape(-1, 1, 1)
    target: Any = padded.target
    try:
        result: Tensor = target(images, *padded.args[1:], **padded.kwargs)
        for node in writes:
            index: Any = node.args[1]
            result[index] = numbers[None] if len(shape) == 4 else numbers
    except (TypeError, RuntimeError, IndexError):
        return False
    return torch.equal(result, F.pad(images - numbers, sides) + numbers)
