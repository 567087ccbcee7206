"""What torch's pools, pads, norms, concatenations and transposed convolutions mean, as values."""

from collections.abc import Callable
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor, nn

from reparam.devices import CPU
from reparam.errors import Declined, require
from reparam.functions import pad as continued
from reparam.learned import CAT_NAMES
from reparam.lift_functions import Context, Lifted, Rule
from reparam.lift_layouts import integers, rank
from reparam.lift_modules import per_axis, plain_data, require_real
from reparam.operators import AvgPool, Cat, ConvTranspose, Norm, Pad
from reparam.values import Sum, Value

MODES = {
    "constant": "zeros",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}
"""What F.pad calls the padding modes of convolutions."""


def average(n: int, a: dict[str, Any]) -> Value:
    """An average pooling over n axes from torch's arguments."""
    kernel = per_axis(a["kernel_size"], n)
    stride = a.get("stride")
    return AvgPool(
        kernel,
        kernel if stride in (None, (), []) else per_axis(stride, n),
        per_axis(a.get("padding", 0), n),
        a.get("ceil_mode", False),
        a.get("count_include_pad", True),
        a.get("divisor_override"),
    )


def transposed(weight: Any, bias: Any, n: int, a: dict[str, Any]) -> Value:
    """A transposed convolution from torch's arguments."""
    require_real(weight)
    require_real(bias)
    return ConvTranspose(
        plain_data(weight),
        plain_data(bias),
        per_axis(a.get("stride", 1), n),
        per_axis(a.get("padding", 0), n),
        per_axis(a.get("output_padding", 0), n),
        per_axis(a.get("dilation", 1), n),
        int(a.get("groups", 1)),
    )


def norm(kind: Any, a: dict[str, Any], channels: int, groups: int = 1) -> Norm:
    """A norm from torch's arguments, its weight and bias constants."""
    for tensor in (a.get("weight"), a.get("bias")):
        require_real(tensor)
    weight, bias = plain_data(a.get("weight")), plain_data(a.get("bias"))
    return Norm(kind, channels, weight, bias, a.get("eps"), groups)


def _average(n: int) -> Rule:
    return lambda context, a: (average(n, a), (a["input"],))


def _transposed(n: int) -> Rule:
    def rule(context: Context, a: dict[str, Any]) -> Lifted:
        weight, bias = _constants(context, a, "weight", "bias")
        return transposed(weight, bias, n, a), (a["input"],)

    return rule


def _constants(context: Context, a: dict[str, Any], *names: str) -> list[Any]:
    """The contents of arguments that must be constants, or left out."""
    contents = [context.constant(a.get(name)) for name in names]
    for name, content in zip(names, contents, strict=True):
        if content is None and a.get(name) is not None:
            raise Declined(f"its {name} is computed from the input")
    return contents


def _pad(context: Context, a: dict[str, Any]) -> Lifted | None:
    axes, sides = rank(context, a["input"]), integers(a["pad"])
    mode, constant = a.get("mode", "constant"), a.get("value")
    if axes is None or axes < 3 or sides is None or min(sides) < 0 or mode not in MODES:
        return None
    pairs = [(sides[i], sides[i + 1]) for i in range(0, len(sides), 2)][::-1]
    pairs = [(0, 0)] * (axes - 2 - len(pairs)) + pairs
    if len(pairs) > axes - 2 or not isinstance(constant, int | float | None):
        return None
    if constant is not None and not isfinite(constant):
        return None
    border = torch.tensor([constant], dtype=torch.float64, device=CPU) if constant else None
    return Pad(tuple(pairs), MODES[mode], border), (a["input"],)


def pad_with(x: Tensor, padding: Any, border: Tensor) -> Tensor:
    """A tensor padded with a constant per channel: what assigning a border amounts to.

    Args:
        x: (batch, channels, height, width).
        padding: before and after each of the last two axes.
        border: as many numbers as there are channels, or one.
    """
    constant = border.flatten().expand(x.shape[-3]).to(x.dtype)  # as an assignment casts it
    return continued(x, padding, "zeros", constant)


def _pad_with(context: Context, a: dict[str, Any]) -> Lifted:
    (border,) = _constants(context, a, "border")
    return Pad(a["padding"], border=border.detach().flatten()), (a["input"],)


def _cat(context: Context, a: dict[str, Any]) -> Lifted | None:
    several, axis = a["input"], a.get("dim", a.get("axis", 0))
    if not isinstance(several, tuple | list) or type(axis) is not int:
        return None
    tensors = tuple(cast("tuple[Any, ...]", several))
    ranks = {r for tensor in tensors if (r := rank(context, tensor)) is not None}
    axes = next(iter(ranks), None)
    if len(ranks) > 1 or (axis >= 0 and axes is None):
        return None  # torch lets empty tensors of one axis stand beside any other
    n = -axis - 1 if axis < 0 or axes is None else axes - axis - 1
    return Cat(n), tensors


