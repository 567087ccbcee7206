from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import select_rows
from reparam.errors import Declined
from reparam.facts import TensorFacts
from reparam.graph import ValueGraph
from reparam.sizes import Size, SymbolTable
from reparam.values import Conv, Layout
from tests.fused import operators
from tests.passes.alone import Net, alone, fires, reasons
from tests.passes.layers import CONVS
from tests.strategies import drawn

Rearrangement = Callable[[Tensor], Tensor]

IMAGES = drawn(0, 3, 6, 8, 8).float()
TOKENS = drawn(0, 3, 5, 6).float()


def shuffled(y: Tensor, groups: int) -> Tensor:
    """The channels of images, or of sequences, dealt out to groups in turn."""
    return y.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


@settings(max_examples=30)
@given(st.data())
def test_channel_shuffle(data: st.DataObject) -> None:
    n, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([2, 3, 4, 6]))
    kernel, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    bias, padding = data.draw(st.booleans()), data.draw(st.integers(0, 2))
    model = Net(
        lambda m, x: shuffled(m.conv(x), groups),
        conv=CONVS[n](6, 12, kernel, stride, padding, bias=bias),
    )
    x, other = drawn(1, 2, 6, *(7, 6, 5)[:n]).float(), drawn(2, 3, 6, *(4, 9, 6)[:n]).float()
    fused = fires(select_rows, model, x, given=True, others=(other,))
    assert operators(fused) == {f"Conv{n}d": 1}


@settings(max_examples=30)
@given(st.integers(0, 5), st.integers(1, 6), st.booleans())
def test_some_features_of_a_linear_layer(first: int, length: int, bias: bool) -> None:
    last = min(first + length, 6)
    if (first, last) == (0, 6):
        return
    model = Net(lambda m, x: m.linear(x)[..., first:last], linear=nn.Linear(6, 6, bias=bias))
    # With more than two axes, a slice of the last one may be of columns: it is left alone.
    fused = fires(select_rows, model, TOKENS[0], given=True, others=(TOKENS[1, :2],))
    assert operators(fused) == {"Linear": 1}
    assert fused.linear.out_features == last - first


def test_shuffled_features_of_tokens() -> None:
    model = Net(
        lambda m, x: m.linear(x).unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2),
        linear=nn.Linear(6, 8),
    )
    fused = fires(select_rows, model, TOKENS, given=True, others=(TOKENS[:, :2],))
    assert operators(fused) == {"Linear": 1}


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_piece_of_a_shuffle(mode: str) -> None:
    """The shuffle is taken into the weight first, and then the piece."""
    model = Net(
        lambda m, x: shuffled(m.conv(x), 3).chunk(2, 1)[1],
        conv=nn.Conv2d(6, 12, 3, padding=1, padding_mode=mode),
    )
    fused = fires(select_rows, model, IMAGES, 2, given=True, others=(IMAGES[..., :3],))
    assert operators(fused) == {"Conv2d": 1}
    assert fused.conv.out_channels == 6


def test_shared_convolution() -> None:
    """Each of its calls gets rows of its own."""

    def forward(m: Net, x: Tensor) -> Tensor:
        return m.conv(x)[:, :2] * m.conv(x)[:, 2:].sigmoid()

    model = Net(forward, conv=nn.Conv2d(6, 4, 3))
    assert operators(fires(select_rows, model, IMAGES, 2, given=True))["Conv2d"] == 2


TORN = "its groups would be torn apart"


@pytest.mark.parametrize(
    ("groups", "rearrange", "reason"),
    [
        (2, lambda y: shuffled(y, 2), TORN),
        (12, lambda y: shuffled(y, 4), TORN),
        (2, lambda y: y[:, :6], TORN),
        (3, lambda y: y[:, 1:11], TORN),
        (12, lambda y: y[:, :6], TORN),
        # A shuffle within each group, and half of the rows of each, keep the groups.
        (2, lambda y: within(y, 2), None),
        (3, lambda y: within(y, 3), None),
        (1, lambda y: y[:, :6], None),
    ],
)  # fmt: skip
def test_groups(groups: int, rearrange: Rearrangement, reason: str | None) -> None:
    model = Net(
        lambda m, x: rearrange(m.conv(x)), conv=nn.Conv2d(12, 12, 3, padding=1, groups=groups)
    )
    _, report = alone(select_rows, model, drawn(0, 2, 12, 5, 4).float(), given=True)
    assert [remark.message for remark in report.missed] == [reason] * (reason is not None)
    assert len(report.applied) == (reason is None)


def within(y: Tensor, groups: int) -> Tensor:
    """The channels of each group back to back: (g, 2, c) → (g, c, 2)."""
    return y.unflatten(1, (groups, 2, -1)).transpose(2, 3).flatten(1, 3)


def halves(y: Tensor, *sizes: int) -> Tensor:
    """Four channels as two by two, swapped; all pixels where they are."""
    pixels = sizes or (4, 4)
    return y.reshape(y.shape[0], 2, 2, *pixels).transpose(1, 2).reshape(y.shape[0], 4, 4, 4)


