"""The check of a rewrite as it happens: it sees borders, and no evidence is a failure."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.algebra import exact, respond
from reparam.capture import capture
from reparam.check import check
from reparam.errors import Declined, Rejected
from reparam.evaluation import Operands
from reparam.graph import Apply, Call
from reparam.lift import lift_graph
from reparam.operators import ConvTranspose
from reparam.values import Conv, Opaque, Value
from reparam.verify import EXACT
from reparam.window import window
from tests.randomised import randomised
from tests.strategies import drawn

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def calls(model: nn.Module, x: Tensor) -> list[Call]:
    """The calls of a model as values, in order."""
    return list(lift_graph(capture(randomised(model, x)), x).calls())


def conv(padding: int = 1, stride: int = 1, kernel: int = 3) -> Call:
    layer = nn.Conv2d(2, 2, kernel, stride, padding)
    return calls(layer, drawn(0, 2, 2, 9, 9).float())[-1]


def changed(call: Call, change: Callable[[Conv], Value]) -> dict[Call, Apply]:
    assert isinstance(call.value, Conv)
    return {call: Apply(change(call.value), call.inputs)}


def test_what_is_equal_passes() -> None:
    assert check(changed(conv(), replace)) <= EXACT


def shift(value: Conv) -> Conv:
    """Another sampling origin, at the same output size."""
    (top, bottom), sides = value.padding
    return replace(value, padding=((top + 1, bottom - 1), sides))


def bordered(value: Conv) -> Conv:
    """Only pixels at the border differ."""
    return replace(value, border=torch.tensor([0.1, 0.0]))


def lost_bias(value: Conv) -> Conv:
    return replace(value, bias=None)


def off_by_little(value: Conv) -> Conv:
    return replace(value, weight=value.weight.double() * (1 + 1e-7))


@pytest.mark.parametrize("change", [shift, bordered, lost_bias, off_by_little])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (7, 2)])
def test_what_is_not_is_rejected(change: Callable[[Conv], Conv], kernel: int, stride: int) -> None:
    with pytest.raises(Rejected, match="its replacement differs by"):
        check(changed(conv(kernel // 2, stride, kernel), change))


def test_a_difference_of_phase_shows() -> None:
    """One that only every other size has: what a stride passes over at the end."""

    def longer(value: Conv) -> Conv:
        (top, bottom), sides = value.padding
        return replace(value, padding=((top, bottom + 1), sides))

    with pytest.raises(Rejected):
        check(changed(conv(stride=2), longer))


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("side", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_side_that_a_stride_rarely_reaches_is_seen(stride: int, side: tuple[int, int]) -> None:
    axis, end = side

    def padded(value: Conv) -> Conv:
        padding = [list(sides) for sides in value.padding]
        padding[axis][end] -= 1
        return replace(value, padding=tuple(map(tuple, padding)))

    with pytest.raises(Rejected):
        check(changed(conv(stride=stride), padded))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [((0, 1), (0, 1)), ((0, 2), (0, 2)), ((0, 1), (0, 0))])
def test_a_border_on_one_side_is_seen(stride: int, padding: Any) -> None:
    """The input's constant is forgotten there; both sides have the same kernel."""
    call = conv(stride=stride)
    assert isinstance(call.value, Conv)
    shift = torch.tensor([0.5, -0.3], dtype=torch.float64)
    value = replace(call.value, padding=padding)
    shifted = Apply(Conv(torch.ones(2, 1, 1, 1), shift, groups=2), call.inputs)
    moved = replace(value, bias=respond(exact(replace(value, padding=())), shift))
    call.node.target = replace(value, border=shift)
    with pytest.raises(Rejected):
        check({call: Apply(moved, (shifted,))})


def test_a_replacement_that_fails_is_rejected() -> None:
    def narrow(value: Conv) -> Conv:
        return replace(value, weight=value.weight[:, :1])

    with pytest.raises(Rejected, match="its replacement fails"):
        check(changed(conv(), narrow))


def test_what_does_not_run_by_itself_is_declined() -> None:
    """No evidence is no proof."""
    call = conv()

    def refuse(x: Tensor) -> Tensor:
        raise RuntimeError("not here")

    call.node.target = Opaque(refuse)
    with pytest.raises(Declined, match="can't be checked"):
        check({call: Apply(Opaque(torch.relu), call.inputs)})


def test_several_roots_share_what_is_drawn() -> None:
    """A pool in between, and two layers behind it: each is compared."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.pool = nn.BatchNorm2d(2), nn.MaxPool2d(2)
            self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.pool(self.norm(x))
            return self.a(y).sum() + self.b(y).sum()

    found = {call.name: call for call in calls(Two(), drawn(0, 2, 2, 9, 9).float())}
    a, b = found["a"], found["b"]
    same = {call: Apply(call.value, call.inputs) for call in (a, b)}
    assert check(same) <= EXACT
    assert isinstance(b.value, Conv)
    with pytest.raises(Rejected):
        check(same | {b: Apply(lost_bias(b.value), b.inputs)})


def test_float64_alone_is_compared() -> None:
    """A bfloat16 model is folded and checked in float64: what it was rounded to is what it is."""
    x = drawn(0, 2, 3, 9, 9)
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x.float()).bfloat16()
    report = reparam.report(reparam.compile(model))
    assert report.verification.checked == 1
    assert report.verification.largest_error <= EXACT


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_that_works_in_place_does_not_change_what_is_drawn(
    activation: Callable[..., nn.Module], inplace: bool
) -> None:
    @reparam.rewrite
    def drop_activation(call: Call) -> reparam.Replace | None:
        return reparam.Replace(call.inputs[0]) if isinstance(call.value, Opaque) else None

    model = nn.Sequential(nn.Conv2d(2, 2, 1), activation(inplace=inplace), nn.Conv2d(2, 2, 1))
    report = reparam.report(reparam.compile(model.eval(), passes=(drop_activation,)))
    assert report.applied == ()
    assert any("differs by" in remark.message for remark in report.missed)


def test_a_kernel_is_seen_however_long_it_is() -> None:
    """Only what is tried of functions for the numbers that they are given has an end."""
    call = conv(padding=25, kernel=51)
    seen = window(Operands.of(changed(call, replace)))
    assert seen.reach == 51
    with pytest.raises(Rejected):
        check(changed(call, lambda value: replace(value, weight=_without_the_last_tap(value))))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(4, 2, 1), (5, 3, 0), (16, 8, 4), (3, 5, 0)]
)
def test_each_tap_of_a_transposed_kernel_is_seen(kernel: int, stride: int, padding: int) -> None:
    """On images of a few pixels: a stride puts as many results between two of them."""
    layer = nn.ConvTranspose2d(2, 2, kernel, stride, padding)
    call = calls(layer, drawn(0, 2, 2, 9, 9).float())[-1]
    value = call.value
    assert isinstance(value, ConvTranspose)
    assert window(Operands.of({call: Apply(value, call.inputs)})).reach <= kernel // stride + 2
    assert check({call: Apply(value, call.inputs)}) <= EXACT
    for tap in range(kernel):
        weight = value.weight.clone()
        weight[..., tap, 0] *= 1.01
        with pytest.raises(Rejected, match="differs by"):
            check({call: Apply(replace(value, weight=weight), call.inputs)})


def _without_the_last_tap(value: Conv) -> Tensor:
    weight = value.weight.clone()
    weight[..., -1, -1] = 0
    return weight
