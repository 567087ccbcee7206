"""Numbers and texts in a forward that are of other classes than Python's own."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passes
import reparam


class Net(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.scale = numpy.sqrt(8)
        self.body = forward

    def forward(self, x: Tensor) -> Any:
        return self.body(self, self.norm(self.conv(x)))


class Pixels(int):
    def __repr__(self) -> str:
        return f"{int(self)} pixels"


class Side(IntEnum):
    SHORT = 2


IMAGES = torch.randn(2, 3, 12, 10)

WRITTEN: dict[str, Callable[[Any, Tensor], Any]] = {
    "divided": lambda net, y: y / net.scale,
    "from the left": lambda net, y: net.scale * y + numpy.float64(2) * y,
    "method": lambda _, y: y.mul(numpy.float64(2)),
    "bound": lambda _, y: torch.clamp(y, numpy.float64(-0.1), max=numpy.log(3.0)),
    "key": lambda _, y: {numpy.float64(3): y},
    "text": lambda _, y: F.pad(y, (1, 1), mode=numpy.str_("constant")),
    "enumerated": lambda _, y: F.max_pool2d(y, Side.SHORT),
}


@pytest.mark.parametrize("example", [None, IMAGES], ids=["traced", "with an example"])
@pytest.mark.parametrize("forward", WRITTEN.values(), ids=WRITTEN)
def test_what_numpy_makes_is_fused_and_runs(
    forward: Callable[[Any, Tensor], Any], example: Tensor | None
) -> None:
    model = Net(forward).eval()
    fused = reparam.compile(model, example, passes=passes.DEFAULT)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(IMAGES), model(IMAGES))


STAYS: dict[str, Callable[[Any, Tensor], Any]] = {
    "it passes on a Pixels, which is no plain number or text": (
        lambda _, y: F.max_pool2d(y, Pixels(2))
    ),
    "it returns a number of NumPy's": lambda _, y: (y, {"scale": numpy.float64(3)}),
}


@pytest.mark.parametrize(("reason", "forward"), STAYS.items(), ids=STAYS)
def test_what_would_become_another_number_stays(
    reason: str, forward: Callable[[Any, Tensor], Any]
) -> None:
    model = Net(forward).eval()
    fused = reparam.compile(model, IMAGES, passes=passes.DEFAULT)
    (missed,) = [r for r in reparam.report(fused).missed if r.rule == "capture"]
    assert reason in missed.message
    torch.testing.assert_close(fused(IMAGES), model(IMAGES))
