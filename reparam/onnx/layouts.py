"""What ONNX's rearrangements, paddings and means are in torch's."""

import operator
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
    return site.call(operator.getitem, site.inputs[0], tuple(index))


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
    if axes is None or len(axes) != 1 or rank is None:
        return None
    return site.call(torch.unsqueeze, site.inputs[0], axes[0])


def _squeeze(site: Site) -> fx.Node | None:
    axes, rank = site.integers(1, "axes"), site.rank()
    if axes is None or len(axes) != 1 or rank is None:
        return None
    return site.call(torch.squeeze, site.inputs[0], axes[0])


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
