"""What torch's selections, slices and permutations mean, as layouts."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from reparam.facts import TensorFacts
from reparam.known import kind
from reparam.lift_functions import Context, Lifted, Rule
from reparam.sizes import Size
from reparam.values import Layout


def _select(context: Context, a: dict[str, Any], axis: Any, index: Any) -> Lifted | None:
    facts = context.facts(a["input"])
    if not isinstance(facts, TensorFacts) or not facts.exact:
        return None
    rank = len(facts.axes)
    if not isinstance(index, int) or not isinstance(axis, int) or rank == 0:
        return None
    axis = axis % rank
    size = cast("Size", facts.axes[axis])
    if index < 0 or (size.known and index >= size.factor):
        return None
    position = (axis - rank, index)
    return Layout(torch.select, pure=True, kind="select", index=position), (a["input"], axis, index)


def _narrow(context: Context, source: fx.Node, index: Any) -> Lifted | None:
    """One piece of a `chunk` or `split` along an axis of a known size."""
    named = dict(zip(("input", "pieces", "dim"), source.args, strict=False)) | source.kwargs
    x = named["input"]
    pieces = named.get("pieces", named.get("chunks", named.get("split_size_or_sections")))
    axis = named.get("dim", 0)
    facts = context.facts(x)
    if not isinstance(facts, TensorFacts) or not facts.exact or type(axis) is not int:
        return None
    position = axis % len(facts.axes)
    axis, size = position - len(facts.axes), facts.axes[position]
    if not size.known or type(index) is not int:
        return None
    lengths = _pieces(size.factor, pieces, kind(source.target) == "split")
    if lengths is None or not -len(lengths) <= index < len(lengths):
        return None
    start, length = sum(lengths[: index % len(lengths)]), lengths[index]
    value = Layout(torch.narrow, pure=True, kind="slice", index=(axis, start), length=length)
    return value, (x, axis, start, length)


def _pieces(size: int, pieces: Any, split: bool) -> list[int] | None:
    """The lengths of the pieces of a `split`, or of a `chunk`."""
    if isinstance(pieces, tuple | list):
        lengths = list(cast("tuple[Any, ...]", pieces))
        return lengths if all(type(n) is int for n in lengths) and sum(lengths) == size else None
    if type(pieces) is not int or pieces < 1:
        return None
    length = pieces if split else -(-size // pieces)
    return [min(length, size - start) for start in range(0, size, length)]


def _getitem(context: Context, a: dict[str, Any]) -> Lifted | None:
    source = a["input"]
    if isinstance(source, fx.Node) and kind(source.target) in ("chunk", "split"):
        return _narrow(context, source, a["index"])
    if isinstance(source, fx.Node) and kind(source.target) == "unbind":
        axis = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
        return _select(context, {"input": source.all_input_nodes[0]}, axis, a["index"])
    return _select(context, a, 0, a["index"])


def _transpose(context: Context, a: dict[str, Any]) -> Lifted | None:
    facts = context.facts(a["input"])
    axes = (a["dim0"], a["dim1"])
    if not isinstance(facts, TensorFacts) or not all(type(axis) is int for axis in axes):
        return None
    if facts.exact:
        axes = tuple(axis % len(facts.axes) - len(facts.axes) for axis in axes)
    if max(axes) >= 0:
        return None
    order = list(range(min(axes), 0))
    order[0], order[max(axes) - min(axes)] = max(axes), min(axes)
    value = Layout(torch.transpose, pure=True, kind="permute", axes=tuple(order))
    return value, (a["input"], a["dim0"], a["dim1"])


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "getitem": ("input", "index"),
    "select": ("input", "dim", "index"),
    "transpose": ("input", "dim0", "dim1"),
    "swapaxes": ("input", "dim0", "dim1"),
}
"""The positional arguments of each function, as torch documents them."""

RULES: dict[str, Rule] = {
    "getitem": _getitem,
    "select": lambda context, a: _select(context, a, a["dim"], a["index"]),
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
}


def permutation(node: fx.Node, facts_of: Callable[[Any], Any]) -> Layout | None:
    """The layout of a permute, whose arguments come in two forms."""
    if node.kwargs or not node.args:
        return None
    target: Any = node.target
    args, facts = node.args, facts_of(node.args[0])
    one = len(args) == 2 and isinstance(args[1], tuple | list)
    axes = tuple(cast("tuple[Any, ...]", args[1])) if one else args[1:]
    if not isinstance(facts, TensorFacts) or not facts.exact or len(axes) != len(facts.axes):
        return None
    if not all(type(axis) is int for axis in axes):
        return None
    rank = len(axes)
    order = tuple(cast("int", axis) % rank - rank for axis in axes)
    return Layout(target, pure=True, kind="permute", axes=order)
