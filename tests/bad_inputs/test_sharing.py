"""Rows 12 to 16, 18 and 19: what is used, read or watched more than once."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.bad_inputs.outcomes import (
    IMAGE,
    calls,
    compiled,
    conv_norm,
    fused_exactly,
    norms,
    same,
    stays,
    trained,
)
from tests.bad_inputs.programs import PROGRAMS
from tests.passes.alone import Net
from tests.strategies import drawn


def fused_or_named(model: nn.Module, path: str) -> nn.Module:
    """F or S: either no batch norm is left, or a remark names the one that is."""
    fused = compiled(model)
    same(model, fused)
    same(model, compiled(model, verify=False))
    missed = {name for r in reparam.report(fused).missed for name in (r.call, r.blocker)}
    assert norms(fused) == [] or path in missed
    return fused


def test_row_12_conv_used_twice() -> None:
    fused_or_named(PROGRAMS["row 12"](), "norm")


def test_row_12_conv_used_twice_with_a_norm_each() -> None:
    model = Net(
        lambda m, x: m.first(m.conv(x)) + m.second(m.conv(m.pool(x))),
        conv=nn.Conv2d(4, 4, 3, padding=1),
        pool=nn.MaxPool2d(3, 1, 1),
        first=nn.BatchNorm2d(4),
        second=nn.BatchNorm2d(4),
    )
    fused_or_named(trained(model), "first")


def test_row_13_conv_and_norm_called_twice() -> None:
    fused = fused_exactly(PROGRAMS["row 13"]())
    assert reparam.report(fused).before.operators["BatchNorm2d"] == 2


def test_row_13_block_called_in_a_loop() -> None:
    block = nn.Sequential(conv_norm(), nn.ReLU())

    def forward(m: Any, x: Tensor) -> Tensor:
        for _ in range(3):
            x = m.block(x)
        return x

    fused_exactly(trained(Net(forward, block=block)))


def test_row_13_one_module_at_two_paths() -> None:
    pair = conv_norm()
    fused_exactly(trained(nn.Sequential(pair, nn.ReLU(), pair)))


def test_row_13_norm_shared_by_two_convs() -> None:
    model = Net(
        lambda m, x: m.norm(m.first(x)) * m.norm(m.second(x)),
        first=nn.Conv2d(4, 4, 3),
        second=nn.Conv2d(4, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    fused_exactly(trained(model))


def test_row_14_one_parameter_in_two_modules() -> None:
    model = nn.Sequential(conv_norm(), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    trained(model)
    model[2].weight = model[0][0].weight
    model[2].bias = model[0][0].bias
    fused = fused_exactly(model)
    assert model[2].weight is model[0][0].weight
    assert torch.equal(fused.get_parameter("2.weight"), model[2].weight)
    assert not torch.equal(fused.get_parameter("0.0.weight"), model[2].weight)


def test_row_14_both_are_folded() -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))
    model[2][0].weight = model[0][0].weight
    fused_exactly(model)


def test_row_14_norms_that_share_their_weight() -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))
    model[2][1].weight, model[2][1].bias = model[0][1].weight, model[0][1].bias
    fused_exactly(model)


def test_row_14_parameter_tied_to_itself() -> None:
    """A bias that is also the batch norm's."""
    model = trained(conv_norm())
    model[1].bias = model[1].weight = model[0].bias
    fused_exactly(model)


def test_row_15_weight_read_elsewhere() -> None:
    fused_or_named(PROGRAMS["row 15"](), "norm")


