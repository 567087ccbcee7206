"""Where users say what a layer of theirs means, and where that is put to the test."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from reparam.devices import CPU, module_on_cpu
from reparam.errors import Declined, PassError, first_line, require
from reparam.facts import TensorFacts
from reparam.sizes import Assignment
from reparam.values import BatchNorm, Conv, Value
from reparam.verify import EXACT, relative_difference

M = TypeVar("M", bound=nn.Module)
Meaning = Callable[[M], Value]

ATTRIBUTE = "__reparam_lift__"
"""Where a class keeps its meaning. There is no table that an import would have to fill."""

SIZES = (9, 10, 11)
"""Sizes of the spatial axes that a meaning is tested on."""


def lift(layer: type[M]) -> Callable[[Meaning[M]], Meaning[M]]:
    """Say what a layer of your own means, as a value of its one input.

    ```python
    @reparam.lift(ScaledLinear)
    def _(layer: ScaledLinear) -> Value:
        return Conv(layer.weight * layer.gain[:, None], layer.bias)
    ```

    The meaning holds for just this class, not for its subclasses. At every compile it is compared
    with the layer itself, in float64; where the two differ the layer stays as it is.

    Args:
        layer: the class of the layer.

    Raises:
        PassError: if it is no class of `torch.nn.Module`.
    """
    given: Any = layer
    if not (isinstance(given, type) and issubclass(given, nn.Module)):
        raise PassError(f"lift takes a class of torch.nn.Module, not {given!r}")

    def register(meaning: Meaning[M]) -> Meaning[M]:
        setattr(layer, ATTRIBUTE, staticmethod(meaning))
        return meaning

    return register


def has_meaning(module: nn.Module) -> bool:
    """Whether a user has said what just this class means."""
    return ATTRIBUTE in vars(type(module))


def meaning_of(module: nn.Module, facts: Any) -> Value:
    """What a user said that a layer means, if it proves right.

    Args:
        module: a layer whose class has a meaning.
        facts: of its input.

    Raises:
        Declined: if the meaning fails, is no value, or differs from the layer.
    """
    meaning: Callable[[nn.Module], Any] = getattr(type(module), ATTRIBUTE)
    wide = module_on_cpu(copy.deepcopy(module)).double()
    try:
        value, claimed = meaning(module), meaning(wide)
        require(isinstance(value, Value), f"its lift returned {type(value).__name__}, not a value")
        x = _input(claimed, facts)
        with torch.no_grad():
            difference = relative_difference(wide(x.clone()), claimed(x))
    except Declined:
        raise
    except Exception as error:
        line = first_line(error)
        raise Declined(f"its lift failed with {type(error).__name__}: {line}") from error
    require(difference <= EXACT, f"its lift differs from the layer by {difference:.1e}")
    return _detached(value)


def _input(value: Value, facts: Any) -> Tensor:
    """A random float64 input, of the shape that the value asks for or that is known."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(value, Conv):
        shape: tuple[int, ...] = (2, value.in_channels, *SIZES[: value.n])
    elif isinstance(value, BatchNorm) and value.n is not None:
        shape = (2, value.mean.numel(), *SIZES[: value.n])
    else:
        require(isinstance(facts, TensorFacts), "its lift can't be tested: no input shape is known")
        assignment = Assignment((2, *SIZES), {})
        shape = tuple(map(assignment, facts.axes))
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=CPU)


def _detached(value: Value) -> Value:
    """The value with tensors that no gradient flows through."""
    for name in type(value).__dataclass_fields__:
        content = getattr(value, name)
        if isinstance(content, Tensor):
            object.__setattr__(value, name, content.detach())
    return value
