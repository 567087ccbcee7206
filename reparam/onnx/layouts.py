"""What ONNX's rearrangements, paddings and means are in torch's."""

import operator
from collections.abc import Sequence
from math import isfinite

import torch
import torch.nn.functional as F
from torch import fx

from reparam.onnx.layers import flat
from reparam.onnx.site import Rule, Site

PAD_MODES = {
    "constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular",
}  # fmt: skip


FARTHEST = 2**31 - 1
"""A bound that no axis reaches: files have it where they mean the end."""


def _mean(site: Site) -> fx.Node | None:
    axes, rank = site.integers(1, "axes"), site.rank()
    if rank is None or (axes is None and site.given(1)) or not site.floating():
        return None
    if not axes and site.attributes.get("noop_with_empty_axes", 0):
        return None
    over = tuple(axes or range(rank))
    return site.call(torch.mean, site.inputs[0], over, bool(site.attributes.get("keepdims", 1)))


def _pad(site: Site) -> fx.Node | None:
    pads, rank = site.integers(1, "pads"), site.rank()
    mode = PAD_MODES.get(site.attributes.get("mode", "constant"))
    if pads is None or rank is None or mode is None or min(pads) < 0:
        return None
    axes = site.integers(3) if site.given(3) else [*range(rank)]
    if axes is None:
        return None
    sides = [(0, 0)] * rank
    half = len(pads) // 2
    for axis, before, after in zip(axes, pads[:half], pads[half:], strict=True):
        sides[axis] = (before, after)
    if rank < 3 or sides[0] != (0, 0) or sides[1] != (0, 0):
        return None
    constant = site.content(2)
    if site.given(2) and (constant is None or mode != "constant"):
        return None
    number = 0.0 if constant is None else float(constant)
    if not isfinite(number):
        return None
    return site.call(F.pad, site.inputs[0], flat(sides[2:]), mode, number or None)


def _concat(site: Site) -> fx.Node | None:
    return site.call(torch.cat, list(site.inputs), int(site.attributes["axis"]))


def _slice(site: Site) -> fx.Node | None:
    starts, ends = site.integers(1), site.integers(2)
    rank = site.rank()
    if starts is None or ends is None or rank is None:
        return None
    axes = site.integers(3) if site.given(3) else [*range(len(starts))]
    steps = site.integers(4) if site.given(4) else [1] * len(starts)
    if axes is None or steps is None or min(steps) < 1:
        return None
    index = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        first = None if start <= -FARTHEST else min(start, FARTHEST)
        index[axis] = slice(first, None if end >= FARTHEST else max(end, -FARTHEST), step)
    if rank > 2 and index[:-1] == [slice(None)] * (rank - 1) and _linear(site.inputs[0]):
        columns = _columns(site, index[-1])
        if columns is not None:
            return columns
    return site.call(operator.getitem, site.inputs[0], tuple(index))


def _linear(node: fx.Node | None) -> bool:
    """Whether the last axis of a tensor is that of its channels: what a linear layer returns."""
    added = node is not None and node.target is operator.add
    makers = node.all_input_nodes if node is not None and added else [node]
    return any(maker is not None and maker.target is F.linear for maker in makers)


def _columns(site: Site, part: slice) -> fx.Node | None:
    """Some channels, next to each other, as a piece of a split: torch's slices are of pixels."""
    facts = site.facts[0]
    if facts is None or not facts.axes[-1].known:
        return None
    size = facts.axes[-1].factor
    first, last, step = part.indices(size)
    if step != 1 or not first < last:
        return None
    pieces = site.call(torch.split, site.inputs[0], [first, last - first, size - last], -1)
    return site.call(operator.getitem, pieces, 1)


def _reshape(site: Site) -> fx.Node | None:
    sizes, rank = site.integers(1), site.rank()
    if sizes is None or rank is None or (0 in sizes and site.attributes.get("allowzero", 0)):
        return None
    if any(size == 0 and axis >= rank for axis, size in enumerate(sizes)):
        return None
    told = [
        site.graph.call_method("size", (site.inputs[0], axis)) if size == 0 else size
        for axis, size in enumerate(sizes)
    ]
    return site.call(torch.reshape, site.inputs[0], tuple(told))


def _flatten(site: Site) -> fx.Node | None:
    axis, rank = int(site.attributes.get("axis", 1)), site.rank()
    if rank is None or rank < 2 or axis % rank not in (1, rank - 1):
        return None
    ends = (1,) if axis % rank == 1 else (0, rank - 2)
    return site.call(torch.flatten, site.inputs[0], *ends)


def _transpose(site: Site) -> fx.Node | None:
    rank = site.rank()
    order = site.attributes.get("perm") or (None if rank is None else [*range(rank)][::-1])
    return None if order is None else site.call(torch.permute, site.inputs[0], tuple(order))


def _shape(site: Site) -> fx.Node | None:
    """Sizes alone are read: whatever is folded has to keep them, not its numbers."""
    facts = site.facts[0]
    if facts is not None:
        start, end = (site.attributes.get(name) for name in ("start", "end"))
        sizes = facts.axes[start:end]
        if all(size.known for size in sizes):
            numbers = [size.factor for size in sizes]
            return site.call(torch.tensor, numbers, dtype=torch.int64)
    if site.attributes.keys() & {"start", "end"}:
        return None
    return site.call(torch.as_tensor, site.call(getattr, site.inputs[0], "shape"))


def _gather(site: Site) -> fx.Node | None:
    """One row of an axis: other indices are nothing that the compiler knows."""
    index, rank = site.content(1), site.rank()
    if index is None or index.ndim or rank is None:
        return None
    axis = int(site.attributes.get("axis", 0))
    return site.call(torch.select, site.inputs[0], axis % rank, int(index))


def _unsqueeze(site: Site) -> fx.Node | None:
    axes, rank = site.integers(1, "axes"), site.rank()
    if axes is None or rank is None:
        return None
    whole = rank + len(axes)
    added, own = {axis % whole for axis in axes}, iter(range(rank))
    if len(added) != len(axes):
        return None
    return _resized(site, [None if axis in added else next(own) for axis in range(whole)])


def _squeeze(site: Site) -> fx.Node | None:
    """Without axes it takes all that are of size 1, which has to be known of each."""
    axes, facts = site.integers(1, "axes"), site.facts[0]
    if facts is None or axes == [] or (axes is None and site.given(1)):
        return None  # runtimes differ on what no axes are, if they are given
    if axes is None and not all(size.known for size in facts.axes):
        return None
    rank = len(facts.axes)
    gone = {axis % rank for axis in axes or ()}
    if axes is None:
        gone = {axis for axis, size in enumerate(facts.axes) if size.factor == 1}
    return _resized(site, [axis for axis in range(rank) if axis not in gone])


def _resized(site: Site, axes: Sequence[int | None]) -> fx.Node | None:
    """A reshape to the sizes of some axes; None stands for a size of 1."""
    facts = site.facts[0]
    assert facts is not None, "whoever asks knows the rank"

    def size(axis: int | None) -> int | fx.Node:
        if axis is None or facts.axes[axis].known:
            return 1 if axis is None else facts.axes[axis].factor
        return site.graph.call_method("size", (site.inputs[0], axis))

    return site.call(torch.reshape, site.inputs[0], tuple(map(size, axes)))


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
