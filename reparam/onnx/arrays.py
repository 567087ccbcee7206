"""Numbers as torch has them and as numpy has them, which knows no bfloat16 of its own."""

from typing import Any, cast

import torch
from torch import Tensor

from reparam.export_graph import extra
from reparam.known import TORCH


def to_torch(value: Any) -> Any:
    """An array as a tensor; a sequence of them as a list."""
    numpy = extra("numpy")
    if isinstance(value, list | tuple):
        return [*map(to_torch, cast("list[Any]", value))]
    array = numpy.array(value)
    if array.dtype.name == "bfloat16":
        return TORCH.from_numpy(array.view(numpy.int16)).view(torch.bfloat16)
    return TORCH.from_numpy(array)


def to_numpy(value: Any) -> Any:
    """A tensor as an array; a list of them as a list."""
    if isinstance(value, list | tuple):
        return [*map(to_numpy, cast("list[Any]", value))]
    if not isinstance(value, Tensor) or value.dtype is not torch.bfloat16:
        return extra("numpy").asarray(value)
    return value.view(torch.int16).numpy().view(extra("ml_dtypes").bfloat16)