SQUARE: dict[str, tuple[Rearrangement, int]] = {
    "channels": (halves, 1),
    "channels, and back": (lambda y: halves(halves(y)), 1),
    "nothing": (lambda y: y.reshape(-1, 4, 16).reshape(-1, 4, 4, 4), 1),
    "channels, and pixels as one": (lambda y: halves(y, 16), 1),
    "channels, and pixels regrouped": (lambda y: halves(y, 2, 8), 1),
    "channels beside the batch": (
        lambda y: y.reshape(-1, 2, 2, 4, 4).transpose(1, 2).reshape(y.shape[0], 4, 4, 4),
        1,
    ),
    # What stands last is not channels alone, so that no more than the shuffle before it goes.
    "channels, then height and width": (lambda y: halves(y).permute(0, 1, 3, 2), 1),
    "height and width": (lambda y: y.permute(0, 1, 3, 2), 0),
    "height and width, then channels": (lambda y: halves(y.transpose(2, 3)), 0),
    "height and width, channels, and back": (lambda y: halves(y.mT).mT, 0),
    "both at once": (
        lambda y: (
            y.reshape(-1, 2, 2, 4, 4).permute(0, 2, 1, 4, 3).reshape(y.shape[0], 4, 4, 4)
        ),
        0,
    ),
    "channels and height": (lambda y: y.permute(0, 2, 1, 3), 0),
    "channels and width": (lambda y: y.transpose(1, 3), 0),
    "half of the channels and height": (
        lambda y: y.reshape(-1, 2, 2, 4, 4).transpose(2, 3).reshape(y.shape[0], 4, 4, 4),
        0,
    ),
    "channels and the batch": (
        lambda y: y.reshape(y.shape[0], 2, 2, 4, 4).transpose(0, 2).reshape(y.shape),
        0,
    ),
    "pixels regrouped": (
        lambda y: y.reshape(-1, 4, 2, 8).transpose(2, 3).reshape(y.shape[0], 4, 4, 4),
        0,
    ),
    "channels with rows of pixels": (
        lambda y: y.reshape(-1, 2, 4, 8).transpose(1, 2).reshape(y.shape[0], 4, 4, 4),
        0,
    ),
    "channels with rows, split again": (
        lambda y: (
            y.reshape(-1, 8, 2, 4)
            .reshape(y.shape[0], 2, 4, 2, 4)
            .transpose(1, 2)
            .reshape(y.shape[0], 4, 4, 4)
        ),
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SQUARE)
def test_square_image_of_as_many_rows_as_channels(case: str) -> None:
    """Where all sizes are the same, none of them tells what moved."""
    rearrange, times = SQUARE[case]
    model = Net(
        lambda m, x: rearrange(m.conv(m.pool(x))),
        pool=nn.AdaptiveAvgPool2d(4),
        conv=nn.Conv2d(6, 4, 3, padding=1),
    )
    fused, report = alone(select_rows, model, IMAGES, given=True, others=(IMAGES[:2, :, :5],))
    assert min(len(report.applied), 1) == times
    assert operators(fused)["Conv2d"] == 1


@pytest.mark.parametrize(
    "rearrange",
    [
        lambda y: y[:, 1:3, 1:],
        lambda y: y[:, ::2],
        lambda y: y[:, :, :2],
        lambda y: y[:, 1],
        lambda y: y.flatten(1),
        lambda y: y[:, :0],
        lambda y: y.split([0, 4], 1)[0],
    ],
)
def test_other_parts_of_an_image(rearrange: Rearrangement) -> None:
    """Pixels, no channel of all, steps and nothing at all."""
    model = Net(lambda m, x: rearrange(m.conv(x)), conv=nn.Conv2d(6, 4, 1))
    fires(select_rows, model, IMAGES, 0, given=True)


def test_cut_in_the_middle_of_a_shuffle() -> None:
    """(2, 6) → (6, 2) → (3, 4), of which two go on."""
    model = Net(
        lambda m, x: shuffled(m.conv(x), 2).unflatten(1, (3, 4))[:, 1:].flatten(1, 2),
        conv=nn.Conv2d(6, 12, 1),
    )
    fused = fires(select_rows, model, IMAGES, given=True)
    assert operators(fused) == {"Conv2d": 1}


def test_layer_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        return y[:, :2] + y[:, 2:].relu()

    model = Net(forward, conv=nn.Conv2d(6, 4, 1))
    assert reasons(select_rows, model, IMAGES, given=True) == []


def test_scale_is_no_layer() -> None:
    """Its rows cost nothing; it is folded elsewhere."""
    model = Net(lambda m, x: (m.scale * x)[:, :2], scale=torch.ones(6, 1, 1))
    assert reasons(select_rows, model, IMAGES, given=True) == []


def test_layer_of_unknown_dtype() -> None:
    table = SymbolTable()
    values = ValueGraph(table)
    x = values.graph.placeholder("x")
    x.meta["facts"] = TensorFacts((table.fresh(), Size(6)), True)
    linear = values.apply(Conv(drawn(0, 4, 6)), (x,), {}, "linear")
    piece = Layout(torch.narrow, pure=True, kind="slice", index=(-1, 1), length=2)
    call = values.apply(piece, (linear.node, -1, 1, 2), {}, "piece")
    values.graph.output(call.node)
    with pytest.raises(Declined) as caught:
        select_rows(call)
    assert caught.value.reason == "the dtype is not known"
    assert caught.value.blocker == "linear"
