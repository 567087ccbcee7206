"""Row 17: weights that are computed from others."""

import warnings
from collections.abc import Callable

import pytest
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import reparam
from tests.bad_inputs.outcomes import (
    compiled,
    conv_norm,
    fused_exactly,
    norms,
    same,
    trained,
)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def old_weight_norm(conv: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is old, and met in models
        return nn.utils.weight_norm(conv)


def halved(conv: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(conv, "weight", Halved())


def normed_and_halved(conv: nn.Module) -> nn.Module:
    return halved(parametrizations.weight_norm(conv))


def bias_too(conv: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(halved(conv), "bias", Halved())


PARAMETRIZED = (
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    old_weight_norm,
    nn.utils.spectral_norm,
    halved,
    normed_and_halved,
    bias_too,
)


@pytest.mark.parametrize("register", PARAMETRIZED, ids=lambda one: one.__name__)
def test_row_17_parametrizations(register: Callable[[nn.Module], nn.Module]) -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))
    register(model[0][0])
    fused = fused_exactly(model.eval())
    assert type(fused.get_submodule("0.0")) is nn.Conv2d
    assert not any("parametrizations" in name or "_orig" in name for name in fused.state_dict())
    assert sum(parameter.numel() for parameter in fused.parameters()) == 2 * (4 * 4 * 9 + 4)


def test_row_17_of_a_linear_layer_and_of_a_transposed_one() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 9 * 8, 5)
    )
    trained(model)
    parametrizations.weight_norm(model[0])
    parametrizations.weight_norm(model[3])
    fused = fused_exactly(model)
    assert type(fused.get_submodule("3")) is nn.Linear


def test_row_17_of_a_batch_norm() -> None:
    model = trained(conv_norm())
    halved(model[1])
    fused_exactly(model)


def test_row_17_pruned() -> None:
    model = trained(conv_norm())
    prune.random_unstructured(model[0], "weight", amount=0.5)
    fused = compiled(model)
    same(model, fused)
    assert norms(fused) == [] or "hooks" in str(reparam.report(fused).missed)


def test_row_17_the_class_of_the_original_is_left_alone() -> None:
    model = trained(conv_norm())
    parametrizations.weight_norm(model[0])
    kind = type(model[0])
    compiled(model)
    assert type(model[0]) is kind
    assert parametrize.is_parametrized(model[0], "weight")
