"""Borders that are written by assignment become paddings, and nothing else does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import passes
import reparam
from reparam.graph import Call
from reparam.operators import Pad
from reparam.values import Layout
from reparam.verify import EXACT, relative_difference
from tests.fused import operators
from tests.lifted import SHIFT, Net, lifted
from tests.randomised import randomised
from tests.strategies import drawn

Write = Callable[[Any, Any, Any], Any]
"""From the model, the padded image and the constant: writes to the image, or reads it."""

X = drawn(0, 2, 4, 6, 5)


def top(y: Any, c: Any, rows: int = 1) -> None:
    y[:, :, 0:rows, :] = c


def bottom(y: Any, c: Any, rows: int = 1) -> None:
    y[:, :, -rows:, :] = c


def left(y: Any, c: Any, rows: int = 1) -> None:
    y[:, :, :, 0:rows] = c


def right(y: Any, c: Any, rows: int = 1) -> None:
    y[:, :, :, -rows:] = c


def constant(m: Any) -> Any:
    return m.shift.view(1, -1, 1, 1)


def bordered(*writes: Write) -> Callable[[Any, Any], Tensor]:
    """A layer over an image with a border, as diverse branch blocks write it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y, c = F.pad(x, (1, 1, 1, 1)), constant(m)
        seen = [write(m, y, c) for write in writes]
        return m.layer(y) + sum(early.sum() for early in seen if early is not None)

    return forward


def border(calls: list[Call]) -> Tensor | None:
    """The constant of the one padding, if assignments have become one."""
    written = [call for call in calls if call.value.__name__ == "setitem"]
    pads = [call.value.border for call in calls if isinstance(call.value, Pad)]
    assert len(pads) == (0 if written else 1)
    return None if written else pads[0]


