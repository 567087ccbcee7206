"""What torch's functions, operators and methods mean, as values.

A rule gets a call's arguments, named as torch names them, and returns the value with the
arguments that it is applied to; None where the call is nothing known.
"""

from collections.abc import Callable
from math import isfinite
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, fx

from reparam.algebra import affine
from reparam.devices import CPU
from reparam.errors import Declined
from reparam.facts import TensorFacts
from reparam.lift_modules import REAL, batch_norm, convolution
from reparam.values import IDENTITY, Shape, Sum, Value


@runtime_checkable
class Context(Protocol):
    """What rules may ask about the arguments of a call."""

    def constant(self, argument: Any) -> Any:
        """The content of an argument that no input has a part in, else None."""
        ...

    def facts(self, argument: Any) -> Any:
        """The facts of an argument that is a call."""
        ...


Lifted: TypeAlias = tuple[Value, tuple[Any, ...]]
Rule: TypeAlias = Callable[[Context, dict[str, Any]], Lifted | None]

ARGUMENTS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("add", "sub", "subtract", "rsub", "mul", "multiply"),
            *("truediv", "div", "divide", "true_divide"),
        ),
        ("input", "other"),
    ),
    **dict.fromkeys(("neg", "negative"), ("input",)),
    "linear": ("input", "weight", "bias"),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d"),
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    ),
    "batch_norm": (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    ),
    torch.batch_norm: (  # not in the order of the other one
        "input",
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "training",
        "momentum",
        "eps",
        "cudnn_enabled",
    ),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), ("input", "p", "training")),
    "getattr": ("input", "name"),
    "size": ("input", "dim"),
    "dim": ("input",),
    "ndimension": ("input",),
}
"""The positional arguments of each function, as torch documents them."""


def _number(content: Any) -> float | None:
    """A plain number, or the only element of a tensor without axes."""
    if isinstance(content, Tensor):
        number = content.ndim == 0 and content.is_floating_point()
        return float(content.detach()) if number else None
    return float(content) if type(content) in (int, float) else None


def _operand(context: Context, argument: Any) -> Any:
    """A constant operand, or None for one that is computed."""
    return context.constant(argument) if isinstance(argument, fx.Node) else argument


def _per_channel(context: Context, x: Any, content: Any) -> int | None:
    """The number of axes behind the one channel axis that a constant spans, if x has it too."""
    facts = context.facts(x)
    if not isinstance(content, Tensor) or not content.is_floating_point() or content.ndim == 0:
        return None
    if content.numel() == 1:
        return _any_channels(facts, content.ndim)
    long = [axis for axis, size in enumerate(content.shape) if size != 1]
    if len(long) != 1 or not isinstance(facts, TensorFacts) or len(facts.axes) < content.ndim:
        return None
    n = content.ndim - long[0] - 1
    return n if facts.channels(n) == content.numel() else None


def _any_channels(facts: Any, least: int) -> int | None:
    """The axes behind the channels, where one number goes for all: the first after the batch.

    Of tokens, or where the first is not known, it is the last.
    """
    if not isinstance(facts, TensorFacts) or len(facts.axes) < least:
        return None
    axes = len(facts.axes)
    choices = [axes - 2, 0] if axes > 3 else [0, axes - 2]
    choices = choices if facts.exact else [axes - 1]
    return next((n for n in choices if n >= 0 and facts.channels(n) is not None), None)


def _spread(context: Context, x: Any, content: Tensor, n: int) -> Tensor:
    """A constant as one number per channel."""
    channels = context.facts(x).channels(n)
    return content.detach().flatten().expand(channels)


def _mul(context: Context, a: dict[str, Any]) -> Lifted | None:
    for x, other in ((a["input"], a["other"]), (a["other"], a["input"])):
        content = _operand(context, other)
        if not isinstance(x, fx.Node) or content is None:
            continue
        number = _number(content)
        if number is not None and not _is_size(context, x):
            return Sum((number,)), (x,)
        scaled = _scaled(context, x, content)
        if scaled is not None:
            return scaled
    return None


def _scaled(context: Context, x: Any, content: Any) -> Lifted | None:
    """`content * x`, for a constant of one number per channel."""
    n = _per_channel(context, x, content)
    if n is not None:
        return affine(_spread(context, x, content, n), None, n), (x,)
    vector = isinstance(content, Tensor) and sum(size > 1 for size in content.shape) == 1
    if vector and content.is_floating_point() and not _is_size(context, x):
        raise Declined("it may be a scale per channel, but the channels of its input are not known")
    return None


def _is_size(context: Context, argument: Any) -> bool:
    """Whether it is known to be a number or a tuple of sizes, not a tensor."""
    facts = context.facts(argument)
    return facts is not None and not isinstance(facts, TensorFacts)


def _div(context: Context, a: dict[str, Any]) -> Lifted | None:
    x, content = a["input"], _operand(context, a["other"])
    if "rounding_mode" in a or not isinstance(x, fx.Node) or _is_size(context, x):
        return None
    number = _number(content)
    if number is not None:
        return None if number == 0 else (Sum((1 / number,)), (x,))
    if not isinstance(content, Tensor) or not content.is_floating_point():
        return None
    inverse = 1 / content.detach().double()
    finite = bool((inverse.isfinite() & content.isfinite()).all())
    return _scaled(context, x, inverse) if finite else None


