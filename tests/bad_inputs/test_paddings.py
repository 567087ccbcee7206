"""Rows 24 to 26: paddings and kernels of every kind."""

from typing import Any

import pytest
from torch import nn

import reparam
from tests.bad_inputs.branches import SIZES, branches, merged, not_merged
from tests.bad_inputs.outcomes import (
    calls,
    compiled,
    fused_exactly,
    norms,
    same,
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn

MODES = ("reflect", "replicate", "circular")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ["behind", "before", "both"])
def test_row_24_padding_modes(mode: str, order: str) -> None:
    """A batch norm before one folds, too: what is padded with is shifted alike."""
    conv = nn.Conv2d(4, 4, (3, 4), padding=(1, 2), padding_mode=mode)
    layers = [conv, nn.BatchNorm2d(4)]
    layers = {"behind": layers, "before": layers[::-1], "both": [nn.BatchNorm2d(4), *layers]}[order]
    fused = fused_exactly(trained(nn.Sequential(*layers)))
    assert calls(fused) == 1
    (left,) = (module for module in fused.modules() if isinstance(module, nn.Conv2d))
    assert left.padding_mode == mode


@pytest.mark.parametrize("mode", MODES)
def test_row_24_branches_of_two_modes(mode: str) -> None:
    model = branches(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode), nn.Conv2d(4, 4, 3, padding=1)
    )
    not_merged(model, "the branches differ in padding mode")


@pytest.mark.parametrize("mode", MODES)
def test_row_24_branches_padded_differently(mode: str) -> None:
    model = branches(
        nn.Conv2d(4, 4, 5, padding=2, padding_mode=mode),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode),
    )
    not_merged(model, "the branches are padded differently")


@pytest.mark.parametrize("mode", MODES)
def test_row_24_two_in_series(mode: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode),
    )
    fused = compiled(trained(model))
    same(model, fused)
    assert calls(fused) == 2


PADDED = (
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": (2, 5), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": (4, 3), "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": (3, 2), "padding": "valid"},
    {"kernel_size": 2, "padding": 1, "stride": 2},
    {"kernel_size": (2, 6), "padding": (0, 3), "stride": (2, 1)},
    {"kernel_size": (4, 1), "padding": (2, 0), "dilation": (1, 3)},
)


@pytest.mark.parametrize("options", PADDED, ids=str)
def test_row_25_same_valid_even_asymmetric(options: dict[str, Any]) -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, **options), nn.BatchNorm2d(6), nn.ReLU()))
    even = options["padding"] == "same" and options["kernel_size"] != 3
    assert calls(fused_exactly(model)) == 2 + even


def test_row_25_even_beside_odd() -> None:
    """The even kernel has one more row of padding behind than in front."""
    model = branches(
        nn.Conv2d(4, 4, 4, padding="same"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, (1, 2), padding="same"),
        nn.Identity(),
    )
    merged(model, *SIZES, pads=1)


def test_row_25_padded_by_a_call() -> None:
    model = Net(
        lambda m, x: m.norm(m.conv(nn.functional.pad(x, (0, 2, 1, 0)))),
        conv=nn.Conv2d(4, 4, (2, 3)),
        norm=nn.BatchNorm2d(4),
    )
    assert calls(fused_exactly(trained(model))) <= 2


def test_row_25_same_in_a_norm_before() -> None:
    model = trained(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 4, padding="same")))
    fused = compiled(model)
    same(model, fused)
    assert norms(fused) == [] or reparam.report(fused).missed


def test_row_26_rows_and_columns() -> None:
    model = branches(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
        nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        nn.Conv2d(4, 4, 1),
    )
    merged(model, *SIZES)


def test_row_26_longer_than_the_square() -> None:
    model = branches(
        nn.Conv2d(4, 4, (1, 5), padding=(0, 2)), nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
    )
    merged(model, *SIZES)


@pytest.mark.parametrize("n", [1, 3])
def test_row_26_one_axis_and_three(n: int) -> None:
    conv: Any = {1: nn.Conv1d, 3: nn.Conv3d}[n]
    norm: Any = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[n]
    model = Net(
        lambda m, x: m.norm(m.wide(x) + m.narrow(x) + x).relu(),
        wide=conv(4, 4, 3, padding=1),
        narrow=conv(4, 4, 1),
        norm=norm(4),
    )
    x = drawn(1, 2, 4, *(5, 4, 3)[:n])
    fused = fused_exactly(trained(model, x), x, example_inputs=x)
    assert calls(fused) == 2
