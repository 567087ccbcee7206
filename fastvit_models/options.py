"""Checks of what a user asks for, before anything is built of it."""

import numbers
import operator
from typing import SupportsIndex, TypeGuard, cast

from fastvit_models.errors import ModelOptionError


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
