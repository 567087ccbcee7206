"""Wrappers are taken off, and weights that torch computes in every call become plain ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

from reparam.wrappers import duplicate, materialised, unwrapped
from tests.bad_inputs.outcomes import Untouched
from tests.fused import storages
from tests.strategies import drawn

X = drawn(0, 2, 3)


class WeightsHalved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)).double().eval()


def test_wrappers_are_taken_off() -> None:
    model = layers()
    assert unwrapped(model) is model
    assert unwrapped(DataParallel(DataParallel(model))) is model
    averaged = AveragedModel(model)
    assert unwrapped(averaged) is averaged.module


def test_a_users_class_of_such_a_name_is_no_wrapper() -> None:
    kind = type("DataParallel", (nn.Module,), {"__module__": __name__})
    model = kind()
    model.module = layers()
    assert unwrapped(model) is model


def test_a_wrapper_with_hooks_stays() -> None:
    wrapper = DataParallel(layers())
    wrapper.register_forward_hook(lambda _, __, output: output * 2)
    assert unwrapped(wrapper) is wrapper


def weight_norm(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)


def orthogonal(layer: nn.Module) -> None:
    parametrizations.orthogonal(layer)


def two_in_a_row(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", WeightsHalved())
    parametrize.register_parametrization(layer, "weight", WeightsHalved())
    parametrize.register_parametrization(layer, "bias", WeightsHalved())


def old_weight_norm(layer: nn.Module) -> None:
    nn.utils.weight_norm(layer)


def old_spectral_norm(layer: nn.Module) -> None:
    nn.utils.spectral_norm(layer)


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.5)


def pruned_twice(layer: nn.Module) -> None:
    pruned(layer)
    prune.random_unstructured(layer, "weight", amount=0.5)
    prune.l1_unstructured(layer, "bias", amount=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change",
    [
        weight_norm,
        orthogonal,
        two_in_a_row,
        old_weight_norm,
        old_spectral_norm,
        pruned,
        pruned_twice,
    ],
)
def test_weights_become_plain(change: Callable[[nn.Module], None]) -> None:
    model = layers()
    change(model[0])
    model.eval()
    with torch.no_grad():
        expected = model(X)
    before = Untouched(model)
    plain = materialised(model)
    before.check()
    with torch.no_grad():
        assert torch.equal(plain(X), expected)
    assert type(plain[0]) is nn.Linear
    assert {name for name, _ in plain[0].named_parameters()} == {"weight", "bias"}
    assert not plain[0]._forward_pre_hooks
    assert storages(model).isdisjoint(storages(plain))


def test_what_was_frozen_stays_frozen() -> None:
    model = layers()
    parametrizations.weight_norm(model[0])
    parametrizations.weight_norm(model[1])
    model[0].requires_grad_(False)
    plain = materialised(model)
    assert [p.requires_grad for p in plain[0].parameters()] == [False, False]
    assert [p.requires_grad for p in plain[1].parameters()] == [True, True]


def test_without_any_the_model_itself_is_returned() -> None:
    model = layers()
    model[0].register_forward_pre_hook(lambda _, __: None)
    assert materialised(model) is model
    assert model[0]._forward_pre_hooks, "a hook of a user's"


def test_a_duplicate_shares_nothing() -> None:
    model = layers()
    copied = duplicate(model)
    assert storages(model).isdisjoint(storages(copied))
    assert torch.equal(copied[0].weight, model[0].weight)
    assert duplicate([1, {"a": 2}]) == [1, {"a": 2}]


def test_a_duplicate_of_a_model_that_keeps_what_it_computed() -> None:
    model = layers()
    model.last = model(X)
    copied = duplicate(model)
    assert torch.equal(copied.last, model.last)
    assert copied.last.is_leaf


def test_a_duplicate_with_other_parts() -> None:
    model = layers()
    model.again = model[1]
    parts = {id(model[1]): nn.Identity()}
    other = parts[id(model[1])]
    copied = duplicate(model, parts)
    assert copied[1] is copied.again is other
    assert type(model[1]) is nn.Linear


def test_parts_that_go_by_the_name_of_parametrizations_are_none() -> None:
    model = layers()
    model.parametrizations = nn.ModuleList([nn.Linear(3, 3)])
    assert materialised(model) is model
