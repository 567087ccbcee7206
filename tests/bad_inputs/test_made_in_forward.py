"""Row 20: writes to tensors that a forward makes, and writes that have no twin without one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
import reparam
from reparam import known
from tests.fused import operators, same_state
from tests.strategies import drawn

X = drawn(0, 1, 2, 3, 3).float()


class Adding(nn.Module):
    """Writes to what it is given, and can't be traced."""

    def forward(self, y: Tensor) -> Tensor:
        return y.add_(1) if bool(y.isfinite().all()) else y


class Net(nn.Module):
    """A convolution, a batch norm, weights of two dtypes, and a forward of any kind."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.conv, self.norm, self.adding = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), Adding()
        self.gain = nn.Parameter(torch.tensor([0.5, 2.0]))
        self.wide = nn.Parameter(torch.rand(2, 1, 1, dtype=torch.float64))
        self.register_buffer("table", torch.rand(2, 1, 1))
        self.plain, self.several = torch.zeros(2, 1, 1), [torch.ones(2, 1, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def scaled(net: Any, x: Tensor) -> Tensor:
    scale = torch.ones(2, 1, 1)
    scale.mul_(net.gain.view(2, 1, 1))
    return net.conv(x) * scale


def added(_: Any, x: Tensor) -> Tensor:
    y = torch.zeros(1, 2, 3, 3)
    y += x
    return y


def copied(_: Any, x: Tensor) -> Tensor:
    y = torch.zeros(1, 2, 3, 3)
    y.copy_(x)
    return y


def assigned(_: Any, x: Tensor) -> Tensor:
    y = torch.zeros(1, 2, 3, 3)
    y[:, 0] = x[:, 0]
    return y


def added_to_a_view(_: Any, x: Tensor) -> Tensor:
    y = torch.zeros(1, 2, 3, 3)
    y.view(-1).add_(x.view(-1))
    return y


def out(_: Any, x: Tensor) -> Tensor:
    y = torch.zeros(1, 2, 3, 3)
    torch.add(x, 1, out=y)
    return y


def made_and_returned(_: Any, __: Tensor) -> Tensor:
    return torch.zeros(2, 4)


def computed_and_returned(net: Any, _: Tensor) -> Tensor:
    return net.table * 2


def written_by_a_module(net: Any, x: Tensor) -> Tensor:
    return net.adding(net.gain * 2) + x.sum()


def made_by_a_layer(net: Any, x: Tensor) -> Tensor:
    return net.adding(net.conv(net.table[None])) + x


def view_by_einsum(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    torch.einsum("bchw->bhwc", y).add_(1)
    return y


def filled(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)).fill_(3)


def initialised(net: Any, x: Tensor) -> Tensor:
    return nn.init.zeros_(net.norm(net.conv(x)))


def copied_over(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    y.copy_(x)
    return y * 2


def added_to_half(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x).half()
    y += x
    return y


def multiplied_by_double(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    y *= net.wide
    return net.conv(y)


def compared(net: Any, x: Tensor) -> Tensor:
    return 1 - net.conv(x).gt_(0)


def written_after_it_was_read(net: Any, x: Tensor) -> Tensor:
    y = torch.zeros(2, 1, 1)
    z = x + y
    y += 1
    return net.conv(z) + y


def combined_by_bits(_: Any, x: Tensor) -> Tensor:
    y = torch.zeros(1, 2, 3, 3, dtype=torch.long)
    y |= (x > 0).long()
    y ^= 1
    return x * y


def added_to_several(net: Any, x: Tensor) -> Tensor:
    y = torch.zeros(1, 2, 3, 3)
    known.TORCH._foreach_add_([x.clone(), y], [x, x])
    return net.conv(x) + y


def told_to_train(net: Any, x: Tensor) -> Tensor:
    return net.conv(x).requires_grad_(False) * 2


def counted(net: Any, x: Tensor) -> Tensor:
    net.table += 1
    return net.conv(x)


def plain_counted(net: Any, x: Tensor) -> Tensor:
    net.plain.add_(1)
    return net.conv(x) + net.plain


def listed(net: Any, x: Tensor) -> Tensor:
    net.several[0].mul_(0.5).add_(x.mean())
    return net.conv(x) * net.several[0]


def weight_written(net: Any, x: Tensor) -> Tensor:
    net.gain.data.mul_(1 + x.abs().mean())
    return net.conv(x) * net.gain.view(2, 1, 1)


def empty(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) + torch.zeros(0, 4).sum() + torch.zeros(0, 2).sum()


@pytest.mark.parametrize("example", [None, X], ids=["without", "with example"])
@pytest.mark.parametrize(
    "body",
    [
        scaled, added, copied, assigned, added_to_a_view, out, made_and_returned,
        computed_and_returned, written_by_a_module, made_by_a_layer, view_by_einsum, filled,
        initialised, copied_over, added_to_half, multiplied_by_double, compared,
        written_after_it_was_read, combined_by_bits, added_to_several, told_to_train, counted,
        plain_counted, listed, weight_written, empty,
    ],
    ids=lambda body: body.__name__,
)  # fmt: skip
def test_row_20_each_call_starts_anew(
    body: Callable[[Any, Tensor], Tensor], example: Tensor | None
) -> None:
    model = Net(body).eval()
    original = copy.deepcopy(model)
    fused = reparam.compile(model, example, passes=passes.DEFAULT)
    assert same_state(model.state_dict(), original.state_dict()), "compiling changed the model"
    assert torch.equal(model.plain, original.plain)
    assert torch.equal(model.several[0], original.several[0])
    with torch.no_grad():
        for _ in range(3):
            expected, found = original(X.clone()), fused(X.clone())
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected)
            found.add_(5)  # the result is the caller's


def in_place(cast: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Residuals that are added in place, behind a cast."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = cast(x)
        y = net.norm(net.conv(x))
        y += x
        return y.relu()

    return forward


@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x,
        lambda x: x.float(),
        lambda x: x.to(torch.float32),
        lambda x: x.to(x.dtype),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x + x.argmax(1, keepdim=True).long(),
        lambda x: x.softmax(1, dtype=torch.float32),
    ],
)
def test_row_20_a_cast_to_the_same_dtype_is_no_obstacle(cast: Callable[[Tensor], Tensor]) -> None:
    model = Net(in_place(cast)).eval()
    fused = reparam.compile(model, X, passes=passes.DEFAULT)
    left = operators(fused)
    assert left["Conv2d"] == 1
    assert not {"BatchNorm2d", "iadd"} & set(left)


def test_row_20_pieces_that_are_returned_and_written_to_by_nobody() -> None:
    model = Net(lambda net, x: (net.norm(net.conv(x)), *torch.arange(8.0).split(4))).eval()
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused) == {"Conv2d": 1, "clone": 2, "Identity": 2}
    for _ in range(2):
        pieces = fused(X)[1:]
        assert [piece.tolist() for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        pieces[0].add_(1)
