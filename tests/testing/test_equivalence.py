"""Assertions about models."""

import copy

import pytest
import torch
from torch import nn

import reparam
from reparam.testing import CheckFailed, assert_compiles, assert_equivalent

X = torch.randn(2, 3, 6, 5)


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


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_a_pass_that_reaches_for_the_model_is_found() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Counting()).eval()

    def reach(graph_module: torch.fx.GraphModule) -> torch.fx.GraphModule:
        with torch.no_grad():
            model[0].weight.zero_()
        return graph_module

    with pytest.raises(CheckFailed):
        assert_compiles(model, X, passes=(reach,))
