import torch
from torch import nn

import reparam
from passes import fold_constants
from tests.fused import operators
from tests.passes.alone import Net, fires, reasons

IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_table() -> None:
    """A position bias computed from parameters."""
    model = Net(lambda m, x: x + torch.sigmoid(m.table), table=torch.randn(3, 4, 4))
    assert operators(fires(fold_constants, model, IMAGES)) == {"add": 1}


def test_in_steps() -> None:
    model = Net(
        lambda m, x: x * torch.tanh(torch.exp(m.table).transpose(1, 2)), table=torch.randn(3, 4, 4)
    )
    fused = fires(fold_constants, model, IMAGES, times=3)
    assert operators(fused) == {"mul": 1}


def test_computed_in_float64_and_rounded_once() -> None:
    table = torch.randn(3, 4, 4) * 3
    model = Net(lambda m, x: x + torch.exp(m.table), table=table).eval()
    fused = reparam.compile(model, passes=(fold_constants,))
    once = torch.exp(table.double()).float()
    assert torch.equal(fused(torch.zeros(1, 3, 4, 4))[0], once)


def test_result_on_another_device() -> None:
    model = Net(lambda m, x: torch.maximum(x, m.row.to("meta")), row=torch.randn(4))
    (missed,) = reparam.report(reparam.compile(model.eval(), passes=(fold_constants,))).missed
    assert missed.message == "it moves to another device"


def test_result_that_is_larger() -> None:
    model = Net(
        lambda m, x: x + torch.matmul(m.row, m.column),
        row=torch.randn(3, 400, 1),
        column=torch.randn(3, 1, 400),
    )
    assert reasons(fold_constants, model, torch.randn(2, 3, 400, 400)) == [
        "the result is larger than what it is computed from"
    ]


def test_random_numbers_are_no_constants() -> None:
    model = Net(
        lambda m, x: x + torch.bernoulli(torch.sigmoid(m.table)), table=torch.zeros(3, 4, 4)
    )
    fused = reparam.compile(model.eval(), passes=(fold_constants,))
    assert operators(fused)["bernoulli"] == 1


def test_what_depends_on_the_input_stays() -> None:
    model = Net(lambda m, x: torch.sigmoid(m.conv(x)), conv=nn.Conv2d(3, 4, 3))
    fires(fold_constants, model, IMAGES, times=0)


def test_an_integer_stays_one() -> None:
    """Times a size of a parameter, which is a constant too; what it multiplies is not known."""
    model = Net(
        lambda m, x: (x * 9).argmax(1) * m.table.shape[1], table=torch.randn(3, 4, 4)
    ).double()
    fused = reparam.compile(model.eval())
    assert fused(IMAGES.double()).dtype == torch.int64
    half = Net(lambda m, x: torch.zeros(x.nelement() * m.table.shape[1]), table=torch.ones(2, 4))
    assert reparam.compile(half.eval())(IMAGES).shape == (IMAGES.numel() * 4,)
