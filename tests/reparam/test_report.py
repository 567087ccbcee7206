"""The account of a compile: it is complete, it can be read, and it travels with the model."""

import io
import json
import pickle

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.report import count
from tests.randomised import randomised
from tests.strategies import drawn


class Block(nn.Module):
    """A norm to fold, and one that an activation keeps from it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.kept = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.kept(self.norm(self.conv(x)).relu()).relu()


@pytest.fixture
def fused() -> nn.Module:
    x = drawn(0, 2, 3, 9, 9).float()
    return reparam.compile(randomised(Block(), x), x)


def test_operators_and_parameters(fused: nn.Module) -> None:
    report = reparam.report(fused)
    assert report.before.operators == {"BatchNorm2d": 2, "Conv2d": 1, "relu": 2}
    assert report.after.operators == {"BatchNorm2d": 1, "Conv2d": 1, "relu": 2}
    assert (report.before.total, report.after.total) == (5, 4)
    assert report.before.parameters == 4 * 3 * 9 + 4 * 4
    assert report.after.parameters == 4 * 3 * 9 + 4 + 2 * 4


def test_remarks(fused: nn.Module) -> None:
    report = reparam.report(fused)
    (applied,) = report.applied
    assert str(applied) == "fold_batchnorm: conv: norm into conv"
    assert applied.error is not None
    assert report.verification.checked == 1
    assert report.verification.largest_error == applied.error
    missed = {str(remark) for remark in report.missed if remark.call == "kept"}
    assert (
        "fold_batchnorm: kept: its input is relu, which no pass can fold it into (relu)" in missed
    )


def test_text_has_the_tables_and_the_verdict(fused: nn.Module) -> None:
    text = str(reparam.report(fused))
    for part in (
        "Operators",
        "Fused",
        "norm into conv",
        "Declined",
        "rewrites checked: 1, largest relative error",
        "whole model: equivalent",
        "kept",
    ):
        assert part in text


def test_json_has_all_of_it(fused: nn.Module) -> None:
    report = reparam.report(fused)
    data = json.loads(report.to_json())
    assert data["after"] == {"operators": dict(report.after.operators), "parameters": 120}
    assert [remark["message"] for remark in data["missed"]] == [r.message for r in report.missed]
    assert data["verification"]["mode"] == "float64"


def test_it_travels_with_the_model(fused: nn.Module) -> None:
    expected = reparam.report(fused)
    assert reparam.report(pickle.loads(pickle.dumps(fused))) == expected
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    assert reparam.report(torch.load(file, weights_only=False)) == expected


def test_unchecked_is_called_so() -> None:
    fused = reparam.compile(Block().eval(), verify=False)
    report = reparam.report(fused)
    assert report.verification.mode == "unverified"
    assert report.verification.checked == 0
    assert "unverified" in str(report)


def test_a_model_without_a_report_is_an_error() -> None:
    with pytest.raises(reparam.ReparamError, match="this Block has no report"):
        reparam.report(Block())


def test_functions_and_methods_count_under_their_names() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).flatten(1) + x.flatten(1)

    model = Net()
    graph = torch.fx.symbolic_trace(model).graph
    assert count(model, graph, model.get_submodule).operators == {"add": 1, "flatten": 2, "relu": 1}
