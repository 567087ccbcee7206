"""Write convolutions, pools, pads, concatenations and norms as torch's own."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.arguments import give
from reparam.functions import Sides
from reparam.graph import Call
from reparam.operators import AvgPool, Cat, ConvTranspose, Norm, Operator, Pad, Slice
from reparam.traits import CHANNELS_LAST
from reparam.values import BatchNorm, Conv

CONVS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS: tuple[Any, ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""The modules by number of spatial axes, less one."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""The modules by number of spatial axes."""


def blank(kind: type[nn.Module], *args: Any, **options: Any) -> Any:
    """A layer of torch's whose weights hold no numbers yet: one made before, with dicts of its own.

    To make each anew, as torch does, takes longer than all else of it.
    """
    module = kind.__new__(kind)
    for name, value in vars(_made(kind, *args, **options)).items():
        vars(module)[name] = value.copy() if isinstance(value, dict | set | list) else value
    return module


@functools.lru_cache(maxsize=256, typed=True)
def _made(kind: type[nn.Module], *args: Any, **options: Any) -> nn.Module:
    """The layer that others are copies of; numbers are drawn for none."""
    return kind(*args, **options, device="meta")


def conv_module(conv: Conv, biased: bool) -> nn.Module:
    """The layer of a convolution, or a linear one, whose weights hold no numbers yet.

    What torch's own layer can't do, padding that is not symmetric, is done before it.
    """
    out, inner = conv.out_channels, conv.in_channels
    if conv.n == 0:
        return blank(nn.Linear, inner, out, bias=biased)
    padding = tuple(before for before, _ in conv.padding) if conv.symmetric else 0
    mode = conv.padding_mode if conv.symmetric else "zeros"
    return blank(
        CONVS[conv.n - 1], inner, out, conv.kernel, conv.stride, padding, conv.dilation,
        conv.groups, bias=biased, padding_mode=mode,
    )  # fmt: skip


def operator_module(value: Operator, parameter: Callable[[Tensor], nn.Parameter]) -> nn.Module:
    """The module of a pooling, a norm or a transposed convolution.

    Args:
        value: what it computes.
        parameter: makes a parameter of a weight.
    """
    match value:
        case AvgPool(kernel, stride, padding, ceil_mode, counted, divisor):
            options: dict[str, Any] = {"divisor_override": divisor} if value.n > 1 else {}
            return POOLS[value.n - 1](kernel, stride, padding, ceil_mode, counted, **options)
        case ConvTranspose():
            module = blank(
                TRANSPOSED[value.n - 1], value.in_channels, value.out_channels,
                tuple(value.weight.shape[2:]), value.stride, value.padding, value.output_padding,
                value.groups, value.bias is not None, value.dilation,
            )  # fmt: skip
        case Norm():
            module = _norm(value)
        case _:
            raise AssertionError(f"{type(value).__name__} is a function of torch's, no module")
    for name, content in (("weight", value.weight), ("bias", value.bias)):
        if hasattr(module, name):
            setattr(module, name, None if content is None else parameter(content))
    return module


def batch_norm_module(norm: BatchNorm, call: Call, device: torch.device) -> nn.Module:
    """The module of a batch norm, with the traits of a call."""
    module: Any = blank(BATCH_NORMS[norm.n or 0], norm.mean.numel(), norm.eps)
    module.running_mean = copied(norm.mean, call, device)
    module.running_var = copied(norm.variance, call, device)
    module.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=device)
    gamma = torch.ones_like(norm.mean) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.mean) if norm.bias is None else norm.bias
    module.weight, module.bias = (parameter(p, call, device) for p in (gamma, beta))
    return module


def _norm(norm: Norm) -> Any:
    """The module of a norm; its weights, if any, hold no numbers yet."""
    affine = norm.weight is not None
    if norm.kind == "rms":
        return blank(nn.RMSNorm, norm.channels, norm.eps, affine)
    eps = 1e-5 if norm.eps is None else norm.eps
    if norm.kind == "group":
        return blank(nn.GroupNorm, norm.groups, norm.channels, eps, affine)
    return blank(nn.LayerNorm, norm.channels, eps, affine, norm.bias is not None)


def write_call(
    graph: fx.Graph, path: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> fx.Node:
    """Add the call of a module to a graph, without fx's search of the arguments."""
    node = graph.create_node("call_module", path, kwargs=kwargs)
    give(node, args)
    return node


def write_operator(
    graph: fx.Graph,
    value: Cat | Pad | Slice,
    inputs: tuple[fx.Node, ...],
    buffer: Callable[[Tensor], fx.Node],
    known_dtype: bool,
) -> fx.Node:
    """Add the call of a value to a graph.

    Args:
        graph: with the insertion point at its end.
        value: what is called.
        inputs: what it is applied to.
        buffer: keeps a tensor.
        known_dtype: whether that is in the dtype of the inputs.
    """
    x = inputs[0]
    match value:
        case Cat(n):
            return graph.call_function(torch.cat, (list(inputs), -n - 1))
        case Slice():
            return graph.call_function(operator.getitem, (x, value.index))
        case Pad(padding, mode, border):
            if border is None:
                return write_padding(graph, x, padding, mode)
            if border.numel() == 1:
                return write_padding(graph, x, padding, mode, float(border))
            # To take it off before and add it behind would round what is not at the border.
            constant = buffer(border.reshape(-1, *(1,) * value.n))

            def cast(tensor: fx.Node) -> fx.Node:
                return tensor if known_dtype else graph.call_method("type_as", (tensor, x))

            inside = graph.call_method("expand_as", (cast(constant), x))
            zeroed = write_padding(graph, inside, padding, mode)
            whole = cast(graph.get_attr(str(constant.target)))  # anew, as in what is traced again
            rim = graph.call_function(operator.sub, (whole, zeroed))
            padded = write_padding(graph, x, padding, mode)
            return graph.call_function(operator.add, (padded, rim))


def write_padding(
    graph: fx.Graph,
    x: fx.Node,
    padding: Sides,
    padding_mode: str,
    constant: float | None = None,
) -> fx.Node:
    """Add a padding, by a constant or by a mode of convolutions, as torch's function."""
    sides = [side for pair in reversed(padding) for side in pair]
    mode = "constant" if padding_mode == "zeros" else padding_mode
    options: dict[str, Any] = {"mode": mode, "value": constant}
    return graph.call_function(F.pad, (x, sides), options)


def parameter(content: Tensor, call: Call, device: torch.device) -> nn.Parameter:
    """A parameter of a new module, with the traits of those that it was folded from."""
    kept = call.traits
    layout = torch.contiguous_format
    if kept.channels_last:
        layout = CHANNELS_LAST.get(content.ndim, layout)
    return nn.Parameter(copied(content, call, device, layout), requires_grad=kept.trainable)


def copied(
    content: Tensor,
    call: Call,
    device: torch.device,
    layout: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """A copy in the dtype of a call, on a device: in one step, so as not to have two at once."""
    cast = call.shape.dtype if call.shape and call.shape.dtype else content.dtype
    return content.detach().to(device, cast, copy=True, memory_format=layout)


def write_nothing(module: nn.Module) -> None:
    """Whoever writes in place is fenced; the others write to memory of their own."""
    if getattr(module, "inplace", False):
        module.inplace = False  # type: ignore[assignment]
