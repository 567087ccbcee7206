"""Rows 42 to 44: many nodes, deep nesting, and names that are in the way."""

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
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn


@pytest.mark.usefixtures("without_annotation_checks")
def test_row_42_thousands_of_nodes() -> None:
    layers = [nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()) for _ in range(1000)]
    model = nn.Sequential(*layers).double().eval()
    fused = reparam.compile(model, verify=False)
    assert calls(fused) == 2 * 1000
    assert norms(fused) == []
    same(model, fused, drawn(1, 1, 2, 3, 3))


@pytest.mark.usefixtures("without_annotation_checks")
def test_row_43_a_thousand_nested_additions() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        for _ in range(1000):
            y = y + x
        return m.norm(y)

    parts = {"conv": nn.Conv2d(4, 4, 3, padding=1), "norm": nn.BatchNorm2d(4)}
    model = trained(Net(forward, **parts))
    same(model, compiled(model))


@pytest.mark.usefixtures("without_annotation_checks")
def test_row_43_nested_additions_of_what_is_not_linear() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        for _ in range(200):
            y = x.sin() + y
        return m.norm(y)

    conv, norm = conv_norm()
    model = trained(Net(forward, conv=conv, norm=norm))
    same(model, compiled(model))


@pytest.mark.usefixtures("without_annotation_checks")
def test_row_43_a_thousand_in_series() -> None:
    """Nothing nonlinear in between: one region, as long as the model."""
    layers = [nn.Conv2d(4, 4, 1, groups=4) for _ in range(1000)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1.001)
    model = nn.Sequential(*layers).double().eval()
    fused = compiled(model, verify=False)
    same(model, fused)


@pytest.mark.usefixtures("without_annotation_checks")
@pytest.mark.parametrize("depth", [150])
def test_row_43_nested_modules(depth: int) -> None:
    """As deep as eager runs them: each takes three frames of Python's thousand."""
    model: nn.Module = conv_norm()
    for _ in range(depth):
        model = nn.Sequential(model)
    fused = fused_exactly(trained(model))
    assert calls(fused) == 1


@pytest.mark.usefixtures("without_annotation_checks")
def test_row_43_nested_outputs() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y: Any = m.norm(m.conv(x))
        for _ in range(100):
            y = [y]
        return y

    conv, norm = conv_norm()
    fused_exactly(trained(Net(forward, conv=conv, norm=norm)))


NAMES = (
    ("0", "1"),
    ("1_2", "1"),
    ("x", "input"),
    ("add", "relu"),
    ("conv", "conv_fused"),
    ("conv_fused", "conv"),
    ("fused", "conv"),
    ("output", "graph"),
    ("class", "lambda"),
    ("a-b", "a b"),
    ("é", "权重"),
    ("_forward", "__len"),
    ("code", "meta"),
    ("torch", "self"),
    ("reparam_report", "print_readable"),
)


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_row_44_names(names: tuple[str, str]) -> None:
    """Modules named as fx, this library, Python or the arguments name something else."""
    first, second = names

    def forward(m: Any, x: Tensor) -> Tensor:
        one, two = m.get_submodule(first), m.get_submodule(second)
        return two(one[1](one[0](x)).relu()) + x

    model = Net(forward)
    model.add_module(first, conv_norm())
    model.add_module(second, conv_norm())
    fused = fused_exactly(trained(model))
    reparam.compile(fused)


def test_row_44_new_names_that_are_taken() -> None:
    """What the branches begin with is the name of another module."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.block.a(x) + m.block.b(x)
        return m.block(y.relu()) + m.get_submodule("block_fused")(x)

    model = Net(forward)
    model.block = nn.ReLU()
    for name in ("a", "b", "fused"):
        model.block.add_module(name, nn.Conv2d(4, 4, 1))
    model.add_module("block_fused", conv_norm())
    fused = fused_exactly(trained(model))
    assert len(set(fused.state_dict())) == len(fused.state_dict())


def test_row_44_new_names_below_a_module_that_stays_whole() -> None:
    """A part that is called from elsewhere, too, and has its only name inside of such a module."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = conv_norm()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x) if bool(x.isfinite().all()) else x

    model = Net(lambda m, x: m.whole.part(m.whole(x)).relu(), whole=Whole())
    trained(model)
    same(model, compiled(model))


def test_row_44_parameters_and_modules_of_one_name() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.conv(x) * m.scale.view(-1, 1, 1) + m.weight.view(-1, 1, 1)

    model = Net(forward, conv=nn.Conv2d(4, 4, 1), scale=torch.ones(4) * 2, weight=torch.ones(4) * 3)
    fused = compiled(trained(model))
    same(model, fused, IMAGE)
    assert len(set(fused.state_dict())) == len(fused.state_dict())
