"""What a region could gain is told from its form: which roots are worth a closer look."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from reparam.capture import capture
from reparam.errors import Declined
from reparam.expansion import affine_call
from reparam.graph import Call
from reparam.lift import lift_graph
from reparam.prospect import LONGEST, Budget, could_shrink
from tests.passes.alone import Net
from tests.strategies import drawn

X = drawn(0, 2, 4, 6, 5).float()


def root(forward: Callable[[Any, Tensor], Any]) -> Call:
    """The last linear call of a model of two dense convolutions, a depthwise one and a norm."""
    layers = {
        "a": nn.Conv2d(4, 4, 3, padding=1),
        "b": nn.Conv2d(4, 4, 3, padding=1),
        "valid": nn.Conv2d(4, 4, 3),
        "also_valid": nn.Conv2d(4, 4, 3),
        "narrow": nn.Conv2d(4, 4, 1),
        "norm": nn.BatchNorm2d(4),
    }
    calls = lift_graph(capture(Net(forward, **layers).eval(), X), X).calls()
    return [call for call in calls if affine_call(call)][-1]


def shrinks(forward: Callable[[Any, Tensor], Any], meeting: bool = False) -> bool:
    return could_shrink(root(forward), affine_call, meeting)


@pytest.mark.parametrize(
    ("forward", "alone", "meeting"),
    [
        (lambda net, x: net.a(x), False, False),
        (lambda net, x: net.a(x.relu()) + x, False, False),
        (lambda net, x: net.a(x) + x, True, True),
        (lambda net, x: net.a(x) + net.b(x), True, True),
        (lambda net, x: net.norm(net.a(x)), True, False),
        (lambda net, x: net.narrow(net.a(x)), True, False),
        (lambda net, x: net.a(x.relu()) * 2, True, False),
        (lambda net, x: net.a(x.relu()) + 2 * x, True, False),
    ],
)
def test_what_follows_or_meets_could_shrink(forward: Any, alone: bool, meeting: bool) -> None:
    assert shrinks(forward) is alone
    assert shrinks(forward, meeting=True) is meeting


def test_what_others_read_stays() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.a(x)
        return y.relu() + net.norm(y).relu()

    assert not shrinks(forward)


def test_a_composition_that_costs_more_is_declined() -> None:
    with pytest.raises(Declined) as caught:
        shrinks(lambda net, x: net.valid(net.also_valid(x.relu())))
    dearer = "merged, it takes more multiply-adds per pixel: 400 instead of 288"
    assert (caught.value.reason, caught.value.blocker) == (dearer, "also_valid")
    with pytest.raises(Declined) as caught:
        shrinks(lambda net, x: net.b(net.a(x.relu())))
    assert caught.value.reason == "two padded kernels do not merge at the border"


def test_of_what_is_too_large_nothing_is_told() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        total = net.a(x)
        for _ in range(LONGEST):
            total = total + x.relu()
        return total

    assert shrinks(forward)


def test_a_budget_is_what_could_go() -> None:
    """A convolution that is read elsewhere too pays for nothing."""
    one = 4 * 4 * 9
    budget = Budget(root(lambda net, x: net.b(net.a(x))), affine_call)
    assert budget.affords(2 * one)
    assert not budget.affords(2 * one + 1)
    assert not budget.spent
    assert not budget.pay(2 * one + 1)
    assert not budget.spent
    assert budget.pay(2 * one)
    assert budget.spent

    def read_twice(net: Any, x: Tensor) -> Any:
        y = net.a(x)
        return y.relu(), net.b(y)

    assert not Budget(root(read_twice), affine_call).affords(one + 1)
