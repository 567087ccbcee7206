"""Expand a linear call: the maps of what it makes as maps of what it reads."""

from collections.abc import Callable
from dataclasses import replace
from math import prod

from torch import Tensor

from reparam.algebra import exact, input_columns
from reparam.composition import composed_border, composed_madds
from reparam.cost import conv_madds
from reparam.errors import Declined, require
from reparam.graph import Call
from reparam.operator_laws import as_convolution
from reparam.operators import AvgPool, Cat, ConvTranspose, Pad, Slice
from reparam.terms import Term, composed, operand
from reparam.values import BatchNorm, Conv, Sum

NARROW = (Pad, Slice, AvgPool)
"""Maps that don't say how many channels they are of."""

AFFINE = (Conv, BatchNorm, Sum, Cat, *NARROW)
"""The values that are linear maps with a shift, whatever their hyper-parameters."""


def affine_call(call: Call) -> bool:
    """Whether a call computes a linear map with a shift."""
    value = call.value
    return isinstance(value, AFFINE) or (
        isinstance(value, ConvTranspose) and max(value.stride) == 1
    )


def diagonal(call: Call) -> bool:
    """Whether a call scales and shifts channels and is no convolution: a batch norm, a scale."""
    value = call.value
    if isinstance(value, Conv):
        return value.affine and not call.traits.convolution
    return isinstance(value, BatchNorm)


def multiple(call: Call) -> bool:
    """Whether a call multiplies one tensor by a number."""
    return isinstance(call.value, Sum) and len(call.value.coefficients) == 1


def expanded_terms(
    call: Call, terms: tuple[Term, ...], pays: Callable[[float], bool] | None
) -> list[tuple[Call, Term]]:
    """The terms of a call as terms of its inputs.

    A composition may take more multiply-adds than its parts do if `pays` says so, which is asked
    only then.
    """
    value = call.value
    if isinstance(value, Sum):
        if len(value.coefficients) > 1:
            require_one_shape(call)
        operands = list(enumerate(zip(value.coefficients, call.inputs, strict=True)))
        return [(x, t.with_map(operand(t.map, c, i))) for t in terms for i, (c, x) in operands]
    if isinstance(value, Cat):
        return _columns(call, value, terms)
    (source,) = call.inputs
    wide, like = _beside(source, value, terms) if isinstance(value, NARROW) else (None, None)
    scaled = all(isinstance(term.map, Conv) and term.map.affine for term in terms)
    inner = exact(value, scaled) if isinstance(value, Conv) else as_convolution(value, wide, like)
    skip = diagonal(call) or isinstance(value, NARROW)
    new: list[tuple[Call, Term]] = []
    for term in terms:
        if isinstance(term.map, Conv):
            require_affordable(term.map, inner, pays)
        deeper = composed(term.map, inner)
        paths = term.convolutions + term.skips
        found = term.with_map(deeper) if skip else Term(deeper, paths, 0)
        new.append((source, found))
    return new


def _beside(
    source: Call, value: Pad | Slice | AvgPool, terms: tuple[Term, ...]
) -> tuple[int | None, Tensor | None]:
    """The channels that what it stands beside tells, or its input, and a weight to be like."""
    conv = next((term.map for term in terms if isinstance(term.map, Conv)), None)
    if conv is not None:
        return conv.in_channels, conv.weight
    return None if source.shape is None else source.shape.channels(value.n), None


def _columns(call: Call, cat: Cat, terms: tuple[Term, ...]) -> list[tuple[Call, Term]]:
    """The terms of a concatenation as terms of what is joined."""
    new: list[tuple[Call, Term]] = []
    for term in terms:
        require(isinstance(term.map, Conv) and term.map.n == cat.n, "no convolution reads it alone")
        assert isinstance(term.map, Conv)
        start = 0
        for source in call.inputs:
            count = None if source.shape is None else source.shape.channels(cat.n)
            require(count is not None, "the channels of what is joined are not known", source.name)
            assert count is not None
            part = input_columns(term.map, start, count)
            new.append((source, term.with_map(part if start == 0 else replace(part, bias=None))))
            start += count
        require(start == term.map.in_channels, "it is joined along another axis")
    return new


def require_one_shape(call: Call) -> None:
    """A sum distributes over its operands if none of them is broadcast."""
    first, *others = [source.shape for source in call.inputs]
    same = first is not None and all(
        shape is not None and shape.axes == first.axes and shape.exact == first.exact
        for shape in others
    )
    require(same, "the operands of the sum are not known to have one shape")


def require_affordable(outer: Conv, inner: Conv, pays: Callable[[float], bool] | None) -> None:
    """Refuse a composition that no region here can pay for, before it is computed.

    Raises:
        Declined: unless it takes no more multiply-adds than its parts do, or `pays` says so.
    """
    if outer.n != inner.n:
        return  # the law itself will say so
    apart = conv_madds(outer) + conv_madds(inner) * prod(outer.stride)
    together = composed_madds(outer, inner)
    if together <= apart or (pays is not None and pays(together)):
        return
    composed_border(outer, inner)  # of two reasons, the border is the one that no budget mends
    raise Declined(dearer(apart, together))


def dearer(before: float, after: float, each: str = "pixel") -> str:
    """The reason why a merge that costs more is not made."""
    return f"merged, it takes more multiply-adds per {each}: {after:,.0f} instead of {before:,.0f}"
