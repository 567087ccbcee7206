"""A crop may leave nothing of a small image, and then the model returns an empty tensor."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

import passes
import reparam
from reparam.capture import capture
from reparam.check import check
from reparam.errors import Rejected
from reparam.lift import lift_graph
from reparam.verify import EXACT, relative_difference
from tests.fused import operators
from tests.randomised import randomised
from tests.strategies import drawn

Forward = Callable[[Any, Tensor], Tensor]

EMPTY = "of a small image, the crop may leave nothing, which no convolution takes"


class Net(nn.Module):
    """A forward over convolutions a and b."""

    def __init__(self, forward: Forward, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.body, self.a, self.b = forward, a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def compiled(forward: Forward, a: nn.Module, b: nn.Module, n: int = 2) -> nn.Module:
    """Compile, and compare on images from one pixel on, those the model refuses left out."""
    x = drawn(1, 2, 4, *range(8, 8 + n))
    model = randomised(Net(forward, a, b).double(), x)
    fused = reparam.compile(model, x, passes=passes.DEFAULT, verify="proof")
    for size in range(1, 7):
        small = drawn(size, 2, 4, *range(size, size + n))
        try:
            expected = model(small)
        except RuntimeError:
            continue
        assert relative_difference(expected, fused(small)) <= EXACT
    return fused


def convolutions(fused: nn.Module) -> int:
    return sum(count for name, count in operators(fused).items() if name.startswith("Conv"))


def messages(fused: nn.Module) -> set[str]:
    return {remark.message for remark in reparam.report(fused).missed}


@pytest.mark.parametrize(
    "crop",
    [lambda y: y[..., :-1, 1:], lambda y: y[..., 1::2, :]],
    ids=["crop", "strided"],
)
def test_a_convolution_stays_before_a_crop_of_which_nothing_may_be_left(
    crop: Callable[[Tensor], Tensor],
) -> None:
    fused = compiled(
        lambda s, x: (crop(s.a(x)) + crop(s.b(x))).relu(),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1),
    )
    assert convolutions(fused) == 2
    assert EMPTY in messages(fused)


def test_beside_a_valid_convolution_the_crop_leaves_something() -> None:
    fused = compiled(
        lambda s, x: (s.a(x) + s.b(x)[..., 1:-1, 1:-1]).relu(),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1),
    )
    assert convolutions(fused) == 1


def test_a_causal_convolution_leaves_as_much_as_it_reads() -> None:
    fused = compiled(
        lambda s, x: (s.a(x)[..., :-4] + s.b(x)).relu(),
        nn.Conv1d(4, 4, 3, padding=4, dilation=2),
        nn.Conv1d(4, 4, 1),
        n=1,
    )
    assert convolutions(fused) == 1


def test_a_convolution_that_reads_a_crop_fails_there_anyway() -> None:
    fused = compiled(
        lambda s, x: s.b(s.a(x)[..., 1:, 1:]).relu(),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1),
    )
    assert convolutions(fused) == 1


def test_sizes_that_are_known_are_large_enough() -> None:
    x = drawn(0, 2, 4, 8, 9)

    def forward(net: Any, x: Tensor) -> Tensor:
        image = x.reshape(2, 4, 8, 9)
        return (net.a(image)[..., :-1] + net.b(image)[..., :-1]).relu()

    model = randomised(Net(forward, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).double(), x)
    fused = reparam.compile(model, x, passes=passes.DEFAULT)
    assert convolutions(fused) == 1
    assert relative_difference(model(x), fused(x)) <= EXACT
    assert EMPTY not in messages(fused)


def test_to_put_a_convolution_behind_a_crop_is_refused() -> None:
    """By the check of every rewrite, whatever pass makes it."""
    layer = nn.Conv2d(4, 4, 1)
    model = Net(lambda s, x: s.a(x)[..., 1:-1, 1:-1], layer, nn.Identity())
    x = drawn(0, 2, 4, 9, 9).float()
    _, conv, crop = list(lift_graph(capture(randomised(model, x)), x).calls())
    with pytest.raises(Rejected, match=r"its replacement fails: .* Kernel size can't be greater"):
        check({crop: conv.on(crop.on(conv.inputs[0]))})
