"""A result holds for as many axes as the example inputs have, wherever that matters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.known import SAME_KIND, SAME_RANK
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


class Forward(nn.Module):
    """A forward over two linear layers and a convolution, as it is."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.body = forward
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(3, 3), nn.Conv2d(4, 4, 1)
        self.r: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def test_a_size_that_is_read_from_the_end_or_the_front() -> None:
    """What is behind the layer has another tensor's size at that place, or not, by the axes."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(y) / y.size(1)

    model = Forward(forward).double().eval()
    fused = reparam.compile(model, drawn(0, 2, 5, 4))
    x = drawn(1, 2, 6, 4)
    assert relative_difference(model(x), fused(x)) <= EXACT
    with pytest.raises(AssertionError, match=SAME_RANK):
        fused(drawn(1, 5, 4))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x.relu() * 2 * 0.25,
        lambda m, x: m.c((255 - x) / 255),
        lambda m, x: m.c((x.abs() * 2 * 2).square().sqrt() / 2 / 2),
    ],
)
def test_integers_in_the_place_of_floating_point_numbers(forward: Callable[..., Any]) -> None:
    model = Forward(forward).eval()
    x = torch.randint(0, 255, (2, 4, 5, 6), dtype=torch.uint8)
    fused = reparam.compile(model, x.float())
    torch.testing.assert_close(fused(x.float()), model(x.float()))
    with pytest.raises(AssertionError, match=SAME_KIND):
        fused(x)
    torch.testing.assert_close(reparam.compile(model, x)(x), model(x))


def test_only_inputs_on_which_it_depends() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x).mean(1), self.a(y)

    model = Two().double().eval()
    fused = reparam.compile(model, (drawn(0, 2, 5, 4), drawn(1, 3, 4)))
    fused(drawn(2, 2, 6, 4), drawn(3, 2, 3, 4))
    with pytest.raises(AssertionError, match=SAME_RANK):
        fused(drawn(2, 6, 4), drawn(3, 3, 4))


def test_a_pooling_keeps_the_axes_before_those_it_runs_over() -> None:
    model = Forward(lambda m, x: m.c(torch.max_pool2d(m.c(x).relu(), 2))).double().eval()
    fused = reparam.compile(model, drawn(0, 2, 4, 6, 6))
    x = drawn(1, 4, 6, 6)
    assert relative_difference(model(x), fused(x)) <= EXACT


def test_a_result_in_which_a_layer_was_exchanged() -> None:
    """What held for the first result need not hold for this one."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double().eval()
    fused: Any = reparam.compile(model, drawn(0, 6, 4))
    norm = randomised(nn.BatchNorm1d(4), torch.randn(6, 4)).double()
    fused.add_module("1", norm)
    again = reparam.compile(fused, drawn(0, 6, 4))
    with pytest.raises(AssertionError, match=SAME_RANK):
        again(drawn(1, 6, 4, 4))


def test_keyword_only_arguments_behind_a_starred_one() -> None:
    class Starred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, *others: Tensor, z: Tensor | None = None) -> Tensor:
            return torch.cat([self.norm(self.a(x)), self.a(others[0])], 1)

    model, inputs = Starred().double().eval(), (drawn(0, 2, 4, 5, 6), drawn(1, 2, 4, 5, 6))
    for example in (None, inputs):
        fused = reparam.compile(model, example)
        assert relative_difference(model(*inputs), fused(*inputs)) <= EXACT
        (remark,) = reparam.report(fused).missed
        assert "it takes keyword-only arguments behind a starred one" in remark.message


def test_a_method_that_was_compiled_is_no_method_to_compile() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).relu()

        def features(self, x: Tensor) -> Tensor:
            return self.n(self.a(x))

    x = drawn(0, 6, 4)
    fused = reparam.compile(Features().double().eval(), x, methods=["features"])
    with pytest.raises(reparam.ReparamError):
        reparam.compile(fused, x, methods={"features": x})
