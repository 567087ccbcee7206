"""Rows 20 to 23: tensors that are written to, buffers, and chance."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.verify import EXACT, relative_difference
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
from tests.passes.alone import Net
from tests.strategies import drawn


def relu_in_place(m: Any, x: Tensor) -> Any:
    return m.norm(F.relu(m.conv(x), inplace=True))


def relu_of_what_is_read_again(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    F.relu_(y)
    return m.norm(y)


def view_written(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    y.view(y.shape[0], -1)[:, 0] = 1.0
    return m.norm(y)


def slice_scaled(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    y[:, 1:3].mul_(3)
    return m.norm(y)


def chunk_written(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    a, b = y.chunk(2, 1)
    a.add_(b)
    return m.norm(y)


def written_after_the_norm(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    z = m.norm(y)
    y.mul_(2)
    return z + y


def written_through_the_input(m: Any, x: Tensor) -> Any:
    y = m.norm(m.conv(x))
    x.add_(1)
    return y, m.conv(x)


def copied_into(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    y.copy_(m.norm(y))
    return y.sigmoid()


def swapped_data(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    z = y.permute(0, 2, 3, 1)
    z += 1
    return m.norm(y)


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize(
    "forward",
    [
        relu_in_place,
        relu_of_what_is_read_again,
        view_written,
        slice_scaled,
        chunk_written,
        written_after_the_norm,
        written_through_the_input,
        copied_into,
        swapped_data,
    ],
    ids=lambda forward: forward.__name__,
)
def test_row_20_in_place_and_views(forward: Callable[[Any, Tensor], Any], verify: bool) -> None:
    model = trained(Net(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)))
    fused = compiled(model, verify=verify)
    same(model, fused)
    assert norms(fused) == [] or "norm" in {r.call for r in reparam.report(fused).missed}
    x = IMAGE.clone()
    with torch.no_grad():
        fused(x)
        model(theirs := IMAGE.clone())
    assert torch.equal(x, theirs)


def test_row_20_activation_modules() -> None:
    model = nn.Sequential(conv_norm(), nn.ReLU(inplace=True), conv_norm(), nn.Hardswish(True))
    fused_exactly(trained(model))


class Counting(nn.Module):
    """Scales by how often it was called, which it writes to a buffer."""

    def __init__(self, write: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm()
        self.write = write
        self.register_buffer("count", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        return self.norm(self.conv(x)) * self.get_buffer("count")


def drifts(m: Any) -> None:
    m.norm.running_mean.add_(0.5)


def decays(m: Any) -> None:
    m.norm.running_var.data.mul_(0.5)


def shrinks(m: Any) -> None:
    m.conv.weight.data.mul_(0.5)


def counts(m: Any) -> None:
    m.count.add_(1)


def assigns(m: Any) -> None:
    m.count = m.count + 1


@pytest.mark.parametrize(
    ("write", "stays_whole"),
    [(drifts, True), (decays, True), (shrinks, True), (counts, False), (assigns, True)],
    ids=["mean", "variance", "weight", "another", "assigned"],
)
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
def test_row_21_buffer_written_in_the_forward(
    write: Callable[[Any], Any], stays_whole: bool, verify: bool
) -> None:
    model = trained(nn.Sequential(Counting(write), nn.ReLU(), conv_norm()))
    fused = compiled(model, verify=verify)
    theirs = reparam.compile(model, passes=())  # a model of its own, to be called as often
    for _ in range(3):
        with torch.no_grad():
            old, new = theirs(IMAGE), fused(IMAGE)
        assert relative_difference(old, new) <= EXACT
    same(model, compiled(model))
    assert [name for name in norms(fused) if name.startswith("2")] == []
    if stays_whole:
        assert "0.norm" in norms(fused)
        assert [r for r in reparam.report(fused).missed if r.call.startswith("0")]


def test_row_22_buffers_that_are_not_saved() -> None:
    model = Net(
        lambda m, x: m.norm(m.conv(x)) * m.table + m.other,
        conv=nn.Conv2d(4, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
    )
    model.register_buffer("table", drawn(1, 7, 6), persistent=False)
    model.register_buffer("other", drawn(2, 7, 6))
    fused = fused_exactly(trained(model))
    assert torch.equal(fused.get_buffer("table"), model.get_buffer("table"))
    assert "table" not in fused.state_dict()
    assert "other" in fused.state_dict()


def test_row_22_inside_a_module_that_stays_whole() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", drawn(1, 7, 6), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.get_buffer("table") if bool(x.isfinite().all()) else x

    model = trained(nn.Sequential(conv_norm(), Table()))
    fused = fused_exactly(model)
    assert [name for name, _ in fused.named_buffers()] == ["1.table"]
    assert "1.table" not in fused.state_dict()


def test_row_23_dropout_that_is_always_on() -> None:
    model = Net(
        lambda m, x: F.dropout(m.norm(m.conv(x)), 0.5, training=True),
        conv=nn.Conv2d(4, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    fused = compiled(trained(model))
    same(model, fused)
    assert reparam.report(fused).after.operators["dropout"] == 1
    assert norms(fused) == []
    assert not torch.equal(fused(IMAGE), fused(IMAGE))


@pytest.mark.parametrize("function", [F.dropout, F.dropout2d, F.alpha_dropout])
@pytest.mark.parametrize("way", ["default", "position", "keyword", "attribute"])
def test_row_23_by_any_way(function: Callable[..., Tensor], way: str) -> None:
    """`F.dropout`'s own default is training=True; `m.training` is not."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        if way == "default":
            return function(y, 0.5, True) if function is F.alpha_dropout else function(y)
        if way == "position":
            return function(y, 0.5, True)
        return function(y, p=0.5, training=True if way == "keyword" else m.training)

    model = trained(Net(forward, conv=nn.Conv2d(4, 4, 1)))
    fused = compiled(model)
    same(model, fused)
    assert calls(fused) == 2 or way == "attribute"


def test_row_23_module_in_train_mode() -> None:
    model = trained(nn.Sequential(conv_norm(), nn.Dropout(0.5)))
    model[1].train()
    fused = stays(model, "it is in training mode", call="1")
    assert norms(fused) == []
