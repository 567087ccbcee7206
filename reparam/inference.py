"""Infer what is known of a call's result from what is known of its arguments."""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from reparam import known
from reparam.facts import Facts, TensorFacts
from reparam.operators import AvgPool, Cat, ConvTranspose, Norm, Pad, Slice
from reparam.probe import probe
from reparam.sizes import ONE, Size, SymbolTable
from reparam.values import BatchNorm, Constant, Conv, Layout, Opaque, Shape, Sum, Value


def facts_of(
    value: Value,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    facts: Callable[[Any], Any],
    symbols: SymbolTable,
) -> Facts:
    """What follows for a call of a value from the `facts` of its arguments."""
    operands = [facts(argument) for argument in args]
    first = operands[0] if operands else None
    match value:
        case Constant(content):
            return _constant(content)
        case Conv():
            return _conv(value, first, symbols) if isinstance(first, TensorFacts) else None
        case BatchNorm() | Norm():
            return first
        case Pad() | Slice() | AvgPool() | ConvTranspose():
            return _windowed(value, first, symbols) if isinstance(first, TensorFacts) else None
        case Cat(n):
            return probe(torch.cat, (list(args), -n - 1), {}, facts, symbols)
        case Sum():
            fractions = not all(float(c).is_integer() for c in value.coefficients)
            return _promoted(_broadcast(operands), fractions)
        case Shape(axis, rank):
            return _rank(first) if rank else _sizes(first, axis)
        case Opaque():
            followed: Facts = None
            if not isinstance(value, Layout):
                followed = _opaque(value, operands, {name: facts(v) for name, v in kwargs.items()})
            elif isinstance(first, TensorFacts):
                followed = _layout(value, first, operands[1:])
            if followed is None and value.target in ("flatten", torch.flatten) and not kwargs:
                followed = _flattened(first, operands[1:], symbols)
            if followed is None and known.name(value.target) in ("reshape", "view") and not kwargs:
                followed = _reshaped(first, operands[1:], symbols)
            if followed is None:
                followed = probe(value.target, args, kwargs, facts, symbols)
            return followed
        case _:
            return None


def _constant(content: Any) -> Facts:
    if isinstance(content, torch.Tensor):
        return TensorFacts(tuple(map(Size, content.shape)), True, content.dtype)
    return Size(content) if type(content) is int else None


def _conv(conv: Conv, x: TensorFacts, symbols: SymbolTable) -> Facts:
    if len(x.axes) <= conv.n:
        return None
    lead, spatial = x.axes[: len(x.axes) - conv.n - 1], x.axes[len(x.axes) - conv.n :]
    sizes: list[Size] = []
    axes = zip(spatial, conv.stride, conv.padding, conv.dilation, conv.kernel, strict=True)
    for size, stride, sides, dilation, kernel in axes:
        sizes.append(symbols.windows(size, stride, sum(sides) - dilation * (kernel - 1) - 1))
    return TensorFacts((*lead, Size(conv.out_channels), *sizes), x.exact, x.dtype)


def _windowed(
    value: Pad | Slice | AvgPool | ConvTranspose, x: TensorFacts, symbols: SymbolTable
) -> Facts:
    """The facts of what changes the sizes behind the channels in a known way."""
    if len(x.axes) <= value.n:
        return None
    lead, spatial = x.axes[: -value.n], x.axes[-value.n :]
    sizes: list[Size] = []
    for axis, size in enumerate(spatial):
        if isinstance(value, Pad):
            sizes.append(symbols.windows(size, 1, sum(value.padding[axis]) - 1))
        elif isinstance(value, Slice):
            slack = -value.start[axis] - value.cut[axis] - 1
            sizes.append(symbols.windows(size, value.stride[axis], slack))
        elif isinstance(value, ConvTranspose):
            sizes.append(_upsampled(value, axis, size, symbols))
        elif value.ceil_mode:
            hyper = (value.kernel[axis], value.stride[axis], value.padding[axis])
            sizes.append(symbols.derived(("ceil_mode", size, *hyper)))
        else:
            slack = 2 * value.padding[axis] - value.kernel[axis]
            sizes.append(symbols.windows(size, value.stride[axis], slack))
    if isinstance(value, ConvTranspose):
        lead = (*lead[:-1], Size(value.out_channels))
    return TensorFacts((*lead, *sizes), x.exact, x.dtype)


