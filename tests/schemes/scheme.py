"""What a scheme of structural re-parameterization is, and how it is held to its inference form."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

import passes
import reparam
from reparam.verify import EXACT, relative_difference
from tests.fused import operators
from tests.randomised import randomised

SIZES = ((1, 1), (2, 3), (5, 4), (11, 9))
"""Heights and widths other than the example's: smaller than kernels, even, odd, not square."""


@dataclass(frozen=True)
class Scheme:
    """One row of the scheme table.

    Attributes:
        name: of the scheme, in the field's words.
        model: makes a representative training form, fresh.
        shape: of its input.
        expected: operators of the inference form, by name; None if there is none to reach.
        declined: for what has to stay, parts of the reasons that the report must give.
    """

    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    expected: Mapping[str, int] | None
    declined: tuple[str, ...] = ()


def example(*shape: int) -> Tensor:
    """The same input at every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def compiled(model: nn.Module, x: Tensor, given: bool = False) -> tuple[nn.Module, fx.GraphModule]:
    """A model as if it had been trained on x, in float64, and what the default passes make of it.

    They do without example inputs, unless x is `given`. Every rewrite is checked as it is made.
    """
    model = randomised(model, x).double()
    fused = reparam.compile(model, x.double() if given else None, passes=passes.DEFAULT)
    assert reparam.report(fused).verification.mode == "float64"
    return model, fused


def minimal(
    model: nn.Module,
    x: Tensor,
    sizes: tuple[tuple[int, ...], ...] | None = None,
    given: bool = False,
) -> Counter[str]:
    """Compile a training form, and return the operators that are left.

    The result computes the same on x and at each of the other sizes of its last axes that the model
    takes, and a second compile applies nothing.

    Args:
        model: in training form.
        x: what it is calibrated on: several images, so that variances are not 0.
        sizes: of the last axes; `SIZES` for images if None, and none for other inputs.
        given: whether x is an example input, where nothing else tells the number of axes.
    """
    model, fused = compiled(model, x, given)
    same_function(model, fused, x.double())
    if sizes is None:
        sizes = SIZES if x.ndim == 4 else ()
    for size in sizes:
        other = example(*x.shape[: x.ndim - len(size)], *size).double()
        if _takes(model, other):
            same_function(model, fused, other)
    again = reparam.compile(fused, passes=passes.DEFAULT)
    assert reparam.report(again).applied == ()
    return operators(fused)


def same_function(model: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """Assert that two models return the same of an input in float64."""
    with torch.no_grad():
        assert relative_difference(model(x), fused(x)) <= EXACT


def missed(fused: nn.Module) -> list[str]:
    """What was declined, and why, as lines."""
    return [str(remark) for remark in reparam.report(fused).missed]


def _takes(model: nn.Module, x: Tensor) -> bool:
    """Whether an input is large enough for a model."""
    try:
        with torch.no_grad():
            model(x)
    except RuntimeError:
        return False
    return True
