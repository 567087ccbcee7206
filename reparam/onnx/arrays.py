"""Numbers as torch has them and as numpy has them, which knows no bfloat16 of its own."""

from collections.abc import Mapping
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


def leaves(value: Any) -> list[Any]:
    """The arrays in a result: those in a sequence, the keys and the values of a map.

    ONNX Runtime returns the float32 numbers of a map as Python's.
    """
    if isinstance(value, list | tuple):
        return [leaf for each in cast("list[Any]", value) for leaf in leaves(each)]
    if not isinstance(value, Mapping):
        return [value]
    numpy, held = extra("numpy"), cast("Mapping[Any, Any]", value)
    values = numpy.asarray([*held.values()])
    narrow = values.astype(numpy.float32) if values.dtype == numpy.float64 else values
    return [numpy.asarray([*held]), narrow]


def to_numpy(value: Any) -> Any:
    """A tensor as an array; a list of them as a list."""
    if isinstance(value, list | tuple):
        return [*map(to_numpy, cast("list[Any]", value))]
    if not isinstance(value, Tensor) or value.dtype is not torch.bfloat16:
        return extra("numpy").asarray(value)
    return value.view(torch.int16).numpy().view(extra("ml_dtypes").bfloat16)
