"""timm's own FastViT, untouched: other code for the same network, so the same result."""

import functools

import pytest
import torch
from torch import fx, nn

import reparam
from tests.fused import operators, same_state
from tests.randomised import randomised

timm = pytest.importorskip("timm")
fastvit = pytest.importorskip("timm.models.fastvit")
pytestmark = pytest.mark.usefixtures("without_annotation_checks")

NAMES = ("fastvit_t8", "fastvit_sa12")


def trained(name: str) -> nn.Module:
    """timm's model in training form, as if it had been trained."""
    return randomised(timm.create_model(name), torch.randn(2, 3, 128, 128))


@functools.cache
def compiled(name: str) -> tuple[nn.Module, fx.GraphModule]:
    """The model and its compiled form, for tests that change neither."""
    torch.manual_seed(0)
    model = trained(name)
    return model, reparam.compile(model)


@pytest.mark.parametrize(
    ("name", "convolutions", "linears", "calls"),
    [("fastvit_t8", 52, 1, 86), ("fastvit_sa12", 59, 5, 139)],
)
def test_counts(name: str, convolutions: int, linears: int, calls: int) -> None:
    _, fused = compiled(name)
    found = operators(fused)
    assert found["Conv2d"] == convolutions
    assert found["Linear"] == linears
    assert found.total() <= calls
    assert not [operator for operator in found if "BatchNorm" in operator]
    assert not [node for node in fused.graph.nodes if node.op == "get_attr"]  # layer scales


@pytest.mark.parametrize("size", [(256, 256), (161, 97)], ids=["even", "odd"])
@pytest.mark.parametrize("name", NAMES)
def test_same_function(name: str, size: tuple[int, int]) -> None:
    model, fused = compiled(name)
    reparam.verify(model, fused, torch.randn(1, 3, *size)).raise_if_different()


@pytest.mark.parametrize("name", NAMES)
def test_no_more_operators_than_by_hand(name: str) -> None:
    """timm's own `reparameterize_model` is the least to beat."""
    model, fused = compiled(name)
    by_hand = timm.utils.model.reparameterize_model(model)
    traced = fx.symbolic_trace(by_hand)
    assert operators(fused).total() < operators(traced).total()
    kept = sum(count for name, count in operators(traced).items() if "norm" in name.lower())
    assert kept > 0


@pytest.mark.parametrize("name", NAMES)
def test_model_is_untouched_and_second_compile_changes_nothing(name: str) -> None:
    model = trained(name)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fused = reparam.compile(model)
    assert same_state(model.state_dict(), state)
    again = reparam.compile(fused)
    assert reparam.report(again).applied == ()
    assert again.code == fused.code
