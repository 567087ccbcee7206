"""Rows 7, 12, 13, 15 and 16 beside PyTorch's own fuser, which gets them wrong and says nothing.

`torch.fx.experimental.optimization.fuse` folds by the names of modules: whoever else calls the
convolution, reads its weight or watches it is not asked.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from reparam.verify import EXACT, relative_difference
from tests.bad_inputs.outcomes import compiled, norms
from tests.bad_inputs.programs import PROGRAMS, outputs


def by_pytorch(model: nn.Module) -> nn.Module:
    """What PyTorch's fuser makes of it, without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fuse(model)


def worst(model: nn.Module, fused: nn.Module) -> float:
    pairs = zip(outputs(model), outputs(fused), strict=True)
    return max(relative_difference(old, new) for old, new in pairs)


@pytest.mark.parametrize("row", ["row 12", "row 13", "row 15", "row 16"])
def test_ours_is_right_where_theirs_is_wrong(row: str) -> None:
    model = PROGRAMS[row]()
    assert worst(model, by_pytorch(model)) > 0.1
    assert worst(model, compiled(model)) <= EXACT


def test_row_07_theirs_has_weights_that_are_none() -> None:
    """All of the convolution's channel is NaN: its weights, which no later step can repair."""
    model = PROGRAMS["row 7"]()
    theirs, ours = by_pytorch(model), compiled(model)
    assert any(parameter.isnan().any() for parameter in theirs.parameters())
    assert not any(parameter.isnan().any() for parameter in ours.parameters())
    assert norms(ours) == ["norm"]
    ((expected,), (found,)) = outputs(model), outputs(ours)
    assert torch.equal(expected.isnan(), found.isnan())
    assert relative_difference(expected[:, 1:], found[:, 1:]) <= EXACT
