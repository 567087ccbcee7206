"""Arithmetic of residues: sums and products are reduced, divisions are products with an inverse.

Of a ReLU it counts whether a residue is a square.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from reparam.devices import CPU
from reparam.field import LONGEST_SUM, inverse, keeps_sign, reduced, sign
from reparam.functions import convolve
from reparam.residue import (
    Bound,
    Handler,
    Places,
    Residue,
    UnmodelledError,
    VanishedError,
)
from reparam.residue_parts import at_each, joint_bound, residue_of


def _made(places: Places, parts: list[Tensor], top: int, bottom: int, *given: Any) -> Residue:
    """A result of arithmetic, its elements reduced."""
    bound = joint_bound(given)
    numbers = [number for number in given if isinstance(number, int | float)]
    skewed = bound.skewed or not all(map(keeps_sign, numbers))
    return Residue(places, tuple(map(reduced, parts)), Bound(top, bottom, bound.names, skewed))


def _pair(places: Places, x: Any, y: Any) -> list[tuple[Any, Any]]:
    """Two operands at each place, either of which may be a number."""

    def parts_of(one: Any) -> tuple[Any, ...]:
        if isinstance(one, Residue):
            return one.parts
        return (one if isinstance(one, Tensor) else residue_of(one),) * places.count

    return list(zip(parts_of(x), parts_of(y), strict=True))


def _degrees(x: Any) -> tuple[int, int]:
    return (x.bound.top, x.bound.bottom) if isinstance(x, Residue) else (0, 0)


def _add(places: Places, func: Any, x: Any, y: Any, alpha: Any = 1) -> Residue:
    name = func.overloadpacket.__name__
    if name == "rsub":
        x, y = y, x
    factor = residue_of(alpha if name == "add" else -alpha)
    (top, bottom), (other, below) = _degrees(x), _degrees(y)
    # Over the product of the denominators; a constant has none.
    tops = max(top + below, other + bottom)
    parts = [a + factor * b for a, b in _pair(places, x, y)]
    return _made(places, parts, tops, bottom + below, x, y, alpha)


def difference(places: Places, x: Any, y: Any) -> Residue:
    """Of two operands, either of which may be a number."""
    return _add(places, torch.ops.aten.sub.Tensor, x, y)


def _mul(places: Places, _: Any, x: Any, y: Any) -> Residue:
    (top, bottom), (other, below) = _degrees(x), _degrees(y)
    parts = [a * b for a, b in _pair(places, x, y)]
    return _made(places, parts, top + other, bottom + below, x, y)


def _neg(places: Places, _: Any, x: Residue) -> Residue:
    return _mul(places, None, x, -1)


def _addcmul(places: Places, func: Any, x: Any, a: Any, b: Any, value: Any = 1) -> Residue:
    return _add(places, torch.ops.aten.add.Tensor, x, _mul(places, func, a, b), value)


def _reciprocal(places: Places, _: Any, x: Residue) -> Residue:
    zero = torch.stack([part == 0 for part in x.parts])
    if bool(zero.all(0).any()):
        raise UnmodelledError("it divides by zero")
    if bool(zero.any()):
        raise VanishedError
    return _made(places, [inverse(part) for part in x.parts], x.bound.bottom, x.bound.top, x)


def _div(places: Places, _: Any, x: Any, y: Any, rounding_mode: str | None = None) -> Residue:
    if rounding_mode is not None:
        raise UnmodelledError("a quotient is rounded")
    if not isinstance(y, Residue):
        y = places.constant(torch.as_tensor(y, dtype=torch.float64, device=CPU))
    return _mul(places, None, x, _reciprocal(places, None, y))


def _square(places: Places, _: Any, x: Residue) -> Residue:
    return _mul(places, None, x, x)


def _rsqrt(places: Places, _: Any, x: Residue) -> Residue:
    root = places.root(x)
    return places.opaque("rsqrt", x, positive=True) if root is None else root


def _sqrt(places: Places, _: Any, x: Residue) -> Residue:
    return _reciprocal(places, None, _rsqrt(places, None, x))


def _pow(places: Places, _: Any, x: Any, exponent: Any) -> Residue:
    if exponent in (1, 2, 3):
        result = x
        for _ in range(int(exponent) - 1):
            result = _mul(places, None, result, x)
        return result
    known = {-1: _reciprocal, 0.5: _sqrt, -0.5: _rsqrt}
    if isinstance(exponent, int | float) and exponent in known:
        return known[exponent](places, None, x)
    return places.opaque(f"pow {exponent}", x)


def _summed(x: Bound, terms: int) -> tuple[int, int]:
    """The degrees of a sum of so many terms, each over a denominator of its own."""
    return x.top + max(terms - 1, 0) * x.bottom, max(terms, 1) * x.bottom


def _sum(places: Places, func: Any, x: Residue, *args: Any, **kwargs: Any) -> Residue:
    parts = at_each(places, func, (x, *args), kwargs)
    terms = x.numel() // max(parts[0].numel(), 1)
    return _made(places, parts, *_summed(x.bound, terms), x)


def _mean(places: Places, func: Any, x: Residue, *args: Any, **kwargs: Any) -> Residue:
    overload = "dim_IntList" if func._overloadname == "dim" else "default"
    total = _sum(places, getattr(torch.ops.aten.sum, overload), x, *args, **kwargs)
    terms = x.numel() // max(total.numel(), 1)
    return _div(places, None, total, terms)


def _product(places: Places, func: Any, x: Residue, y: Residue, terms: int, *rest: Any) -> Residue:
    """An operator that sums so many products of elements of two tensors."""
    if terms > LONGEST_SUM:
        raise UnmodelledError(f"a sum of {terms} products is too long to be exact")
    bound = Bound(x.bound.top + y.bound.top, x.bound.bottom + y.bound.bottom)
    parts = at_each(places, func, (x, y, *rest), {})
    return _made(places, parts, *_summed(bound, terms), x, y)


def _matmul(places: Places, func: Any, x: Residue, y: Residue) -> Residue:
    return _product(places, func, x, y, x.shape[-1])


def _addmm(
    places: Places, func: Any, bias: Residue, x: Residue, y: Residue, beta: Any = 1, alpha: Any = 1
) -> Residue:
    plain = {"addmm": "mm", "baddbmm": "bmm", "addmv": "mv"}[func.overloadpacket.__name__]
    made = _matmul(places, getattr(torch.ops.aten, plain).default, x, y)
    add = torch.ops.aten.add.Tensor
    return _add(places, add, _mul(places, None, bias, beta), made, alpha)


def _convolution(
    places: Places, func: Any, x: Residue, weight: Residue, bias: Residue | None, *rest: Any
) -> Any:
    transposed, groups = rest[3], rest[5]
    taps = prod(weight.shape[2:])
    terms = taps * (weight.shape[0] // groups if transposed else weight.shape[1])
    if not transposed and not any(rest[1]):
        made = _product(places, _forwards, x, weight, terms, rest[0], rest[2], groups)
    else:
        made = _product(places, func, x, weight, terms, None, *rest)
    if bias is None:
        return made
    spread = [-1, *(1,) * (weight.ndim - 2)]
    return made + bias.view(spread)


def _pad_backward(places: Places, func: Any, x: Residue, *args: Any) -> Residue:
    """The transpose of a padding: a sum of what was read more than once."""
    terms = 3 ** (x.ndim - 2) * max(args[-1], default=1)
    return _made(places, at_each(places, func, (x, *args), {}), *_summed(x.bound, terms), x)


def _convolution_backward(
    places: Places, func: Any, gradient: Residue, source: Residue, weight: Residue, *rest: Any
) -> Any:
    """The transpose of a convolution, and of nothing else that has a gradient."""
    taps, mask = prod(weight.shape[2:]), rest[-1]
    if mask[1] or mask[2]:
        raise UnmodelledError("a gradient of weights has no counterpart in a finite field")
    terms = taps * weight.shape[0] // rest[-2]

    def transposed(gradient: Tensor, weight: Tensor, shape: Any) -> Tensor:
        return func(gradient, gradient.new_empty(shape), weight, *rest)[0]

    made = _product(places, transposed, gradient, weight, terms, tuple(source.shape))
    return made, None, None


def _forwards(x: Tensor, weight: Tensor, stride: Any, dilation: Any, groups: int) -> Tensor:
    return convolve(x, weight, None, tuple(stride), tuple(dilation), groups)


def _avg_pool(
    places: Places, func: Any, x: Residue, kernel: Any, stride: Any = (), padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
) -> Any:  # fmt: skip
    options = (kernel, stride or kernel, padding, ceil_mode, count_include_pad)
    parts = at_each(places, func, (x, *options, 1), {})
    ones = torch.ones(x.shape, dtype=torch.float64, device=CPU)
    counted, averaged = func(ones, *options, 1), func(ones, *options, divisor_override)
    divisors = torch.where(counted == 0, 1, torch.round(counted / averaged))
    sizes = kernel if len(kernel) == x.ndim - 2 else (*kernel,) * (x.ndim - 2)
    total = _made(places, parts, *_summed(x.bound, prod(sizes)), x)
    return total / divisors


def _adaptive_avg_pool(places: Places, _: Any, x: Any, sizes: Any) -> Any:
    """Each axis by itself: a matrix with the averages of its windows."""
    for axis, size in zip(range(-len(sizes), 0), sizes, strict=True):
        length = x.shape[axis]
        rows = torch.zeros(size, length, dtype=torch.float64, device=CPU)
        for row in range(size):
            rows[row, row * length // size : -(-(row + 1) * length // size)] = 1.0
        x = (x.transpose(axis, -1) @ rows.t() / rows.sum(1)).transpose(axis, -1)
    return x


def _prelu(places: Places, _: Any, x: Residue, slope: Residue) -> Residue:
    pairs = zip(x.parts, slope.parts, strict=True)
    places.skewed |= x.bound.skewed
    parts = [torch.where(sign(a) > 0, a, a * b) for a, b in pairs]
    top, bottom = x.bound.top + slope.bound.top, x.bound.bottom + slope.bound.bottom
    return _made(places, parts, top, bottom, x, slope)


def _homogeneous(places: Places, func: Any, x: Residue, slope: float = 0.01) -> Residue:
    """A function by which a positive factor passes: it is linear on either side of zero."""
    below = {"relu": 0.0, "abs": -1.0, "leaky_relu": residue_of(slope)}[
        func.overloadpacket.__name__
    ]
    parts = [torch.where(sign(part) > 0, part, below * part) for part in x.parts]
    places.skewed |= x.bound.skewed
    made = _made(places, parts, x.bound.top, x.bound.bottom, x)
    made.bound.skewed = True
    return made


def _softmax(places: Places, _: Any, x: Residue, dim: int, half: bool) -> Any:
    if not x.numel():
        return x
    powers = places.opaque("exp", x)
    return powers / powers.sum(dim, keepdim=True)


ARITHMETIC: dict[str, Handler] = {
    "add": _add,
    "sub": _add,
    "rsub": _add,
    "mul": _mul,
    "neg": _neg,
    "addcmul": _addcmul,
    "reciprocal": _reciprocal,
    "div": _div,
    "square": _square,
    "rsqrt": _rsqrt,
    "sqrt": _sqrt,
    "pow": _pow,
    "sum": _sum,
    "mean": _mean,
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "addmv": _addmm,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "avg_pool2d": _avg_pool,
    "avg_pool3d": _avg_pool,
    "_adaptive_avg_pool2d": _adaptive_avg_pool,
    "_adaptive_avg_pool3d": _adaptive_avg_pool,
    "_prelu_kernel": _prelu,
    "relu": _homogeneous,
    "leaky_relu": _homogeneous,
    "abs": _homogeneous,
    "_softmax": _softmax,
    **{
        f"{kind}_pad{n}d_backward": _pad_backward
        for kind in ("reflection", "replication")
        for n in (1, 2, 3)
    },
}
"""By the name of the operator."""
