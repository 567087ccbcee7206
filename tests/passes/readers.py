"""Models of something between a batch norm and what reads it, for the folds into readers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from passes import fold_into_readers
from tests.fused import operators
from tests.passes.alone import Net, settled
from tests.randomised import randomised
from tests.strategies import drawn

Step = Callable[[Net, Tensor], Tensor]

IMAGES = drawn(0, 3, 6, 9, 8).float()
OTHERS = (drawn(1, 2, 6, 8, 11).float(), drawn(2, 1, 6, 12, 9).float())
TOKENS = drawn(3, 3, 5, 6).float()
GAMMA = torch.tensor([0.5, 2.0, 1e-3, 1.0, 3.0, 0.25])


def between(step: Step, norm: nn.Module | None = None, **parts: nn.Module) -> Net:
    """Something between a batch norm, or another, and a convolution."""
    return Net(
        lambda m, x: m.after(step(m, m.norm(m.conv(x)))),
        conv=nn.Conv2d(6, 6, 1),
        norm=nn.BatchNorm2d(6) if norm is None else norm,
        after=nn.Conv2d(6, 5, 2),
        **parts,
    )


def with_scale(model: Net, gamma: Tensor = GAMMA, shift: bool = True) -> Net:
    """Numbers at which a wrong fold shows, but γ as given; without a shift if so asked."""
    randomised(model, IMAGES if model.after.weight.ndim == 4 else TOKENS)
    norm = model.norm
    norm.weight.data.copy_(gamma)
    if not shift:
        norm.running_mean.zero_()
        norm.bias.data.zero_()
    return model


def passed(model: Net, *, given: bool = True) -> bool:
    """Whether the batch norm went."""
    fused, report = settled(fold_into_readers, model, IMAGES, given=given, others=OTHERS)
    assert (operators(fused)["BatchNorm2d"] == 0) == bool(report.applied)
    return bool(report.applied)