def _upsampled(value: ConvTranspose, axis: int, size: Size, symbols: SymbolTable) -> Size:
    """`stride * size` and a constant."""
    stride, reach = value.stride[axis], value.dilation[axis] * (value.weight.shape[2 + axis] - 1)
    more = reach + 1 + value.output_padding[axis] - 2 * value.padding[axis] - stride
    if size.known:
        return Size(stride * size.factor + more)
    return Size(stride) * size if more == 0 else symbols.derived((stride, size, more))


def _broadcast(operands: list[Any]) -> Facts:
    """The facts of an elementwise operation. Numbers take part, unknown operands spoil it."""
    tensors = [operand for operand in operands if isinstance(operand, TensorFacts)]
    others = [operand for operand in operands if isinstance(operand, float | int)]
    if not tensors or len(tensors) + len(others) < len(operands):
        return None
    result = tensors[0]
    for other in tensors[1:]:
        if result.axes == other.axes and result.exact == other.exact:
            continue
        if not (result.exact and other.exact):
            return None
        rank = max(len(result.axes), len(other.axes))
        a, b = ((ONE,) * (rank - len(t.axes)) + t.axes for t in (result, other))
        axes = [_wider(p, q) for p, q in zip(a, b, strict=True)]
        if None in axes:
            return None
        result = replace(result, axes=tuple(axes))
    dtype = _common_dtype(tensors)
    return result if dtype == result.dtype else replace(result, dtype=dtype)


def _common_dtype(tensors: list[TensorFacts]) -> torch.dtype | None:
    """The dtype of a result. Tensors without axes count only beside lesser kinds of numbers."""
    spread = {tensor.dtype for tensor in tensors if tensor.axes} or {t.dtype for t in tensors}
    dtype = spread.pop() if len(spread) == 1 else None
    single = [tensor.dtype for tensor in tensors if not tensor.axes]
    lesser = dtype is not None and all(d and torch.can_cast(d, dtype) for d in single)
    return dtype if lesser else None


def _wider(p: Size, q: Size) -> Size | None:
    """The size that two broadcast to. Beside a known one, the other is that or 1."""
    if ONE in (p, q) or p == q:
        return q if p == ONE else p
    known = [size for size in (p, q) if size.known]
    return known[0] if len(known) == 1 else None


def _rank(x: Any) -> Facts:
    return Size(len(x.axes)) if isinstance(x, TensorFacts) and x.exact else None


def _sizes(x: Any, axis: int | None) -> Facts:
    if not isinstance(x, TensorFacts):
        return None
    if axis is None:
        return x.axes if x.exact else None
    if not -len(x.axes) <= axis < (len(x.axes) if x.exact else 0):
        return None
    return x.axes[axis]


def _layout(layout: Layout, x: TensorFacts, sizes: list[Any]) -> Facts:
    if layout.kind == "permute":
        if len(layout.axes) > len(x.axes):
            return None
        kept = x.axes[: len(x.axes) - len(layout.axes)]
        return replace(x, axes=kept + tuple(x.axes[axis] for axis in layout.axes))
    if not x.exact:
        return None
    if layout.kind in ("mean", "mean out"):
        return _mean(layout, x)
    if layout.kind == "pool":
        return None
    if layout.kind == "select":
        axis = layout.index[0] + len(x.axes)
        return replace(x, axes=x.axes[:axis] + x.axes[axis + 1 :])
    if layout.kind == "slice":
        axis = layout.index[0] + len(x.axes)
        return replace(x, axes=(*x.axes[:axis], Size(layout.length), *x.axes[axis + 1 :]))
    new = known.reshaped(layout.target, x.axes, sizes)
    return None if new is None else replace(x, axes=new)


def _mean(layout: Layout, x: TensorFacts) -> Facts:
    """The sizes of an average of floating-point numbers over some axes, each named once."""
    floating = x.dtype is None or x.dtype.is_floating_point
    averaged = {axis + len(x.axes) for axis in layout.axes}
    if not floating or not averaged or len(averaged) < len(layout.axes):
        return None
    left = ONE if layout.kind == "mean" else None
    axes = [left if axis in averaged else size for axis, size in enumerate(x.axes)]
    return replace(x, axes=tuple(size for size in axes if size is not None))