def _layer_norm(kind: str) -> Rule:
    def rule(context: Context, a: dict[str, Any]) -> Lifted | None:
        shape = integers(a["normalized_shape"])
        if shape is None or len(shape) != 1:
            return None
        weight, bias = _constants(context, a, "weight", "bias")
        return norm(kind, {**a, "weight": weight, "bias": bias}, shape[0]), (a["input"],)

    return rule


def _group_norm(context: Context, a: dict[str, Any]) -> Lifted | None:
    weight, bias = _constants(context, a, "weight", "bias")
    given = {**a, "weight": weight, "bias": bias}
    if weight is None:
        return None  # there is nothing to fold
    return norm("group", given, weight.numel(), a["num_groups"]), (a["input"],)


SAME = Sum((1.0,))
"""What changes no number, but makes a tensor of its own."""


def _leaky(context: Context, a: dict[str, Any]) -> Lifted | None:
    slope = a.get("negative_slope", a.get("weight"))
    content = context.constant(slope)
    if isinstance(content, Tensor):
        return (SAME, (a["input"],)) if bool((content == 1).all()) else None
    return (SAME, (a["input"],)) if slope == 1 else None


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "avg_pool1d": (
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
    ),
    **dict.fromkeys(
        ("avg_pool2d", "avg_pool3d"),
        (
            "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
            "divisor_override",
        ),
    ),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        (
            "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
        ),
    ),
    "pad": ("input", "pad", "mode", "value"),
    "pad_with": ("input", "padding", "border"),
    **dict.fromkeys(CAT_NAMES, ("input", "dim")),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "leaky_relu": ("input", "negative_slope", "inplace"),
    "prelu": ("input", "weight"),
}  # fmt: skip
"""The positional arguments of each function, as torch documents them."""

RULES: dict[str, Rule] = {
    **{f"avg_pool{n}d": _average(n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _transposed(n) for n in (1, 2, 3)},
    "pad": _pad,
    "pad_with": _pad_with,
    **dict.fromkeys(CAT_NAMES, _cat),
    "layer_norm": _layer_norm("layer"),
    "rms_norm": _layer_norm("rms"),
    "group_norm": _group_norm,
    **dict.fromkeys(("leaky_relu", "prelu"), _leaky),
}


def _average_module(module: Any, axes: int | None) -> Value:
    n = next(
        n
        for n in (1, 2, 3)
        if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[n - 1])
    )
    return average(n, vars(module))


def _transposed_module(module: Any, axes: int | None) -> Value:
    a = {name: getattr(module, name) for name in ("stride", "padding", "output_padding")}
    given = {**a, "dilation": module.dilation, "groups": module.groups}
    return transposed(module.weight, module.bias, module.weight.ndim - 2, given)


def _norm_module(module: Any, axes: int | None) -> Value | None:
    parameters = {"weight": module.weight, "bias": getattr(module, "bias", None), "eps": module.eps}
    if isinstance(module, nn.GroupNorm):
        return norm("group", parameters, module.num_channels, module.num_groups)
    if len(module.normalized_shape) != 1:
        return None
    kind = "rms" if isinstance(module, nn.RMSNorm) else "layer"
    return norm(kind, parameters, module.normalized_shape[0])


def _leaky_module(module: Any, axes: int | None) -> Value | None:
    slope = module.weight if isinstance(module, nn.PReLU) else module.negative_slope
    one = bool((slope == 1).all()) if isinstance(slope, Tensor) else slope == 1
    return SAME if one else None


def _pad_module(module: Any, axes: int | None) -> Value:
    mode = next(
        mode for name, mode in PAD_MODULES.items() if type(module).__name__.startswith(name)
    )
    sides = module.padding
    pairs = tuple((sides[i], sides[i + 1]) for i in range(0, len(sides), 2))[::-1]
    require(all(s >= 0 for pair in pairs for s in pair), "it takes rows or columns off")
    constant = getattr(module, "value", 0.0)
    require(isfinite(constant), "it is padded with a number that is not finite")
    border = torch.tensor([constant], dtype=torch.float64, device=CPU) if constant else None
    return Pad(pairs, mode, border)


PAD_MODULES = {
    "ZeroPad": "zeros",
    "ConstantPad": "zeros",
    "ReflectionPad": "reflect",
    "ReplicationPad": "replicate",
    "CircularPad": "circular",
}
"""By what the names of torch's padding modules begin with, the padding mode."""

KINDS: dict[type[nn.Module], Callable[[Any, int | None], Value | None]] = {
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _average_module),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_module
    ),
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), _norm_module),
    **dict.fromkeys((nn.LeakyReLU, nn.PReLU), _leaky_module),
    **{getattr(nn, f"{name}{n}d"): _pad_module for name in PAD_MODULES for n in (1, 2, 3)},
}
"""What each class of torch's modules means."""
