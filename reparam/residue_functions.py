"""Functions of torch's that are taken apart into steps that residues have a counterpart of."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.devices import CPU
from reparam.residue import Handler, Residue, UnmodelledError, places_of


def _normalised(x: Any, axes: list[int], eps: float) -> Any:
    """A tensor over the root of its mean square."""
    return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + eps)


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    _: Any, __: Any, x: Residue, shape: Any, weight: Any, bias: Any, eps: float
) -> tuple[Any, None, None]:
    axes = list(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    return _affine(_normalised(centred, axes, eps), weight, bias), None, None


def _group_norm(
    _: Any, __: Any, x: Residue, weight: Any, bias: Any, batch: int, channels: int, pixels: int,
    groups: int, eps: float,
) -> tuple[Any, None, None]:  # fmt: skip
    grouped = x.reshape(batch, groups, -1)
    normal = _normalised(grouped - grouped.mean([-1], keepdim=True), [-1], eps).reshape(x.shape)
    spread = [1, channels, *(1,) * (x.ndim - 2)]
    weight, bias = (None if p is None else p.reshape(spread) for p in (weight, bias))
    return _affine(normal, weight, bias), None, None


def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    least = torch.finfo(torch.float64).eps if eps is None else eps
    return _affine(_normalised(x, list(range(-len(shape), 0)), least), weight, None)


def _batch_norm(
    x: Any, mean: Any, variance: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: Any = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if training:
        raise UnmodelledError("a batch norm by statistics of the batch has no counterpart")
    scale, *others = (
        None if p is None else p.reshape([1, -1, *(1,) * (x.ndim - 2)])
        for p in (torch.rsqrt(variance + eps), mean, weight, bias)
    )
    mean, weight, bias = others
    return _affine(_affine((x - mean) * scale, weight, None), None, bias)


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if attn_mask is not None or dropout_p or enable_gqa:
        what = "an attention with a mask, dropout or grouped queries"
        raise UnmodelledError(f"{what} has no counterpart in a finite field")
    places = places_of((query, key, value))
    factor: Any = scale
    if factor is None:  # a root that all attentions over as many features share
        factor = places.opaque(
            f"rsqrt {query.shape[-1]}", places.constant(torch.ones((), device=CPU))
        )
    powers = torch.exp((query * factor) @ key.transpose(-2, -1))
    if is_causal:
        seen = torch.ones(powers.shape[-2:], dtype=torch.bool, device=CPU).tril()
        powers = torch.where(seen, powers, torch.zeros_like(powers))
    return (powers / powers.sum(-1, keepdim=True)) @ value


def _close(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    return torch.eq(x, y)


def _finite(x: Any) -> Tensor:
    return torch.ones(x.shape, dtype=torch.bool, device=CPU)


def _same(x: Any, y: Any) -> bool:
    return x.shape == y.shape and bool(torch.eq(x, y).all())


def _add_in_place(x: Any, y: Any) -> Any:
    """What is returned counts: a tensor of numbers can't hold what depends on weights."""
    if isinstance(x, Residue):
        return torch.ops.aten.add_.Tensor(x, y)
    return torch.add(x, y)


NORMS: dict[str, Handler] = {"native_layer_norm": _layer_norm, "native_group_norm": _group_norm}
"""By the name of the operator."""

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    torch.batch_norm: _batch_norm,
    F.rms_norm: _rms_norm,
    F.scaled_dot_product_attention: _attention,
    Tensor.add_: _add_in_place,
    torch.isclose: _close,
    Tensor.isclose: _close,
    torch.isfinite: _finite,
    Tensor.isfinite: _finite,
    torch.equal: _same,
    Tensor.equal: _same,
}
"""By the function."""