@given(st.permutations(range(4)), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_border_in_any_order_and_of_any_width(order: list[int], widths: list[int]) -> None:
    """Sides that are not padded are not written to either."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y, c = F.pad(x, [widths[side] for side in (2, 3, 0, 1)]), constant(m)
        for side in order:
            if widths[side]:
                (top, bottom, left, right)[side](y, c, widths[side])
        return y.relu()

    calls = lifted(Net(forward), X)
    if any(widths):
        pad = next(call.value for call in calls if isinstance(call.value, Pad))
        assert pad.padding == (tuple(widths[:2]), tuple(widths[2:]))
        found = border(calls)
        assert found is not None
        assert torch.equal(found, SHIFT)


FORMS: dict[str, Callable[[Any, Any], Tensor]] = {
    "first": lambda m, x: m.shift.reshape(1, 4, 1, 1),
    "without batch": lambda m, x: m.shift[:, None, None],
    "computed": lambda m, x: (m.shift - m.scale / torch.sqrt(m.ones + 0.1)).view(-1, 1, 1) * 2,
    "of one number": lambda m, x: m.ones[:1].view(1, 1, 1, 1),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("known", [True, False])
def test_a_constant_in_any_form(form: Callable[[Any, Any], Tensor], known: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y, c = F.pad(x, (1, 1, 1, 1), "constant", 7.0), form(m, x)
        for write in (top, bottom, left, right):
            write(y, c)
        return m.layer(y) + y.mean()

    assert border(lifted(Net(forward, nn.Conv2d(4, 6, 3)), X, known)) is not None


def ellipsis(m: Any, y: Any, c: Any) -> None:
    y[..., :1] = c
    y[..., -1:] = c
    y[..., :1, :] = c
    y[:, :, -1:] = c


def test_whatever_the_indices_look_like() -> None:
    assert border(lifted(Net(bordered(ellipsis), nn.Conv2d(4, 6, 3)), X)) is not None


REST: tuple[Write, ...] = tuple(
    lambda m, y, c, write=write: write(y, c) for write in (top, bottom, left, right)
)

KEPT: dict[str, tuple[Write, ...]] = {
    "one side is missing": REST[:3],
    "an edge of the image is written to": (*REST, lambda m, y, c: top(y, c, 2)),
    "the whole image is written to": (*REST, lambda m, y, c: left(y, c, 99)),
    "only corners of a side": (*REST[:3], lambda m, y, c: right(y[:, :, :1], c)),
    "two constants": (*REST[:3], lambda m, y, c: right(y, c * 2)),
    "a constant of the input": tuple(
        lambda m, y, c, write=write: write(y, y.mean((0, 2, 3), True)) for write in (top, bottom)
    ),
    "a number": (lambda m, y, c: top(y, 0.5), *REST[1:]),
    "some channels": (lambda m, y, c: top(y[:, :2], c[:, :2]), *REST[1:]),
    "read before": (lambda m, y, c: y.mean(), *REST),
    "read in between": (*REST[:2], lambda m, y, c: y.mean(), *REST[2:]),
    "a view from before": (lambda m, y, c: y[:, :, 1:-1], *REST),
}


@pytest.mark.parametrize("writes", KEPT.values(), ids=KEPT.keys())
def test_assignments_that_are_no_border_stay(writes: tuple[Write, ...]) -> None:
    model, x = Net(bordered(*writes), nn.Conv2d(4, 6, 1)), drawn(0, 2, 4, 6, 3)
    written = [call for call in lifted(model, x) if call.value.__name__ == "setitem"]
    assert len(written) >= len(writes) - 1
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused)["setitem"] == len(written)
    assert relative_difference(model(x), fused(x)) <= EXACT


@pytest.mark.parametrize(
    "form",
    [
        lambda m: m.wide[:5].view(1, 1, 1, 5),  # one per column
        lambda m: torch.stack([m.shift, m.scale]).view(2, 4, 1, 1),  # one per image
        lambda m: m.shift.view(1, 4, 1, 1) + m.wide[:5],
    ],
)
def test_constants_that_are_not_one_per_channel_stay(form: Callable[[Any], Any]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y, c = F.pad(x, (0, 0, 1, 1)), form(m)
        top(y, c)
        bottom(y, c)
        return y * 2

    assert border(lifted(Net(forward), X)) is None


def test_other_modes_are_no_constant() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.pad(x, (1, 1, 1, 1), "reflect")
        top(y, constant(m))
        return y + 1

    (pad,) = (c.value for c in lifted(Net(forward), X) if c.value.__name__ in ("pad", "Pad"))
    assert getattr(pad, "border", None) is None


@pytest.mark.parametrize("method", ["reshape_as", "view_as"])
def test_a_tensor_reshaped_as_another_reads_its_sizes(method: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer(x)
        return getattr(y.flatten(2).relu(), method)(y)

    calls = lifted(Net(forward, nn.Conv2d(4, 6, 3)), X)
    last = calls[-1]
    assert isinstance(last.value, Layout)
    assert last.value.kind == "reshape"
    (conv,) = (call for call in calls if call.name == "layer")
    assert [reader.name for reader in conv.readers] == ["flatten"]
    assert last.shape == conv.shape


def test_a_branch_with_a_border_becomes_one_convolution() -> None:
    """1×1, batch norm, a border of what that makes of zero, k×k, batch norm."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.first = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
            self.outer, self.second = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            norm: Any = self.first
            y = F.pad(norm(self.inner(x)), [1, 1, 1, 1])
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            c = (norm.bias - norm.running_mean * scale).view(1, -1, 1, 1)
            for write in (top, bottom, left, right):
                write(y, c)
            return self.second(self.outer(y))

    model = randomised(Branch().double(), X)
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused) == {"Conv2d": 1}
    assert relative_difference(model(X), fused(X)) <= EXACT


def test_a_row_that_only_large_images_have_is_no_border() -> None:
    x = drawn(0, 1, 4, 30, 30)

    def row(m: Any, y: Any, c: Any) -> None:
        y[:, :, 20:21] = c

    lifted(Net(bordered(*REST, row)), x)


def test_a_constant_per_image_is_none_per_channel() -> None:
    def first_row(m: Any, y: Any, c: Any) -> None:
        y[:, :, 0] = c

    lifted(Net(bordered(first_row, *REST[1:])), drawn(0, 4, 4, 6, 5))