def _opaque(value: Opaque, operands: list[Any], kwargs: dict[str, Any]) -> Facts:
    kind = known.kind(value.target)
    first = operands[0] if operands else None
    if kind == "pointwise" and isinstance(first, TensorFacts):
        casts = "dtype" in kwargs or any(isinstance(o, torch.dtype) for o in operands)
        if first.dtype is not None and first.dtype.is_complex:
            return replace(first, dtype=None)  # of these, `abs` makes real numbers
        return None if casts else _promoted(first, known.promotes(value.target))
    if kind in ("elementwise", "clamp"):
        if all(isinstance(operand, Size | int) for operand in operands):
            return _arithmetic(value.target, operands)
        if known.name(value.target) not in known.COMPARISONS:
            given = [*operands, *kwargs.values()]
            divided = known.promotes(value.target) and "rounding_mode" not in kwargs
            return _promoted(_broadcast(given), divided or any(type(o) is float for o in given))
    if kind == "matmul" and len(operands) == 2:
        return _matmul(*operands)
    if kind == "getitem" and isinstance(first, tuple) and type(operands[1]) is int:
        return _item(cast("tuple[Any, ...]", first), operands[1])
    return None


def _promoted(x: Facts, promotes: bool) -> Facts:
    """Facts of a result, if what makes it makes floating-point numbers of integers."""
    if not promotes or not isinstance(x, TensorFacts) or x.dtype is None:
        return x
    plain = x.dtype.is_floating_point or x.dtype.is_complex
    return x if plain else replace(x, dtype=torch.get_default_dtype())


def _flattened(x: Any, axes: list[Any], symbols: SymbolTable) -> Facts:
    """All axes but the first as one: there are two then, however many there were."""
    if axes not in ([1], [1, -1]) or (isinstance(x, TensorFacts) and x.exact):
        return None
    dtype = x.dtype if isinstance(x, TensorFacts) else None
    return TensorFacts((symbols.fresh(), symbols.fresh()), True, dtype)


def _reshaped(x: Any, sizes: list[Any], symbols: SymbolTable) -> Facts:
    """As many axes as there are sizes, be it that one of them does not follow."""
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = list(cast("tuple[Any, ...]", sizes[0]))
    if not isinstance(x, TensorFacts) or not all(isinstance(size, Size | int) for size in sizes):
        return None
    given = [Size(size) if isinstance(size, int) else size for size in sizes]
    rest = symbols.derived(("reshape", x.axes, tuple(given)))
    axes = tuple(rest if size.factor == -1 else size for size in given)
    return TensorFacts(axes, True, x.dtype)


def _item(sizes: tuple[Any, ...], index: int) -> Facts:
    return sizes[index] if -len(sizes) <= index < len(sizes) else None


def _arithmetic(function: Any, operands: list[Any]) -> Facts:
    """Products, exact quotients and remainders of sizes; anything of known ones."""
    if len(operands) != 2:
        return None
    a, b = (Size(operand) if isinstance(operand, int) else operand for operand in operands)
    name = known.name(function) or ""
    if name == "mul":
        return a * b
    if name in ("floordiv", "mod") and a.divided_by(b) is not None:
        return a.divided_by(b) if name == "floordiv" else Size(0)
    if name in known.COMPARISONS and a == b:
        return name in ("eq", "le", "ge")
    if a.known and b.known and name in known.EXACT_ON_INTEGERS and (b.factor or name != "mod"):
        result = getattr(operator, name)(a.factor, b.factor)
        return result if isinstance(result, bool) else Size(result)
    return None


def _matmul(a: Any, b: Any) -> Facts:
    """The sizes of a product of matrices; that the inner ones agree, the model itself demands."""
    if not (isinstance(a, TensorFacts) and isinstance(b, TensorFacts)):
        return None
    if not (a.exact and b.exact and len(a.axes) == len(b.axes) >= 2) or a.axes[:-2] != b.axes[:-2]:
        return None
    return replace(
        a, axes=(*a.axes[:-1], b.axes[-1]), dtype=a.dtype if a.dtype == b.dtype else None
    )
