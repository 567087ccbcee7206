"""Refuse models in training mode, in which they are not the functions that they deploy as."""

from typing import Any, cast

from torch import nn

from reparam import known
from reparam.errors import TrainingModeError

AFFECTED = (known.NORM_BASE, known.DROPOUT_BASE)
"""Layers that behave differently there."""


def check_mode(model: nn.Module) -> None:
    """Refuse a model in training mode.

    Raises:
        TrainingModeError: naming the first module that behaves differently there.
    """
    check_layers(model)
    if model.training:
        raise _refusal("", model)


def check_layers(model: nn.Module) -> None:
    """Refuse a model in training mode that has a layer which behaves differently there.

    Raises:
        TrainingModeError: naming the first.
    """
    if not model.training:
        return
    for name, module in cast("Any", model).named_modules():
        if module.training and isinstance(module, AFFECTED):
            raise _refusal(name, module)


def _refusal(name: str, module: nn.Module) -> TrainingModeError:
    where = f"module {name!r} ({type(module).__name__})" if name else type(module).__name__
    return TrainingModeError(
        f"{where} is in training mode, where it is not the function that it deploys as; "
        "call model.eval() first"
    )
