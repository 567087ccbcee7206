"""Large, deep and wide graphs: compiled like small ones, by as many steps as they have calls."""

import gc
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
import reparam
from reparam.capture import capture
from reparam.driver import Driver
from reparam.lift import lift_graph
from reparam.lower import lower
from reparam.precision import require_representable
from reparam.region import LONGEST
from reparam.values import Conv
from tests.fused import operators
from tests.randomised import randomised
from tests.strategies import drawn

COUNT = LONGEST + 6


class Block(nn.Module):
    """RepVGG's block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        wide, narrow, skip = self.norms
        return (wide(self.wide(x)) + narrow(self.narrow(x)) + skip(x)).relu()


ADDITIONS = """
import torch, passes, reparam

class Additions(torch.nn.Module):
    def __init__(self, apart):
        super().__init__()
        self.apart = apart

    def forward(self, x):
        y = x
        for _ in range(1000):
            y = y + (x.relu() if self.apart else x)
        return y

for apart in (False, True):
    model, x = Additions(apart).double().eval(), torch.randn(2, 3, dtype=torch.float64)
    fused = reparam.compile(model, x, passes=passes.DEFAULT)
    torch.testing.assert_close(fused(x), model(x))
    print(reparam.report(fused).after.operators.get("add", 0))
"""


def test_a_thousand_nested_additions_compile() -> None:
    """In a process of its own: annotations are not checked there, at every one of many calls."""
    done = subprocess.run(
        [sys.executable, "-c", ADDITIONS], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["0", "1000"], done.stderr


def test_a_hundred_and_fifty_nested_modules_compile() -> None:
    model: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    for _ in range(150):
        model = nn.Sequential(model)
    x = drawn(0, 2, 3, 5, 6)
    model = randomised(model.double(), x)
    fused = reparam.compile(model, passes=passes.DEFAULT)
    torch.testing.assert_close(fused(x), model(x))
    assert operators(fused) == {"Conv2d": 1}


def test_a_tensor_with_more_readers_than_a_region_takes_in() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = (nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(COUNT))
            self.blocks = nn.ModuleList(layers)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([block(x) for block in self.blocks])

    x = drawn(0, 1, 2, 5, 6)
    model = randomised(Wide().double(), x)
    fused = reparam.compile(model, passes=passes.DEFAULT)
    torch.testing.assert_close(fused(x), model(x))
    assert operators(fused)["Conv2d"] == COUNT
    assert "BatchNorm2d" not in operators(fused)


def test_folded_weights_in_float64_do_not_outlive_the_compile() -> None:
    """Neither what was folded on the way nor what was declined keeps any."""

    def widened() -> int:
        tensors: Any = (t for t in gc.get_objects() if type(t) is Tensor)
        return sum(t.numel() for t in tensors if t.dtype == torch.float64)

    model = nn.Sequential(*(Block(32) for _ in range(3))).eval()
    gc.collect()
    gc.disable()
    try:
        before = widened()
        fused = reparam.compile(model, passes=passes.DEFAULT)
        weights = sum(parameter.numel() for parameter in fused.parameters())
        assert widened() - before < weights / 10
    finally:
        gc.enable()


def test_a_graph_that_is_kept_can_be_written_twice() -> None:
    model = randomised(nn.Sequential(Block(3)), drawn(0, 1, 3, 5, 6).float())
    captured = capture(model)
    values = lift_graph(captured)
    Driver(values, passes.DEFAULT, True, lambda _: None).run()
    first, second = lower(values, captured, keep=True), lower(values, captured)
    assert first.code == second.code
    for (name, one), (other, two) in zip(
        first.state_dict().items(), second.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (float("nan"), "a weight or a statistic is not finite"),
        (1e39, "a folded weight overflows float32"),
        (1e-60, "a folded weight underflows float32"),
    ],
)
def test_one_odd_row_of_many_is_found(number: float, reason: str) -> None:
    weight = drawn(0, 5, 7)
    weight[3] = number
    with pytest.raises(reparam.Declined) as caught:
        require_representable([Conv(weight)], torch.float32)
    assert caught.value.reason == reason


def test_rows_of_zeros_are_no_underflow() -> None:
    require_representable([Conv(torch.zeros(3, 4).double())], torch.float32)
