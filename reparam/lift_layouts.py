"""What torch's selections, slices, permutations and averages over space mean, as layouts."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from reparam.facts import TensorFacts
from reparam.known import calls, renamed
from reparam.lift_functions import Context, Lifted, Rule
from reparam.operators import Slice
from reparam.sizes import Size
from reparam.values import Layout


def rank(context: Context, argument: Any) -> int | None:
    """The number of axes of an argument, where it is known."""
    facts = context.facts(argument)
    return len(facts.axes) if isinstance(facts, TensorFacts) and facts.exact else None


def integers(argument: Any) -> tuple[int, ...] | None:
    """A tuple or list of integers as a tuple; None for anything else."""
    if not isinstance(argument, tuple | list) or not argument:
        return None
    parts = tuple(cast("tuple[Any, ...]", argument))
    return parts if all(type(part) is int for part in parts) else None


def _select(context: Context, a: dict[str, Any], axis: Any, index: Any) -> Lifted | None:
    facts = context.facts(a["input"])
    if not isinstance(facts, TensorFacts) or not facts.exact:
        return None
    rank = len(facts.axes)
    if type(index) is not int or type(axis) is not int or rank == 0:
        return None
    axis = axis % rank
    size = cast("Size", facts.axes[axis])
    if index < 0 or (size.known and index >= size.factor):
        return None
    position = (axis - rank, index)
    return Layout(torch.select, pure=True, kind="select", index=position), (a["input"], axis, index)


def _narrow(context: Context, source: fx.Node, index: Any) -> Lifted | None:
    """One piece of a `chunk` or `split` along an axis of a known size."""
    given = dict(zip(("input", "pieces", "dim"), source.args, strict=False))
    named = given | renamed(source.kwargs)
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
    lengths = _pieces(size.factor, pieces, calls(source) == "split")
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
    if isinstance(source, fx.Node) and calls(source) in ("chunk", "split"):
        return _narrow(context, source, a["index"])
    if isinstance(source, fx.Node) and calls(source) == "unbind":
        axis = source.args[1] if len(source.args) > 1 else renamed(source.kwargs).get("dim", 0)
        return _select(context, {"input": source.all_input_nodes[0]}, axis, a["index"])
    if isinstance(a["index"], tuple):
        return _rows(context, a["input"], list(cast("tuple[Any, ...]", a["index"])))
    return _select(context, a, 0, a["index"])


def _rows(context: Context, x: Any, index: list[Any]) -> Lifted | None:
    """Slices of some axes: of those behind the channels, or of just one of a known size."""
    facts = context.facts(x)
    if not isinstance(facts, TensorFacts) or not facts.exact:
        return None
    rank = len(facts.axes)
    if index[:1] == [...]:
        index = [slice(None)] * (rank - len(index) + 1) + index[1:]
    index += [slice(None)] * (rank - len(index))
    bounds = [_bounds(part, size) for part, size in zip(index, facts.axes, strict=False)]
    several = [bound for bound in bounds if bound is not None]
    if len(index) != rank or len(several) < rank:
        return None
    sliced = [axis for axis, bound in enumerate(several) if bound != (0, 0, 1)]
    if sliced and rank > 2 and min(sliced) > 1:
        first, left, step = (tuple(bound[i] for bound in several[2:]) for i in range(3))
        return Slice(first, left, step), (x,)
    if len(sliced) != 1:
        return None
    (axis,) = sliced
    size, (first, cut, stride) = facts.axes[axis], several[axis]
    if not size.known or stride != 1:
        return None
    where, length = axis - rank, size.factor - first - cut
    value = Layout(torch.narrow, pure=True, kind="slice", index=(where, first), length=length)
    return value, (x, where, first, length)


def _bounds(part: Any, size: Size) -> tuple[int, int, int] | None:
    """The first row, the number of rows left out at the end, and the distance of the rows."""
    if not isinstance(part, slice):
        return None
    given = cast("Any", part)
    start, stop, step = given.start or 0, given.stop, given.step or 1
    if not all(type(bound) is int for bound in (start, step, 0 if stop is None else stop)):
        return None
    if stop is None:
        cut = 0
    elif stop < 0:
        cut = -int(stop)
    elif size.known:
        cut = max(size.factor - int(stop), 0)
    else:
        return None
    within = not size.known or start + cut < size.factor
    return (int(start), cut, int(step)) if start >= 0 and step > 0 and within else None


def _transpose(context: Context, a: dict[str, Any]) -> Lifted | None:
    facts = context.facts(a["input"])
    axes = (a["dim0"], a["dim1"])
    if not isinstance(facts, TensorFacts) or not all(type(axis) is int for axis in axes):
        return None
    if facts.exact and facts.axes:
        axes = tuple(axis % len(facts.axes) - len(facts.axes) for axis in axes)
    if max(axes) >= 0:
        return None
    order = list(range(min(axes), 0))
    order[0], order[max(axes) - min(axes)] = max(axes), min(axes)
    value = Layout(torch.transpose, pure=True, kind="permute", axes=tuple(order))
    return value, (a["input"], a["dim0"], a["dim1"])


def _mean(context: Context, a: dict[str, Any]) -> Lifted | None:
    axes, given = rank(context, a["input"]), a.get("dim", a.get("axis"))
    dims = integers((given,) if type(given) is int else given)
    if not axes or dims is None or "dtype" in a:
        return None
    away = tuple(sorted(dim % axes - axes for dim in dims))
    keep = bool(a.get("keepdim", False))
    value = Layout(torch.mean, pure=True, kind="mean" if keep else "mean out", axes=away)
    return value, (a["input"], away, keep)


POOLED: dict[str, dict[str, Any]] = {
    **{f"adaptive_avg_pool{n}d": {"output_size": 1} for n in (1, 2, 3)},
    "interpolate": {
        "size": None, "scale_factor": None, "mode": "nearest", "align_corners": None,
        "recompute_scale_factor": None, "antialias": False,
    },
}  # fmt: skip
"""Functions whose every result is an average of one channel, with weights that sum to one.

With them, the arguments after the input, and what these are when they are left out.
"""


def _pooled(name: str) -> Rule:
    function = getattr(F, name)

    def rule(context: Context, a: dict[str, Any]) -> Lifted:
        options = [a.get(option, default) for option, default in POOLED[name].items()]
        return Layout(function, pure=True, kind="pool"), (a["input"], *options)

    return rule


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "getitem": ("input", "index"),
    "select": ("input", "dim", "index"),
    "transpose": ("input", "dim0", "dim1"),
    "swapaxes": ("input", "dim0", "dim1"),
    "mean": ("input", "dim", "keepdim"),
    **{name: ("input", *options) for name, options in POOLED.items()},
}
"""The positional arguments of each function, as torch documents them."""

RULES: dict[str, Rule] = {
    "getitem": _getitem,
    "select": lambda context, a: _select(context, a, a["dim"], a["index"]),
    **dict.fromkeys(("transpose", "swapaxes"), _transpose),
    "mean": _mean,
    **{name: _pooled(name) for name in POOLED},
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


def layout_module(module: nn.Module, path: str) -> Layout | None:
    """A module that averages each channel over space with weights that sum to one."""
    averages = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample)
    if type(module) not in averages:
        return None
    return Layout(module, path=path, pure=True, kind="pool")
