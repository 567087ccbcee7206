"""Checks of what a user asks for, before anything is built of it."""

import numbers
import operator
from collections.abc import Sequence
from typing import SupportsIndex, TypeGuard, cast

import torch

from fastvit_models.errors import ModelOptionError

STAGES = 4
"""Of every network here."""

LARGEST = torch.finfo(torch.float32).max
"""The largest number that weights can hold."""


def check_options(
    *, num_classes: object = 0, in_channels: object = 1, drop_path_rate: object = 0.0
) -> None:
    """Raise `ModelOptionError` for a value out of range."""
    if not _is_whole(num_classes, 0):
        raise ModelOptionError(
            f"num_classes is {num_classes!r}: give an integer of at least 0, which is no head"
        )
    check_whole("in_channels", in_channels, 1)
    check_rate("drop_path_rate", drop_path_rate)


def check_whole(name: str, value: object, least: int) -> None:
    """Raise `ModelOptionError` for what is no integer of at least `least`."""
    if not _is_whole(value, least):
        raise ModelOptionError(f"{name} is {value!r}: give an integer of at least {least}")


def check_stages(name: str, values: object) -> None:
    """Raise `ModelOptionError` for what has no entry for each of the four stages."""
    if not isinstance(values, Sequence) or len(cast("Sequence[object]", values)) != STAGES:
        raise ModelOptionError(
            f"{name} is {values!r}: give a tuple of {STAGES}, one for each stage"
        )


def check_number(name: str, value: object, least: float = -LARGEST) -> None:
    """Raise `ModelOptionError` for what is no finite number of at least `least`."""
    if not _is_real(value) or not least <= value <= LARGEST:
        bound = f" of at least {least}" if least > -LARGEST else ""
        raise ModelOptionError(f"{name} is {value!r}: give a finite number{bound}")


def check_rate(name: str, value: object) -> None:
    """Raise `ModelOptionError` for what is no probability below 1."""
    if not _is_real(value) or not 0 <= value < 1:
        raise ModelOptionError(f"{name} is {value!r}: give a number of at least 0, less than 1")


def _is_whole(value: object, least: int) -> bool:
    """Whether it is an integer, of Python's or of another library, of at least `least`."""
    try:
        return not isinstance(value, bool) and operator.index(cast("SupportsIndex", value)) >= least
    except TypeError:
        return False


def _is_real(value: object) -> TypeGuard[float]:
    """Whether it is a number, of Python's or of another library."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real)
