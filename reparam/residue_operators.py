"""What torch's operators make of residues.

An operator that only moves elements is applied at each place by itself. Arithmetic is in
`reparam.residue_arithmetic`. Any other function of single elements is one that nothing is known of.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam.arguments import found
from reparam.devices import CPU
from reparam.residue import (
    Handler,
    Places,
    Residue,
    Rules,
    UnmodelledError,
    coerced,
)
from reparam.residue_arithmetic import ARITHMETIC, difference
from reparam.residue_functions import FUNCTIONS, NORMS
from reparam.residue_parts import at_each, joint_bound, residue_of

MOVES = {
    "view", "_unsafe_view", "_reshape_alias", "expand", "permute", "transpose", "t", "slice",
    "select", "unsqueeze", "squeeze", "clone", "detach", "alias", "index", "index_select", "cat",
    "stack", "flip", "repeat", "roll", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "unbind", "split",
    "split_with_sizes", "diagonal", "gather", "as_strided", "unfold", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "_upsample_nearest_exact2d", "lift_fresh", "copy_", "index_put_", "where",
    "tril", "triu", "im2col", "view_as", "narrow_copy", "select_scatter", "slice_scatter",
    "slice_backward", "select_backward",
}  # fmt: skip
"""Operators whose results are elements of what they are given, or zero."""

OPAQUE = {
    "exp", "sigmoid", "tanh", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh", "elu", "celu",
    "selu", "softplus", "mish", "erf", "log", "log1p", "expm1", "sin", "cos", "log_sigmoid",
    "softshrink", "hardshrink", "clamp", "clamp_min", "clamp_max", "atan",
}  # fmt: skip
"""Functions of single elements that nothing is known of."""


def operate(places: Places, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply an operator of torch's to arguments with residues among them.

    Raises:
        UnmodelledError: if it has no counterpart in a finite field.
        VanishedError: if it divides by what is zero at one of the places.
    """
    name = func.overloadpacket.__name__
    if name == "_to_copy":
        return _copied(places, func, args, kwargs)
    if func._schema.is_mutable and not isinstance(args[0], Residue):
        raise UnmodelledError("what depends on weights is written into a tensor of numbers")
    args, kwargs = coerced((args, kwargs), places)
    if name in HANDLERS:
        return HANDLERS[name](places, func, *args, **kwargs)
    if name in MOVES:
        return _moved(places, func, args, kwargs)
    if name in OPAQUE and not found((args[1:], kwargs), Tensor):
        return places.opaque(f"{name}{args[1:]}{kwargs}", args[0])
    functional = name.removesuffix("_")
    if name.endswith("_") and functional in {*HANDLERS, *OPAQUE}:
        operator = getattr(torch.ops.aten, functional)
        result = operate(places, getattr(operator, func._overloadname), args, kwargs)
        return _written(args[0], result)
    result = func.decompose(*args, **kwargs)  # into simpler ones, where torch knows how
    if result is NotImplemented:
        raise UnmodelledError(f"{name} has no counterpart in a finite field")
    return result


def _moved(places: Places, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    results = at_each(places, func, args, kwargs)
    bound = joint_bound((args, kwargs))
    returned = func._schema.returns[0].alias_info
    if func._schema.is_mutable:
        args[0].bound.raise_to(bound)
        return args[0]
    if returned is not None:  # what is written to the view is written to the whole
        bound = args[0].bound
    if isinstance(results[0], Tensor):
        return Residue(places, tuple(results), bound)
    return [Residue(places, parts, bound) for parts in zip(*results, strict=True)]


def _copied(places: Places, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A copy of another dtype or device: of numbers there is one kind only."""
    (x,) = args
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    if device is not None and torch.device(device).type == "meta":
        return torch.empty(x.shape, dtype=dtype or x.dtype, device="meta")
    if dtype is not None and not dtype.is_floating_point:
        raise UnmodelledError("a number that depends on weights is made an integer")
    parts = tuple(part.clone() for part in x.parts)
    return Residue(places, parts, replace(x.bound))


def _written(target: Residue, result: Residue) -> Residue:
    for part, new in zip(target.parts, result.parts, strict=True):
        part.copy_(new)
    target.bound.raise_to(result.bound)
    return target


def _pad(places: Places, func: Any, x: Residue, pad: Any, value: Any = 0) -> Residue:
    parts = [func(part, pad, residue_of(value)) for part in x.parts]
    return Residue(places, tuple(parts), x.bound)


def _masked_fill(places: Places, _: Any, x: Residue, mask: Tensor, value: Any) -> Any:
    number = (
        value
        if isinstance(value, Residue)
        else places.constant(torch.tensor(float(value), dtype=torch.float64, device=CPU))
    )
    return torch.where(mask, number, x)


def _filled(places: Places, func: Any, x: Residue, *args: Any, **kwargs: Any) -> Any:
    name = func.overloadpacket.__name__
    dtype = kwargs.get("dtype")
    shape = args[0] if name.startswith("new") else x.shape
    number = 0.0 if "zero" in name or "empty" in name else 1.0 if "ones" in name else args[-1]
    if dtype is not None and not dtype.is_floating_point:
        return torch.full(shape, number, dtype=dtype, device=CPU)
    if isinstance(number, Residue):
        parts = tuple(part.expand(shape).clone() for part in number.parts)
        return Residue(places, parts, replace(number.bound))
    return places.constant(torch.full(shape, float(number), dtype=torch.float64, device=CPU))


def _equal(places: Places, func: Any, x: Any, y: Any) -> Tensor:
    apart = difference(places, x, y)
    places.looked.add(apart.bound.names)
    same = torch.stack([part == 0 for part in apart.parts]).all(0)
    return same if func.overloadpacket.__name__ == "eq" else ~same


def _ordered(places: Places, func: Any, x: Any, y: Any) -> Tensor:
    return func(difference(places, x, y).signs(), 0)


def _nonzero(places: Places, func: Any, x: Residue, *args: Any, **kwargs: Any) -> Tensor:
    return func(_equal(places, torch.ops.aten.ne.Scalar, x, 0), *args, **kwargs)


def _never(places: Places, _: Any, x: Residue) -> Tensor:
    return torch.zeros(x.shape, dtype=torch.bool, device=CPU)


HANDLERS: dict[str, Handler] = {
    **ARITHMETIC,
    **NORMS,
    "constant_pad_nd": _pad,
    "masked_fill": _masked_fill,
    "empty_like": _filled,
    "new_empty": _filled,
    "new_empty_strided": _filled,
    "zeros_like": _filled,
    "new_zeros": _filled,
    "zero": _filled,
    "ones_like": _filled,
    "new_ones": _filled,
    "full_like": _filled,
    "new_full": _filled,
    "fill": _filled,
    "eq": _equal,
    "ne": _equal,
    "lt": _ordered,
    "gt": _ordered,
    "le": _ordered,
    "ge": _ordered,
    "any": _nonzero,
    "all": _nonzero,
    "isnan": _never,
    "isinf": _never,
}
"""By the name of the operator."""

RULES = Rules(operate, FUNCTIONS)
"""All that is known of torch's operators and functions."""
