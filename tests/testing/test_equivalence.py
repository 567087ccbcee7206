"""Assertions about models."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import reparam
from reparam.testing import CheckFailed, assert_compiles, assert_equivalent
from reparam.testing.equivalence import difference
from tests.testing import wrong_passes as wrong

X = torch.randn(2, 3, 6, 5)


@dataclass
class Result:
    """A result that pytree knows nothing of."""

    y: torch.Tensor


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


def test_a_compiled_model_is_equivalent() -> None:
    model = net()
    assert_equivalent(model, reparam.compile(model), X, (X[:1],), {"input": X[:, :, :4]})


def test_another_model_is_not() -> None:
    model = net()
    other = copy.deepcopy(model)
    other[1].eps = 0.1
    with pytest.raises(CheckFailed, match=r"on \(2, 3, 6, 5\): .* DIFFERENT"):
        assert_equivalent(model, other, X)
    with pytest.raises(AssertionError, match="does not run"):
        assert_equivalent(model, other, X[:, :2])


def test_a_model_compiles() -> None:
    fused = assert_compiles(net(), X, X[:1], at_least=1)
    assert [type(layer) for layer in fused.children()] == [nn.Conv2d]
    with pytest.raises(CheckFailed, match="0 rewrites were made, not 1"):
        assert_compiles(net(), X, passes=(), at_least=1)


def test_a_pass_that_reaches_for_the_model_is_found() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()

    def reach(graph_module: torch.fx.GraphModule) -> torch.fx.GraphModule:
        model[1].inplace = True
        return graph_module

    with pytest.raises(CheckFailed, match="changes the model that it is given"):
        assert_compiles(model, X, passes=(reach,))


def test_a_result_in_memory_of_an_input_is_found() -> None:
    with pytest.raises(CheckFailed, match="output 0 of the result lies in memory of input 0"):
        assert_compiles(wrong.Cloning().eval(), X, passes=(wrong.drop_clones,))


def test_what_a_norm_makes_of_roundings_is_no_difference() -> None:
    """Of two numbers that are nearly the same, a norm tells which is larger."""
    model = nn.Sequential(nn.Linear(6, 2), nn.LayerNorm(2, elementwise_affine=False)).bfloat16()
    layer = model[0]
    with torch.no_grad():
        layer.weight[1], layer.bias[1] = layer.weight[0], layer.bias[0]
        layer.weight[1, 0] *= 1 + torch.finfo(torch.bfloat16).eps
    rounded, other = copy.deepcopy(model), copy.deepcopy(model)
    inputs = (torch.randn(8, 6, dtype=torch.bfloat16),)
    with torch.no_grad():
        rounded[0].weight[1, 0] *= 1 - torch.finfo(torch.bfloat16).eps
        other[0].weight[1] *= -1
    assert difference(model, rounded, inputs) is None
    exact = [m.double() for m in (model, other)]
    assert difference(*exact, (inputs[0].double(),)) is not None


def test_integers_are_held_against_a_model() -> None:
    class Largest(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x, x.argmax(1)

    class Smallest(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x, x.argmin(1)

    assert_equivalent(Largest(), Largest(), X)
    with pytest.raises(CheckFailed, match=r"100% of the integers in a result differ"):
        assert_equivalent(Largest(), Smallest(), X)
    assert "100% of the integers" in str(difference(Largest(), Smallest(), (X,)))


def test_results_of_integers_or_in_dataclasses_are_compared() -> None:
    """Nothing of integers alone is bad luck; roundings are measured on what a dataclass holds."""

    class Largest(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(1)

    class Smallest(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmin(1)

    assert "DIFFERENT" in str(difference(Largest(), Smallest(), (X,)))

    class Held(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> Result:
            return Result(x * self.factor)

    assert difference(Held(1.1), Held(1.1 + 1e-7), (X,)) is None
    assert difference(Held(1.1), Held(1.101), (X,)) is not None
