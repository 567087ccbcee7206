"""What of a compiled model lies in memory that it must not."""

import torch
from torch import Tensor, nn

from reparam.testing.sameness import shared_memory

X = torch.randn(2, 3)


class Own(nn.Module):
    """Two results, each a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.weight, x + self.weight


class OfInput(Own):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.weight, x[:1]


class OfWeight(Own):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight.T, x + self.weight


class OfOutput(Own):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + self.weight
        return y, y.view(3, 2)


def test_results_of_their_own() -> None:
    assert shared_memory(Own(), Own(), X) is None


def test_a_result_in_memory_of_an_input_a_weight_or_another_result() -> None:
    place = "of the result lies in memory of"
    assert shared_memory(Own(), OfInput(), X) == f"output 1 {place} input 0"
    assert shared_memory(Own(), OfWeight(), X) == f"output 0 {place} a weight"
    assert shared_memory(Own(), OfOutput(), X) == f"output 1 {place} output 0"


def test_where_the_model_shares_memory_itself() -> None:
    for kind in (OfInput, OfWeight, OfOutput):
        assert shared_memory(kind(), kind(), X) is None
        assert shared_memory(kind(), Own(), X) is None
    assert shared_memory(nn.Identity(), nn.Identity(), X) is None
    assert shared_memory(OfInput(), OfWeight(), X) is not None


def test_a_weight_in_memory_of_the_model() -> None:
    model, fused = Own(), Own()
    fused.weight = nn.Parameter(model.weight.detach()[:, :])
    assert shared_memory(model, fused, X) == "weight of the result lies in memory of the model"


def test_inputs_that_the_model_refuses_are_no_evidence() -> None:
    assert shared_memory(Own(), OfInput(), torch.randn(5)) is None
