"""What a trace must not lose, freeze, or leave behind in the model."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
import reparam
from reparam.verify import EXACT, relative_difference
from tests.randomised import randomised


class MaxNorm(nn.Conv2d):
    """Writes its own weight in the forward, as networks for EEG do."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as the base class has it
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
        return super().forward(input)


class Net(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.other = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.max_norm = MaxNorm(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("count", torch.zeros(1))
        self.calls = 0
        self.seen: list[Any] = []
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


IMAGES = torch.randn(2, 4, 6, 5, dtype=torch.float64)


def compiled(
    forward: Callable[[Any, Tensor], Tensor], verify: bool = True
) -> tuple[nn.Module, nn.Module]:
    """A model as it was before, and what it compiles to."""
    model = Net(forward).eval().double()
    randomised(nn.Sequential(model.conv, model.other, model.norm), IMAGES)
    before = copy.deepcopy(model)
    return before, reparam.compile(model, passes=passes.DEFAULT, verify=verify)


def doubled_in_place(net: Any, x: Tensor) -> Tensor:
    h = net.conv(x)
    y = h * 1.0
    y = y.mul_(2)
    return y + h.relu()


def weight_halved(net: Any, x: Tensor) -> Tensor:
    net.conv.weight.data.mul_(0.5)
    return net.norm(net.conv(x))


def counted(net: Any, x: Tensor) -> Tensor:
    net.count.add_(1)
    return net.conv(x) * net.count


def tensor_made_inside(net: Any, x: Tensor) -> Tensor:
    return net.conv(x) + torch.tensor(2.0)


def sum_with_coefficients(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x).relu() * 0.5 - net.conv(x).sigmoid() * 2)


def negated_norm(net: Any, x: Tensor) -> Tensor:
    return net.conv(-net.norm(x))


def branches_of_two_tensors(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x) + net.other(x.relu()))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "forward",
    [
        doubled_in_place,
        weight_halved,
        counted,
        tensor_made_inside,
        sum_with_coefficients,
        negated_norm,
        branches_of_two_tensors,
        lambda net, x: net.norm(net.max_norm(x)),
    ],
)
def test_function_and_effects_are_kept(
    forward: Callable[[Any, Tensor], Tensor], verify: bool
) -> None:
    model, fused = compiled(forward, verify)
    with torch.no_grad():
        for _ in range(2):  # an effect of the first call would show in the second
            assert relative_difference(model(IMAGES), fused(IMAGES)) <= EXACT


def remembers(net: Any, x: Tensor) -> Tensor:
    net.last = net.conv(x)
    return net.last


def counts_calls(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.conv(x) * net.calls


def collects(net: Any, x: Tensor) -> Tensor:
    net.seen.append(x)
    return net.conv(x)


def draws(net: Any, x: Tensor) -> Tensor:
    return net.conv(x) + torch.rand(1)


def casts(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.conv(x)


def turns_gradients_on(net: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return net.conv(x)


def leaves_gradients_on(net: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(True)
    return net.conv(x)


def leaves_gradients_on_at_last(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    torch.set_grad_enabled(True)
    return y


def asks_beside_torch(net: Any, x: Tensor) -> Tensor:
    """As a package does whose name only begins with that of torch."""
    code = "import torch\ndef wanted(): return torch.is_grad_enabled()"
    own: dict[str, Any] = {}
    exec(compile(code, f"{Path(torch.__file__).parent}vision/test_tracer.py", "exec"), own)
    return net.conv(x) * 2 if own["wanted"]() else net.conv(x)


def asks_for_autocast(net: Any, x: Tensor) -> Tensor:
    return net.conv(x) * 2 if torch.is_autocast_enabled("cpu") else net.conv(x)


def asks_for_the_dtype_of_autocast(net: Any, x: Tensor) -> Tensor:
    return net.conv(x).to(torch.get_autocast_dtype("cpu"))


def asks_for_inference_mode(net: Any, x: Tensor) -> Tensor:
    return net.conv(x) * 2 if torch.is_inference_mode_enabled() else net.conv(x)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (turns_gradients_on, "it turns gradients on"),
        (leaves_gradients_on, "it turns gradients on"),
        (leaves_gradients_on_at_last, "it turns gradients on"),
        (asks_beside_torch, "it asks whether gradients are wanted"),
        (asks_for_autocast, "it asks whether it runs under autocast"),
        (asks_for_the_dtype_of_autocast, "it asks whether it runs under autocast"),
        (asks_for_inference_mode, "it asks whether gradients are wanted"),
        (remembers, "it changes its attribute 'last'"),
        (counts_calls, "it changes its attribute 'calls'"),
        (collects, "it changes its attribute 'seen'"),
        (draws, "it draws random numbers"),
        (casts, "it runs under autocast"),
    ],
)
def test_what_would_be_lost_in_a_trace_stays(
    forward: Callable[[Any, Tensor], Tensor], reason: str
) -> None:
    model = Net(forward).eval()
    before = dict(vars(model))
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert type(fused) is Net
    assert fused is not model
    (remark,) = reparam.report(fused).missed
    assert "test_tracer.py:" in remark.message
    assert reason in remark.message
    assert vars(model) == before
    assert model.seen == []


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("forward", [turns_gradients_on, leaves_gradients_on, casts])
def test_the_mode_of_gradients_is_the_users_after_a_compile(
    forward: Callable[[Any, Tensor], Tensor], wanted: bool
) -> None:
    with torch.set_grad_enabled(wanted):
        reparam.compile(Net(forward).eval(), passes=passes.DEFAULT)
        assert torch.is_grad_enabled() is wanted


def test_gradients_that_a_forward_turns_on_are_there() -> None:
    model = Net(turns_gradients_on).eval()
    with torch.no_grad():
        assert reparam.compile(model)(IMAGES.float()).requires_grad


def test_a_forward_may_turn_gradients_off() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = net.norm(net.conv(x))
        return net.other(y)

    before, fused = compiled(forward)
    assert "BatchNorm2d" not in reparam.report(fused).after.operators
    assert relative_difference(before(IMAGES), fused(IMAGES)) <= EXACT


def test_the_same_inside_a_block_leaves_the_block_whole() -> None:
    model = nn.Sequential(Net(draws), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert type(fused.get_submodule("0")).__name__ == "Net"
    assert "BatchNorm2d" not in reparam.report(fused).after.operators
    assert any("draws random numbers" in r.message for r in reparam.report(fused).missed)


def test_a_new_layer_does_not_take_the_place_of_a_parameter() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.bias = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x) + self.b(x)).relu() + self.bias

    model = nn.Sequential(Block(), nn.ReLU()).eval()
    fused = reparam.compile(model, passes=passes.DEFAULT)
    reparam.verify(model, fused, torch.randn(3, 4)).raise_if_different()


def test_weights_keep_their_traits() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).eval().requires_grad_(False)
    model = model.to(memory_format=torch.channels_last)
    weight = reparam.compile(model, passes=passes.DEFAULT).get_parameter("0.weight")
    assert not weight.requires_grad
    assert weight.is_contiguous(memory_format=torch.channels_last)