def _weighted(context: Context, a: dict[str, Any], sign: float) -> Lifted | None:
    """`x + sign * alpha * y`."""
    alpha = _number(a.get("alpha", 1))
    if alpha is None:
        return None
    weights = (1.0, sign * alpha)
    x, y = a["input"], a["other"]
    if x is None or y is None:
        return None
    contents = tuple(_operand(context, argument) for argument in (x, y))
    if contents == (None, None):
        sized = _is_size(context, x) or _is_size(context, y)
        return None if sized else (Sum(weights), (x, y))
    for which in (0, 1):
        computed, content = (x, y)[which], contents[1 - which]
        if not isinstance(computed, fx.Node) or contents[which] is not None:
            continue
        number = _number(content)
        if number is not None and _keeps_dtype(context, computed, content):
            return _shifted(context, computed, weights[which], weights[1 - which] * number)
        n = _per_channel(context, computed, content)
        if n is not None:
            shift = _spread(context, computed, content, n) * weights[1 - which]
            return affine(torch.full_like(shift, weights[which]), shift, n), (computed,)
    return None


def _keeps_dtype(context: Context, x: Any, content: Any) -> bool:
    """Whether a sum with a number has the dtype of x: a tensor makes floats of integers."""
    facts = context.facts(x)
    return not isinstance(content, Tensor) or (
        isinstance(facts, TensorFacts) and facts.dtype in REAL
    )


def _shifted(context: Context, x: Any, weight: float, shift: float) -> Lifted | None:
    """`weight * x + shift`, one number for all channels."""
    facts = context.facts(x)
    if shift == 0:
        return None if _is_size(context, x) else (Sum((weight,)), (x,))
    if not isinstance(facts, TensorFacts) or facts.dtype not in REAL or not isfinite(shift):
        return None
    n = _any_channels(facts, 1)
    if n is None:
        raise Declined("it may be a shift per channel, but the channels of its input are not known")
    shifts = _spread(context, x, torch.tensor(shift, dtype=torch.float64, device=CPU), n)
    return affine(torch.full_like(shifts, weight), shifts, n), (x,)


def _rsub(context: Context, a: dict[str, Any]) -> Lifted | None:
    return _weighted(context, a | {"input": a["other"], "other": a["input"]}, -1.0)


def _neg(context: Context, a: dict[str, Any]) -> Lifted | None:
    return None if _is_size(context, a["input"]) else (Sum((-1.0,)), (a["input"],))


def _conv(context: Context, a: dict[str, Any]) -> Lifted | None:
    weight, bias = context.constant(a["weight"]), context.constant(a.get("bias"))
    if isinstance(weight, Tensor) and weight.ndim < 2:
        return None  # a product of vectors
    if weight is None or (bias is None and a.get("bias") is not None):
        raise Declined("its weight is computed from the input")
    options = (a.get("stride", 1), a.get("padding", 0), a.get("dilation", 1), a.get("groups", 1))
    return convolution(weight, bias, *options), (a["input"],)


def _batch_norm(context: Context, a: dict[str, Any]) -> Lifted | None:
    if a.get("training"):
        raise Declined("it is in training mode, where it uses the batch's statistics")
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = tensors = [context.constant(a.get(name)) for name in names]
    given = [a.get(name) for name in names]
    if any(t is None and argument is not None for t, argument in zip(tensors, given, strict=True)):
        raise Declined("one of its tensors is computed from the input")
    facts = context.facts(a["input"])
    n = len(facts.axes) - 2 if isinstance(facts, TensorFacts) and facts.exact else None
    norm = batch_norm(mean, variance, weight, bias, a.get("eps", 1e-5), n)
    return norm, (a["input"],)


def _dropout(context: Context, a: dict[str, Any]) -> Lifted | None:
    return (IDENTITY, (a["input"],)) if a.get("training", True) is False else None


def _getattr(context: Context, a: dict[str, Any]) -> Lifted | None:
    if a["name"] == "ndim":
        return Shape(rank=True), (a["input"],)
    return (Shape(), (a["input"],)) if a["name"] == "shape" else None


def _size(context: Context, a: dict[str, Any]) -> Lifted | None:
    axis = a.get("dim")
    return (Shape(axis), (a["input"],)) if axis is None or type(axis) is int else None


RULES: dict[str, Rule] = {
    "add": lambda context, a: _weighted(context, a, 1.0),
    **dict.fromkeys(("sub", "subtract"), lambda context, a: _weighted(context, a, -1.0)),
    "rsub": _rsub,
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("truediv", "div", "divide", "true_divide"), _div),
    **dict.fromkeys(("neg", "negative"), _neg),
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), _conv),
    "batch_norm": _batch_norm,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    "getattr": _getattr,
    "size": _size,
    **dict.fromkeys(("dim", "ndimension"), lambda context, a: (Shape(rank=True), (a["input"],))),
}
