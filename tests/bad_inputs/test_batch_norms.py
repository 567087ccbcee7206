"""Rows 1 to 11: batch norms in every state that they come in."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.bad_inputs.outcomes import (
    IMAGE,
    compiled,
    conv_norm,
    fused_exactly,
    identical,
    norms,
    refused,
    same,
    stays,
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn


@pytest.mark.parametrize(
    ("inner", "named"),
    [
        (conv_norm(), ("'stem.1'", "BatchNorm2d")),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout()), ("'stem.1'", "Dropout")),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), ("Sequential",)),
    ],
    ids=["batch norm", "dropout", "neither"],
)
@pytest.mark.parametrize("given", [None, IMAGE], ids=["without inputs", "with inputs"])
def test_row_01_train_mode(inner: nn.Module, named: tuple[str, ...], given: Any) -> None:
    model = nn.Sequential()
    model.add_module("stem", inner)
    model.add_module("late", nn.BatchNorm2d(4))
    model.double().train()
    if inner[1].__class__ is nn.ReLU:
        model[1].eval()
    words = (*named, "training mode", "call model.eval() first")
    refused(model, reparam.TrainingModeError, *words, example_inputs=given)
    assert model.training


def test_row_02_one_norm_in_train_mode() -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))
    model[0][1].train()
    fused = stays(model, "it is in training mode", call="0.1")
    assert norms(fused) == ["0.1"]
    assert fused.get_submodule("0.1").training


def test_row_02_its_statistics_go_on_moving() -> None:
    model = trained(conv_norm())
    model[1].train()
    fused = compiled(model)
    before = model[1].running_mean.clone()
    fused(IMAGE)
    assert not torch.equal(fused.get_buffer("1.running_mean"), before)
    model(IMAGE)
    assert torch.equal(fused.get_buffer("1.running_mean"), model[1].running_mean)


def test_row_02_by_a_function() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        n = m.norm
        return F.batch_norm(m.conv(x), n.running_mean, n.running_var, n.weight, n.bias, True)

    model = trained(Net(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)))
    fused = stays(model, "")
    assert len(norms(fused)) >= 1


@pytest.mark.parametrize("affine", [True, False])
def test_row_03_no_running_statistics(affine: bool) -> None:
    model = trained(
        nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=affine, track_running_stats=False)
        )
    )
    assert norms(stays(model, "it has no running statistics", call="1")) == ["1"]


@pytest.mark.parametrize("order", [0, 1], ids=["behind", "before"])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, momentum=None, affine=False),
    ],
    ids=["row 4", "row 5", "both"],
)
def test_row_04_05_no_momentum_no_affine(norm: nn.Module, order: int) -> None:
    conv = nn.Conv2d(4, 4, 3)
    model = nn.Sequential(norm, conv) if order else nn.Sequential(conv, norm)
    fused_exactly(trained(model))


@pytest.mark.parametrize("channels", [slice(None), slice(1)], ids=["all", "one"])
def test_row_06_variance_of_zero(channels: slice) -> None:
    model = trained(conv_norm())
    model[1].running_var[channels] = 0.0
    fused_exactly(model)


@pytest.mark.parametrize("number", [-1.0, float("nan")])
def test_row_07_variance_that_is_none(number: float) -> None:
    model = trained(conv_norm())
    model[1].running_var[0] = number
    fused = stays(model, "a weight or a statistic is not finite", call="1")
    assert norms(fused) == ["1"]
    assert not any(parameter.isnan().any() for parameter in fused.parameters())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean"])
def test_row_07_weight_that_is_none(where: str, number: float) -> None:
    model = trained(conv_norm())
    model.state_dict()[where].flatten()[0] = number
    assert norms(stays(model, "a weight or a statistic is not finite")) == ["1"]


def test_row_07_negative_weights_are_numbers() -> None:
    model = trained(conv_norm())
    model[1].weight.data.abs_().neg_()
    fused_exactly(model)


@pytest.mark.parametrize("channels", [slice(None), slice(1)], ids=["all", "one"])
def test_row_08_weight_of_zero(channels: slice) -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU()))
    model[0][1].weight.data[channels] = 0.0
    fused = fused_exactly(model)
    constant = fused(IMAGE)[:, channels]
    assert identical(constant, constant[..., :1, :1].expand_as(constant))


@pytest.mark.parametrize("channels", [slice(None), slice(1)], ids=["all", "one"])
def test_row_08_weight_of_zero_before_padding(channels: slice) -> None:
    model = trained(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)))
    model[0].weight.data[channels] = 0.0
    fused = compiled(model)
    same(model, fused)
    assert norms(fused) == [] or reparam.report(fused).missed


def test_row_09_overflow_in_float16() -> None:
    model = trained(conv_norm())
    model[0].weight.data.fill_(300.0)
    model[1].weight.data.fill_(300.0)
    model[1].running_var.fill_(0.1)
    model.half()
    fused = stays(model, "a folded weight overflows float16", IMAGE.half(), call="1")
    assert norms(fused) == ["1"]


class Doubling(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as the base class has it
        return super().forward(input) * 2


class Activating(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: nothing of the base class's forward is called."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        y = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return F.relu(y)


class Named(nn.BatchNorm2d):
    """It does nothing else."""


@pytest.mark.parametrize("kind", [Doubling, Activating])
def test_row_10_subclass_with_its_own_forward(kind: type[nn.BatchNorm2d]) -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), kind(4)))
    fused = compiled(model)
    same(model, fused)
    missed = [r for r in reparam.report(fused).missed if r.call.startswith("1")]
    assert norms(fused) == [] or missed


def test_row_10_forward_of_one_object() -> None:
    model = trained(conv_norm())
    model[1].forward = lambda x: x * 2
    fused = compiled(model)
    same(model, fused)


def test_row_10_subclass_without() -> None:
    fused_exactly(trained(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), Named(4))))


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (nn.Linear(5, 6), nn.BatchNorm1d(6), drawn(1, 8, 5)),
        (nn.Conv1d(5, 6, 3), nn.BatchNorm1d(6), drawn(1, 8, 5, 7)),
        (nn.BatchNorm1d(5), nn.Linear(5, 6), drawn(1, 8, 5)),
        (nn.BatchNorm1d(5), nn.Conv1d(5, 6, 3), drawn(1, 8, 5, 7)),
    ],
    ids=["linear", "conv", "before linear", "before conv"],
)
def test_row_11_one_axis_or_none(layer: Any, norm: Any, x: Tensor) -> None:
    model = trained(nn.Sequential(layer, norm), x)
    fused_exactly(model, x, example_inputs=x)
    # Without, (C, L) can't be told from (N, C): it says what to do.
    stays(model, "whether its input has spatial axes is not known; pass example_inputs", x)


def test_row_11_without_a_batch() -> None:
    """Torch's batch norm reads the signals as features there; the size is just that of them."""
    model = trained(nn.Sequential(nn.Conv1d(5, 6, 3), nn.BatchNorm1d(6)), drawn(1, 8, 5, 8))
    same(model, compiled(model), drawn(2, 5, 8))
    x = drawn(2, 5, 8)
    same(model, compiled(model, x), x)


@pytest.mark.parametrize("given", [False, True])
def test_row_11_channels_that_are_not_the_features(given: bool) -> None:
    """As many tokens as features: only the axis tells the two apart."""
    x = drawn(1, 8, 6, 5)
    model = trained(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), x)
    fused = compiled(model, x if given else None)
    same(model, fused, x)
    if given:
        assert norms(fused) == ["1"]
        assert reparam.report(fused).missed


def test_row_11_features_brought_to_the_channel_axis() -> None:
    x = drawn(1, 8, 6, 5)
    model = Net(
        lambda m, x: m.norm(m.linear(x).transpose(1, 2)),
        linear=nn.Linear(5, 4),
        norm=nn.BatchNorm1d(4),
    )
    fused_exactly(trained(model, x), x, example_inputs=x)
