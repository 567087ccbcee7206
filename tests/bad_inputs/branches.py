"""Sums of branches, and what becomes of them."""

from typing import Any

from torch import Tensor, nn

from tests.bad_inputs.outcomes import (
    IMAGE,
    calls,
    fused_exactly,
    same,
    stays,
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn

SIZES = ((1, 4, 9, 8), (2, 4, 5, 6), (1, 4, 12, 11))


def branches(*parts: nn.Module, x: Tensor = IMAGE) -> nn.Module:
    """Their sum, normalised, and an activation."""

    def forward(m: Any, x: Tensor) -> Tensor:
        total = m.part0(x)
        for number in range(1, len(parts)):
            total = total + getattr(m, f"part{number}")(x)
        return m.norm(total).relu()

    named = {f"part{number}": part for number, part in enumerate(parts)}
    return trained(Net(forward, **named, norm=nn.BatchNorm2d(4)), x)


def merged(model: nn.Module, *sizes: tuple[int, ...], pads: int = 0) -> Any:
    """F: one convolution and the activation are left, and a call that pads if sides differ."""
    fused = fused_exactly(model)
    assert calls(fused) == 2 + pads, fused.code
    for size in sizes:
        same(model, fused, drawn(2, *size))
    return fused


def not_merged(model: nn.Module, reason: str, *inputs: Tensor) -> Any:
    """S: the branches stay apart."""
    fused = stays(model, reason, *inputs)
    assert calls(fused) > 2
    return fused