def test_row_15_statistics_read_elsewhere() -> None:
    model = Net(
        lambda m, x: m.norm(m.conv(x)) - m.norm.running_mean.sum() * m.norm.weight[0],
        conv=nn.Conv2d(4, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    fused_or_named(trained(model), "norm")


class Watch:
    """A hook that counts its calls; it may change what it sees."""

    def __init__(self, change: Callable[[Any], Any] | None = None) -> None:
        self.count = 0
        self.change = change

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> Any:
        self.count += 1
        seen = inputs[0] if output is None else output
        return None if self.change is None else self.change(seen)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Watch":
        return self


@pytest.mark.parametrize("path", ["0.0", "0.1", "0"], ids=["conv", "batch norm", "around"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("change", [None, lambda seen: seen * 2 + 1], ids=["watching", "changing"])
def test_row_16_hooks(path: str, kind: str, change: Callable[[Any], Any] | None) -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))
    hook = Watch(change)
    getattr(model.get_submodule(path), kind)(hook)
    fused = stays(model, "it has hooks", call=path)
    hook.count = 0
    fused(IMAGE)
    assert hook.count == 1
    assert [name for name in norms(fused) if name.startswith("2")] == []


def test_row_16_hooks_of_the_model_itself() -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU()))
    before, after = Watch(lambda x: x + 1), Watch(lambda y: y * 2)
    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    fused = fused_exactly(model)
    before.count = after.count = 0
    fused(IMAGE)
    assert (before.count, after.count) == (1, 1)


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("path", ["0.1", "0", ""], ids=["batch norm", "around", "the model itself"])
def test_row_16_backward_hooks(path: str, kind: str) -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))
    seen: list[Any] = []
    getattr(model.get_submodule(path), kind)(lambda *given: seen.append(given))
    fused = stays(model, "it has hooks", call=path) if path else fused_exactly(model)
    for result in (fused, copy.deepcopy(fused)):
        seen.clear()
        result(IMAGE.clone().requires_grad_()).sum().backward()
        assert len(seen) == 1
    assert [name for name in norms(fused) if name.startswith("2")] == []


def test_row_16_hooks_with_keywords() -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU()))

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return output + len(args)

    model[0][0].register_forward_hook(hook, with_kwargs=True, always_call=True)
    stays(model, "it has hooks", call="0.0")


def test_row_16_hooks_of_a_module_called_twice() -> None:
    model = Net(
        lambda m, x: m.pair(m.pair(x)),
        pair=conv_norm(),
    )
    trained(model)
    hook = Watch(lambda y: y * 2)
    model.pair[0].register_forward_hook(hook)
    fused = stays(model, "it has hooks", call="pair.0")
    hook.count = 0
    fused(IMAGE)
    assert hook.count == 2


def test_row_18_second_reader_of_the_conv() -> None:
    model = Net(
        lambda m, x: m.norm(y := m.conv(x)) + y.sigmoid(),
        conv=nn.Conv2d(4, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    fused = stays(trained(model), "something else reads", call="norm")
    assert norms(fused) == ["norm"]


def test_row_18_two_norms_of_one_conv() -> None:
    model = Net(
        lambda m, x: m.first(y := m.conv(x)).relu() + m.second(y).sigmoid(),
        conv=nn.Conv2d(4, 4, 3),
        first=nn.BatchNorm2d(4),
        second=nn.BatchNorm2d(4),
    )
    fused_or_named(trained(model), "first")


def test_row_18_norm_before_two_readers() -> None:
    model = Net(
        lambda m, x: (m.first(y := m.norm(x.sin())), m.second(y)),
        norm=nn.BatchNorm2d(4),
        first=nn.Conv2d(4, 4, 3),
        second=nn.Conv2d(4, 6, 1),
    )
    fused_or_named(trained(model), "norm")


def test_row_18_sizes_are_no_readers() -> None:
    model = Net(
        lambda m, x: m.norm(y := m.conv(x)).reshape(y.shape[0], -1),
        conv=nn.Conv2d(4, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    fused_exactly(trained(model))


def test_row_19_the_convolution_is_an_output() -> None:
    model = Net(
        lambda m, x: (y := m.conv(x), m.norm(y)),
        conv=nn.Conv2d(4, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    fused = stays(trained(model), "something else reads", call="norm")
    assert calls(fused) == 2


@pytest.mark.parametrize("place", [dict, list])
def test_row_19_inside_a_structure(place: type) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        inside = {"features": [y]} if place is dict else [(y,)]
        return m.norm(y).relu(), inside

    model = Net(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))
    stays(trained(model), "something else reads", call="norm")


def test_row_19_a_branch_is_an_output() -> None:
    model = Net(
        lambda m, x: (y := m.first(x), (y + m.second(x)).relu()),
        first=nn.Conv2d(4, 4, 3, padding=1),
        second=nn.Conv2d(4, 4, 3, padding=1),
    )
    x = drawn(3, 2, 4, 5, 5)
    fused = compiled(trained(model))
    same(model, fused, x)
    assert calls(fused) <= 4
