"""Refuse what the dtype of a model does not hold: folding is in float64, and cast at the end."""

from collections.abc import Iterable

import torch
from torch import Tensor

from reparam.errors import require
from reparam.known import TORCH
from reparam.residue import Residue
from reparam.values import Constant, Conv, Value

LARGEST_BORDER = 16.0
"""Of the constants that padded inputs are moved by. Activations are of order one, and
what is taken off them and added again costs as many bits as it is larger."""


def require_representable(values: Iterable[Value], dtype: torch.dtype | None) -> None:
    """Refuse numbers that overflow in the dtype of the model, or were no numbers to begin with.

    Raises:
        Declined: if there are any, or if there is no telling.
    """
    for value in values:
        if isinstance(value, Conv) and value.border is not None:
            modest = bool((value.border.abs() <= LARGEST_BORDER).all())
            require(modest, "the constant at the border is too large to be taken off exactly")
        for tensor in value.tensors():
            if isinstance(value, Constant) or tensor.is_meta:
                continue
            require(dtype is not None, "the dtype of its input is not known; pass example_inputs")
            assert dtype is not None
            _require_cast(tensor, dtype)


def modest(constant: Tensor, conv: Conv) -> bool:
    """Whether a constant per channel is no larger than what a layer makes of inputs of order one.

    What is taken off and added again costs as many bits as it is larger. That is a matter of
    numbers, not of the law: what is proven holds for any.
    """
    if isinstance(constant, Residue):
        return True
    lengths: Tensor = TORCH.linalg.vector_norm(conv.weight.flatten(1), dim=1)
    return bool((constant.abs() <= lengths).all())


def _require_cast(tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse a tensor that a dtype does not hold."""
    limits, measure = torch.finfo(dtype), TORCH.linalg.vector_norm
    if tensor.ndim < 2 and float(measure(tensor, dtype=torch.float64)) <= limits.max:
        return
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    lengths: Tensor = measure(rows, dim=1, dtype=torch.float64)
    # What is not too long has no element that is too large, and no row that is not tiny underflows.
    least = limits.tiny * rows.shape[1] ** 0.5 if tensor.ndim > 1 else 0.0
    low, high = map(float, lengths.aminmax()) if lengths.numel() else (0.0, 0.0)
    if low >= least and high <= limits.max:
        return  # as is almost always so; a number that is none compares to nothing
    if bool((((lengths >= least) | (lengths == 0)) & (lengths <= limits.max)).all()):
        return
    require(bool(torch.isfinite(tensor).all()), "a weight or a statistic is not finite")
    name = str(dtype).removeprefix("torch.")
    cast = tensor.to(dtype)
    require(bool(torch.isfinite(cast).all()), f"a folded weight overflows {name}")
    if tensor.is_floating_point() and tensor.ndim > 1:
        # Rounding alone leaves each row half a unit of its length off, at most.
        lost = (cast.double().flatten(1) - rows.double()).square().sum(1)
        fine = lost <= limits.eps**2 * rows.double().square().sum(1)
        require(bool(fine.all()), f"a folded weight underflows {name}")
