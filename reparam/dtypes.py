"""The floating-point dtypes of a traced graph, as far as the names of its calls tell."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam import known
from reparam.capture import Capture

CASTS = {
    "half": torch.float16, "float": torch.float32, "double": torch.float64,
    "bfloat16": torch.bfloat16, "int": torch.int32, "long": torch.int64, "bool": torch.bool,
    "argmax": torch.int64, "argmin": torch.int64, **dict.fromkeys(known.TRUTHS, torch.bool),
}  # fmt: skip
"""What calls of these names return, whatever they are given."""


def dtypes_of(
    capture: Capture, inputs: Mapping[fx.Node, torch.dtype | None]
) -> dict[fx.Node, torch.dtype | None]:
    """The dtype of each result; None where it is not told.

    Of `inputs` that are not known, the layers that read them tell it.
    """
    dtypes: dict[fx.Node, torch.dtype | None] = {}
    for node in capture.graph.nodes:
        if node.op == "placeholder":
            dtypes[node] = inputs.get(node) or _demanded(node, capture)
        elif node.op in ("get_attr", "call_module"):
            content = capture.attribute(str(node.target))
            own = [content] if isinstance(content, Tensor) else []
            held = own or [*getattr(content, "parameters", tuple)()]
            dtypes[node] = held[0].dtype if held else _common(node, dtypes)
        else:
            dtypes[node] = _of_call(node, dtypes)
    return dtypes


def _demanded(node: fx.Node, capture: Capture) -> torch.dtype | None:
    """The dtype of an input that a layer reads: it has to be that of its weights."""
    called = (str(user.target) for user in node.users if user.op == "call_module")
    layers = (capture.attribute(path) for path in called if path not in capture.untraced)
    read = (layer.weight for layer in layers if isinstance(layer, nn.Linear | known.CONV_BASE))
    return next((weight.dtype for weight in read if isinstance(weight, Tensor)), None)


def _of_call(node: fx.Node, dtypes: dict[fx.Node, torch.dtype | None]) -> torch.dtype | None:
    name = known.name(node.target)
    if name in CASTS:
        return CASTS[name]
    asked: list[Any] = [node.kwargs.get("dtype")]
    if name in ("to", "type", "type_as"):
        asked += [*node.args[1:], node.kwargs.get("other")]
    for argument in asked:
        if isinstance(argument, torch.dtype):
            return argument
        if isinstance(argument, fx.Node):  # a tensor, or what was asked of one: its dtype
            return dtypes.get(argument)
    written = next(iter(node.args), None)
    if known.writes(node) and isinstance(written, fx.Node):
        return dtypes.get(written)
    common = _common(node, dtypes)
    plain = common is not None and common.is_floating_point
    if plain or not (name in known.ACCUMULATING or known.promotes(node.target) or name == "abs"):
        return common
    return torch.int64 if name in known.ACCUMULATING and common is not None else None


def _common(node: fx.Node, dtypes: dict[fx.Node, torch.dtype | None]) -> torch.dtype | None:
    """What the floating-point inputs of a call are promoted to."""
    given = [dtypes.get(source) for source in node.all_input_nodes]
    known_ones = [dtype for dtype in given if dtype is not None]
    floating = [dtype for dtype in known_ones if dtype.is_floating_point] or known_ones
    if len(known_ones) < len(given) or not floating:
        return None
    return functools.reduce(torch.promote_types, floating)
