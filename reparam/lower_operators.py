"""Write pools, pads, concatenations, norms and transposed convolutions as torch's functions."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.operators import AVERAGES, TRANSPOSED, AvgPool, Cat, ConvTranspose, Norm, Pad
from reparam.values import Sides, Value


def write_operator(
    graph: fx.Graph,
    value: Value,
    inputs: tuple[fx.Node, ...],
    parameter: Callable[[str, Tensor | None], fx.Node | None],
    buffer: Callable[[str, Tensor], fx.Node],
) -> fx.Node:
    """Add the call of a value to a graph.

    Args:
        graph: with the insertion point at its end.
        value: what is called.
        inputs: what it is applied to.
        parameter: keeps a trained tensor under a name of the call's own.
        buffer: keeps any other.
    """
    x = inputs[0]
    match value:
        case Cat(n):
            return graph.call_function(torch.cat, (list(inputs), -n - 1))
        case Pad():
            return _write_pad(graph, value, x, buffer)
        case AvgPool(kernel, stride, padding, ceil_mode, counted, divisor):
            options: dict[str, Any] = {"divisor_override": divisor} if value.n > 1 else {}
            arguments = (x, kernel, stride, padding, ceil_mode, counted)
            return graph.call_function(AVERAGES[value.n - 1], arguments, options)
        case ConvTranspose():
            weights = parameter("weight", value.weight), parameter("bias", value.bias)
            hyper = (value.stride, value.padding, value.output_padding, value.groups)
            function = TRANSPOSED[value.n - 1]
            return graph.call_function(function, (x, *weights, *hyper, value.dilation))
        case Norm():
            return _write_norm(graph, value, x, parameter)
        case _:
            raise AssertionError(f"{type(value).__name__} is no operator of torch's")


def _write_pad(
    graph: fx.Graph, pad: Pad, x: fx.Node, buffer: Callable[[str, Tensor], fx.Node]
) -> fx.Node:
    if pad.border is None:
        return write_padding(graph, x, pad.padding, pad.padding_mode)
    constant = buffer("border", pad.border.reshape(-1, *(1,) * pad.n))
    inner = graph.call_function(operator.sub, (x, constant))
    padded = write_padding(graph, inner, pad.padding, pad.padding_mode)
    return graph.call_function(operator.add, (padded, constant))


def write_padding(graph: fx.Graph, x: fx.Node, padding: Sides, padding_mode: str) -> fx.Node:
    """Add a padding, with zeros or by a mode of convolutions, as torch's function."""
    sides = [side for pair in reversed(padding) for side in pair]
    mode = "constant" if padding_mode == "zeros" else padding_mode
    options: dict[str, Any] = {"mode": mode, "value": None}
    return graph.call_function(F.pad, (x, sides), options)


def plain_norm(norm: Norm) -> nn.Module:
    """The module of a norm without weights."""
    if norm.kind == "rms":
        return nn.RMSNorm(norm.channels, norm.eps, elementwise_affine=False)
    eps = 1e-5 if norm.eps is None else norm.eps
    if norm.kind == "group":
        return nn.GroupNorm(norm.groups, norm.channels, eps, affine=False)
    return nn.LayerNorm(norm.channels, eps, elementwise_affine=False)


def _write_norm(
    graph: fx.Graph,
    norm: Norm,
    x: fx.Node,
    parameter: Callable[[str, Tensor | None], fx.Node | None],
) -> fx.Node:
    weight, bias = parameter("weight", norm.weight), parameter("bias", norm.bias)
    if norm.kind == "rms":
        return graph.call_function(F.rms_norm, (x, (norm.channels,), weight, norm.eps))
    eps = 1e-5 if norm.eps is None else norm.eps
    if norm.kind == "group":
        return graph.call_function(F.group_norm, (x, norm.groups, weight, bias, eps))
    return graph.call_function(F.layer_norm, (x, (norm.channels,), weight, bias, eps))
