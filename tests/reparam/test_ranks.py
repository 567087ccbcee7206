"""A result holds for as many axes as the example inputs have, wherever that matters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.known import SAME_RANK
from reparam.verify import EXACT, relative_difference
from tests.fused import operators
from tests.passes.alone import Net
from tests.randomised import randomised
from tests.strategies import drawn

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

DEPENDING: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "an average over axis 1": (lambda m, x: m.linear(m.tokens(x).mean(1)), (2, 6, 6), (2, 5, 7, 6)),
    "a batch norm": (lambda m, x: m.norm(m.linear(x)), (2, 6), (2, 6, 6)),
    "a group norm": (lambda m, x: m.linear(m.groups(x)), (2, 6), (2, 6, 6)),
    "a concatenation": (
        lambda m, x: torch.cat([m.conv(x), m.conv(x) + 1], 1), (2, 6, 4, 4), (6, 4, 4),
    ),
}  # fmt: skip


def net(forward: Callable[[Any, Tensor], Tensor], x: Tensor) -> nn.Module:
    layers: dict[str, nn.Module] = {
        "linear": nn.Linear(6, 6),
        "tokens": nn.LayerNorm(6),
        "groups": nn.GroupNorm(2, 6),
        "norm": nn.BatchNorm1d(6),
        "conv": nn.Conv2d(6, 6, 1),
        "images": nn.BatchNorm2d(6),
    }
    return randomised(Net(forward, **layers), x.float()).double()


@pytest.mark.parametrize("what", DEPENDING)
def test_where_it_matters_another_number_of_axes_is_an_error(what: str) -> None:
    forward, given, other = DEPENDING[what]
    x = drawn(0, *given)
    model = net(forward, x)
    fused = reparam.compile(model, x)
    assert relative_difference(model(x), fused(x)) <= EXACT
    model(drawn(1, *other))
    with pytest.raises(AssertionError, match=SAME_RANK):
        fused(drawn(1, *other))
    assert f"{SAME_RANK}: x has {len(given)}" in [
        remark.message for remark in reparam.report(fused).analysis
    ]
    assert "_assert" not in operators(fused)
    again = reparam.compile(fused, x)
    assert again.code == fused.code


def test_where_it_does_not_matter_nothing_is_asserted() -> None:
    x = drawn(0, 2, 6)
    model = net(lambda m, x: m.linear(m.linear(x)).relu() + x, x)
    fused = reparam.compile(model, x)
    other = drawn(1, 2, 5, 6)
    assert relative_difference(model(other), fused(other)) <= EXACT
    assert not reparam.report(fused).analysis


def test_what_the_model_itself_demands_is_not_asserted() -> None:
    x = drawn(0, 2, 6, 5, 4)
    model = net(lambda m, x: m.linear(m.images(m.conv(x)).relu().mean((2, 3))), x)
    fused = reparam.compile(model, x)
    assert not reparam.report(fused).analysis


def test_inputs_that_are_collected() -> None:
    """What a star collects is a tuple, whatever stands at its place among the example inputs."""

    class Collected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, *images: Tensor) -> Tensor:
            return self.norm(self.conv(images[0])) + images[1]

    x, y = drawn(0, 2, 4, 5, 6), drawn(1, 2, 4, 5, 6)
    model = Collected().double().eval()
    fused = reparam.compile(model, (x, y), verify=False)
    assert relative_difference(model(x, y), fused(x, y)) <= EXACT
