"""Row 38: what can't be traced stays as it is, its children are compiled, a remark says where."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.bad_inputs.outcomes import (
    IMAGE,
    assert_alike,
    compiled,
    conv_norm,
    norms,
    same,
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn

HERE = "# HERE"
"""Marks the line that stops a trace."""


class Block(nn.Module):
    """Two children that are only called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm(), conv_norm()


class ByValue(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.sum() > 0:  # HERE
            return self.second(y)
        return self.second(-y).relu()


class ByShape(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.shape[2] > 6:  # HERE
            y = y[:, :, :6]
        return self.second(y)


class ByItem(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        scale = float(y.abs().max())  # HERE
        return self.second(y) * scale


class ByLoop(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        parts = [self.second(row[None]) for row in y]  # HERE
        return torch.cat(parts)


class ByRange(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for _ in range(x.shape[0]):  # HERE
            y = self.second(y)
        return y


class ByAssertion(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        assert (y == y).all(), "NaN"  # HERE  # noqa: PLR0124
        return self.second(y)


BLOCKS = (ByValue, ByShape, ByItem, ByLoop, ByRange, ByAssertion)


def line(kind: type[nn.Module]) -> int:
    source, first = inspect.getsourcelines(kind.forward)
    return first + next(number for number, text in enumerate(source) if HERE in text)


def untraced(fused: nn.Module) -> dict[str, str]:
    """What the remarks of the capture say, by path."""
    missed = reparam.report(fused).missed
    return {remark.call: remark.message for remark in missed if remark.rule == "capture"}


@pytest.mark.parametrize("kind", BLOCKS)
def test_row_38_a_block(kind: type[nn.Module]) -> None:
    model = trained(nn.Sequential(conv_norm(), kind(), conv_norm()))
    fused = compiled(model)
    for x in (IMAGE, -IMAGE, drawn(2, 3, 4, 5, 9)):
        same(model, fused, x)
    assert type(fused.get_submodule("1")) is kind
    assert norms(fused) == []
    message = untraced(fused)["1"]
    assert Path(__file__).name in message
    assert str(line(kind)) in message


@pytest.mark.parametrize("kind", BLOCKS)
def test_row_38_the_model_itself(kind: type[nn.Module]) -> None:
    model = trained(kind())
    fused = compiled(model)
    for x in (IMAGE, -IMAGE, drawn(2, 3, 4, 5, 9)):
        same(model, fused, x)
    assert fused is not model
    assert type(fused) is kind
    assert norms(fused) == []
    (message,) = untraced(fused).values()
    assert Path(__file__).name in message
    assert str(line(kind)) in message
    assert reparam.report(fused).applied
    assert "capture" in str(reparam.report(fused))


@pytest.mark.parametrize("kind", BLOCKS)
def test_row_38_with_example_inputs(kind: type[nn.Module]) -> None:
    """They may tell which way it goes; where it goes another way, it must not go the first."""
    model = trained(nn.Sequential(conv_norm(), kind(), conv_norm()))
    fused = compiled(model, IMAGE)
    same(model, fused)
    for x in (-IMAGE, drawn(2, 3, 4, 5, 9), drawn(2, 1, 4, 7, 7)):
        try:
            with torch.no_grad():
                fused(x)
        except Exception as error:
            said = str(error)
        else:
            same(model, fused, x)
            continue
        assert "example inputs" in said, "it says why not"


def test_row_38_the_reason_is_one_sentence() -> None:
    message = untraced(compiled(trained(nn.Sequential(ByValue()))))["0"]
    assert "\n" not in message
    assert "control flow" in message or "value" in message


class Swish(torch.autograd.Function):
    """An activation that keeps less for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()


class BySwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Swish.apply(x)


def test_row_38_an_autograd_function() -> None:
    """It stays, and the layers around it are folded."""
    model = trained(nn.Sequential(conv_norm(), BySwish(), conv_norm()))
    fused = compiled(model, IMAGE)
    assert "it calls the autograd function Swish" in untraced(fused)["1"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    same(model, fused, IMAGE)


def test_row_38_one_inside_another() -> None:
    """Both stay; what is called by the inner one is compiled all the same."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.after = ByValue(), conv_norm()

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.inner(x)) if bool(x.isfinite().all()) else x

    model = trained(nn.Sequential(Outer(), conv_norm()))
    fused = compiled(model)
    same(model, fused)
    same(model, fused, -IMAGE)
    assert norms(fused) == []
    assert {"0", "0.inner"} <= set(untraced(fused))


def test_row_38_called_twice() -> None:
    model = trained(Net(lambda m, x: m.block(m.block(x).relu()), block=ByValue()))
    fused = compiled(model)
    same(model, fused)
    same(model, fused, -IMAGE)
    assert norms(fused) == []


def test_row_38_in_a_list() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([conv_norm() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = part(x) if x.sum() > 0 else part(-x)
            return x

    model = trained(Several())
    fused = compiled(model)
    same(model, fused)
    same(model, fused, -IMAGE)
    assert norms(fused) == []


def reads_a_weight(m: Any, x: Tensor) -> Tensor:
    return m.part(x) * m.part[0].weight.sum()


def reads_a_norm(m: Any, x: Tensor) -> Tensor:
    return m.part(x) + m.part[1].running_mean.sum()


def asks_for_the_class(m: Any, x: Tensor) -> Tensor:
    return m.part(x) if isinstance(m.part, nn.Sequential) else x


def asks_for_the_dtype(m: Any, x: Tensor) -> Tensor:
    return m.part(x.to(next(m.part.parameters()).dtype))


def counts_parameters(m: Any, x: Tensor) -> Tensor:
    return m.part(x) * sum(1 for _ in m.part.parameters())


def indexes(m: Any, x: Tensor) -> Tensor:
    return m.part[1](m.part[0](x).relu())


def iterates(m: Any, x: Tensor) -> Tensor:
    for layer in m.part:
        x = layer(x).relu()
    return x


def calls_forward(m: Any, x: Tensor) -> Tensor:
    return m.part.forward(x)


def looks_it_up(m: Any, x: Tensor) -> Tensor:
    return m._modules["part"](x) + getattr(m, "pa" + "rt")(x)


def calls_by_keyword(m: Any, x: Tensor) -> Tensor:
    return m.part(input=x)


def writes_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.part(x)
    y += 1
    return y


class Reading(nn.Module):
    """Control flow, and something else with its child than a call."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.part = conv_norm()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x) if bool(x.isfinite().all()) else x


@pytest.mark.parametrize(
    "body",
    [
        reads_a_weight,
        reads_a_norm,
        asks_for_the_class,
        asks_for_the_dtype,
        counts_parameters,
        indexes,
        iterates,
        calls_forward,
        looks_it_up,
        calls_by_keyword,
        writes_in_place,
    ],
    ids=lambda body: body.__name__,
)
@pytest.mark.parametrize("whole", [True, False], ids=["model", "block"])
def test_row_38_children_that_are_more_than_called(
    body: Callable[[Any, Tensor], Tensor], whole: bool
) -> None:
    block = Reading(body)
    model = trained(block if whole else nn.Sequential(block, conv_norm()))
    fused = compiled(model)
    same(model, fused)


def test_row_38_a_child_that_another_module_calls_too() -> None:
    part = conv_norm()
    block = Reading(lambda m, x: m.part(x))
    block.part = part
    model = trained(Net(lambda m, x: m.block(x) + m.part(x.relu()), block=block, part=part))
    fused = compiled(model)
    same(model, fused)
    assert norms(fused) == ["block.part.1"]
    assert "block" in {remark.call for remark in reparam.report(fused).missed}


def test_row_38_a_child_that_draws_numbers() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(1)

    model = trained(nn.Sequential(conv_norm(), Noisy(), conv_norm()))
    fused = compiled(model)
    same(model, fused)
    assert norms(fused) == []
    assert "random" in untraced(fused)["1"]


def test_row_38_a_result_starts_where_the_model_is() -> None:
    """What stays may count its calls: verification is none of them."""

    class Counting(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.part, self.calls = conv_norm(), 0
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen.add_(1)
            return self.part(x) * self.calls + self.seen

    model = trained(nn.Sequential(Counting(), nn.ReLU()))
    fused = compiled(model, IMAGE)
    with torch.no_grad():
        for _ in range(2):
            assert_alike(model(IMAGE), fused(IMAGE))
