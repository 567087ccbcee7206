"""Rows 33 and 34: sizes of every kind, and tensors that hold no numbers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.bad_inputs.outcomes import (
    compiled,
    conv_norm,
    norms,
    same,
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn


def head() -> nn.Module:
    """Branches, a skip, an average over the image and a classifier that asks for sizes."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.norm(m.wide(x) + m.narrow(x) + x))
        y = m.down(y)
        return m.fc(y.reshape(y.shape[0], y.size(1), y.size(2) * y.size(3)).sum(2) / 7)

    model = Net(
        forward,
        wide=nn.Conv2d(4, 4, 3, padding=1),
        narrow=nn.Conv2d(4, 4, 1),
        norm=nn.BatchNorm2d(4),
        down=nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6)),
        fc=nn.Linear(6, 3),
    )
    return trained(model, drawn(1, 4, 4, 8, 8))


SIZES = ((0, 4, 8, 8), (1, 4, 1, 1), (3, 4, 1, 9), (1, 4, 7, 5), (2, 4, 33, 64), (5, 4, 2, 2))


@pytest.mark.parametrize("example", [None, (2, 4, 8, 8), (1, 4, 1, 1)], ids=str)
def test_row_33_empty_tiny_odd_and_other_sizes(example: tuple[int, ...] | None) -> None:
    """Examples tell of dtypes and axes, and bind no size."""
    model = head()
    fused = compiled(model, None if example is None else drawn(2, *example))
    assert norms(fused) == []
    for size in SIZES:
        same(model, fused, drawn(3, *size))


def test_row_33_empty_example() -> None:
    model = head()
    fused = compiled(model, drawn(2, 0, 4, 8, 8))
    same(model, fused, drawn(3, 2, 4, 8, 8))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_row_33_average_pools(size: tuple[int, ...]) -> None:
    layers = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    model = trained(nn.Sequential(conv_norm(), *layers), drawn(1, 6, 4, 5, 5))
    same(model, compiled(model, drawn(2, 2, 4, 6, 6)), drawn(3, *size))


def test_row_33_image_without_a_batch() -> None:
    model = trained(nn.Sequential(conv_norm()[0], nn.ReLU(), nn.Conv2d(4, 4, 1)))
    same(model, compiled(model), drawn(1, 4, 5, 5))


def test_row_33_what_eager_refuses_is_refused() -> None:
    """The batch norm would have told that the channels are wrong; the convolution does, too."""
    model = trained(conv_norm())
    fused = compiled(model)
    for wrong in (drawn(1, 2, 3, 5, 5), drawn(1, 2, 4, 5)):
        for called in (model, fused):
            with pytest.raises((RuntimeError, ValueError)):
                called(wrong)


@pytest.mark.parametrize("verify", [True, False])
def test_row_34_meta(verify: bool) -> None:
    model = head().to("meta")
    fused = compiled(model, verify=verify)
    assert norms(fused) == []
    assert all(tensor.is_meta for tensor in (*fused.parameters(), *fused.buffers()))
    report = reparam.report(fused)
    assert (report.verification.mode, report.verification.checked) == ("unverified", 0)
    assert "unverified" in str(report)
    y = fused(torch.empty(2, 4, 6, 6, device="meta", dtype=torch.float64))
    assert (y.shape, y.dtype) == ((2, 3), torch.float64)


def test_row_34_as_with_numbers() -> None:
    """The structure does not depend on them."""
    assert compiled(head().to("meta")).code == compiled(head()).code


def test_row_34_half_of_the_model() -> None:
    """What has numbers is checked; the report does not claim that all was."""
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))
    model[2].to("meta")
    fused = compiled(model)
    assert norms(fused) == []
    assert reparam.report(fused).verification.mode == "unverified"
    stays_on = [p.device.type for p in fused.get_submodule("0").parameters()]
    assert set(stays_on) == {"cpu"}


def test_row_33_sequence_of_any_length() -> None:
    x = drawn(1, 3, 9, 4)
    model = trained(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), x)
    fused = compiled(model, x)
    for length in (0, 1, 2, 50):
        same(model, fused, drawn(2, 3, length, 4))
