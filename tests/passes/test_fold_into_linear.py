from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import fold_into_linear
from reparam.errors import Declined
from reparam.facts import TensorFacts
from reparam.graph import ValueGraph
from reparam.sizes import Size, SymbolTable
from reparam.values import Conv, Layout
from tests.fused import operators
from tests.passes.alone import Net, alone, fires, reasons
from tests.passes.layers import CONVS
from tests.strategies import drawn

POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
PIXELS = (5, 4, 3)
IMAGES = drawn(0, 4, 6, 7, 6).float()

Flatten = Callable[[Tensor], Tensor]


def head(
    conv: nn.Module, out: int, pixels: tuple[int, ...] = (5, 4), bias: bool = True, **more: Any
) -> Net:
    """A convolution over an image of known size, all of whose result a linear layer reads."""
    made = conv(torch.zeros(1, conv.in_channels, *pixels)).numel()
    flatten: Flatten = more.get("flatten", lambda y: y.flatten(1))
    return Net(
        lambda m, x: m.linear(flatten(m.conv(m.pool(x)))),
        pool=POOLS[len(pixels)](pixels),
        conv=conv,
        linear=nn.Linear(int(more.get("features", made)), out, bias=bias),
    )


@settings(max_examples=50)
@given(st.data())
def test_convolution(data: st.DataObject) -> None:
    """Of any hyper-parameters: what the padding shows is a part of the matrix."""
    draw, n = data.draw, data.draw(st.integers(1, 3))
    pixels = PIXELS[:n]
    kernel, dilation, stride = (
        tuple(draw(st.integers(1, top)) for _ in range(n)) for top in (3, 2, 2)
    )
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(
        draw(st.integers(max(0, r - size + 1), 2)) for r, size in zip(reach, pixels, strict=True)
    )
    mode = draw(st.sampled_from(["zeros", "replicate", "circular", *["reflect"][: 3 - n]]))
    groups = draw(st.sampled_from([1, 2]))
    conv = CONVS[n](
        2, 2 * groups, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode
    )
    made = conv(torch.zeros(1, 2, *pixels)).shape[2:].numel()
    out = draw(st.integers(1, 5))
    model = head(conv, out, pixels, draw(st.booleans()))
    before = out * conv.out_channels * made + conv.weight.numel() * made
    after = out * 2 * prod(pixels)
    x = drawn(1, 3, 2, *(9, 8, 7)[:n]).float()
    other = drawn(2, 2, 2, *(4, 9, 5)[:n]).float()
    fused, report = alone(fold_into_linear, model, x, given=True, others=(other,))
    if after <= before:
        assert len(report.applied) == 1
        assert [type(m) for m in fused.children()] == [POOLS[n], nn.Linear]
    else:
        assert [remark.message for remark in report.missed] == [
            f"merged, it takes more multiply-adds per image: {after:,.0f} instead of {before:,.0f}"
        ]


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_that_shows_more_than_zeros(mode: str) -> None:
    conv = nn.Conv2d(6, 8, (3, 2), (1, 2), (2, 1), (2, 1), 2, padding_mode=mode)
    fused = fires(fold_into_linear, head(conv, 3), IMAGES, given=True, others=(IMAGES[..., :3],))
    assert operators(fused) == {"AdaptiveAvgPool2d": 1, "flatten": 1, "Linear": 1}


def test_several_convolutions() -> None:
    """One after the other, the last one first."""
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(3), nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 12, 2, padding=1),
        nn.Flatten(), nn.Linear(12 * 16, 5),
    )  # fmt: skip
    fused = fires(fold_into_linear, model, IMAGES, 2, given=True)
    assert operators(fused) == {"AdaptiveAvgPool2d": 1, "flatten": 1, "Linear": 1}


def test_shared_layers() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.pool(x)
        return m.linear(m.conv(y).flatten(1)) * m.linear(m.conv(y.relu()).flatten(1))

    model = head(nn.Conv2d(6, 8, 3, padding=1), 3)
    model.function = forward
    assert operators(fires(fold_into_linear, model, IMAGES, 2, given=True))["Linear"] == 2


@pytest.mark.parametrize("channels", [6, 8])
@pytest.mark.parametrize(
    "flatten",
    [
        lambda y: y.view(-1, 160),
        lambda y: y.reshape(y.shape[0], 160),
        lambda y: y.reshape(y.shape[0], -1),
        lambda y: torch.flatten(y, start_dim=1),
        lambda y: y.flatten(1, 3),
    ],
)
def test_flattened_by_number(flatten: Flatten, channels: int) -> None:
    """The numbers are those of the result; the convolution may read fewer channels, or as many."""
    model = head(nn.Conv2d(channels, 8, 3, padding=1), 3, flatten=flatten)
    x = drawn(0, 4, channels, 7, 6).float()
    alone(fold_into_linear, model, x, given=True, others=(x[:1], x[..., :3]))


def test_one_channel_flattened_with_the_batch() -> None:
    """Each row is one image, as long as there is one channel."""
    flatten: Flatten = lambda y: y.flatten(0, 1)  # noqa: E731
    model = head(nn.Conv1d(2, 1, 3, padding=1), 2, (4,), flatten=flatten, features=4)
    x = drawn(0, 3, 2, 9).float()
    alone(fold_into_linear, model, x, given=True, others=(x[:1],))


def test_flattened_from_another_axis() -> None:
    """The pixels are mixed, channel by channel."""
    model = head(nn.Conv2d(6, 8, 1), 3, flatten=lambda y: y.flatten(2), features=20)
    found = reasons(fold_into_linear, model, IMAGES, given=True)
    assert found == ["it is not flattened whole"]


def test_image_without_a_batch() -> None:
    """Its two axes are channels and pixels."""
    model = head(nn.Conv2d(6, 8, 1), 3, flatten=lambda y: y.flatten(1), features=20)
    found = reasons(fold_into_linear, model, IMAGES[0], given=True)
    assert found == ["it is not flattened whole"]


def test_two_images_in_a_row() -> None:
    model = head(nn.Conv2d(6, 8, 1), 3, flatten=lambda y: y.reshape(-1, 320), features=320)
    found = reasons(fold_into_linear, model, IMAGES, given=True)
    assert found == ["it is not flattened whole"]


def test_size_that_is_not_known() -> None:
    model = Net(
        lambda m, x: m.linear(m.conv(x).flatten(1)),
        conv=nn.Conv2d(6, 8, 1),
        linear=nn.Linear(8 * 42, 3),
    )
    assert reasons(fold_into_linear, model, IMAGES, given=True) == [
        "the size of the image is not known"
    ]
    half = head(nn.Conv2d(6, 8, 1), 3)
    half.pool = nn.AdaptiveAvgPool2d((5, None))
    half.linear = nn.Linear(8 * 5 * 6, 3)
    assert reasons(fold_into_linear, half, IMAGES, given=True) == [
        "the size of the image is not known"
    ]


def test_number_of_axes_that_is_not_known() -> None:
    found = reasons(fold_into_linear, head(nn.Conv2d(6, 8, 1), 3), IMAGES)
    assert found == ["the number of axes of its input is not known"]


@pytest.mark.parametrize("which", ["made", "flat"])
def test_something_else_reads_what_is_made(which: str) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        made = m.conv(m.pool(x))
        flat = made.flatten(1)
        return m.linear(flat) + {"made": made, "flat": flat}[which].sigmoid().mean()

    model = head(nn.Conv2d(6, 8, 1), 3)
    model.function = forward
    assert reasons(fold_into_linear, model, IMAGES, given=True) == ["something else reads it"]


def test_linear_layer_that_would_grow() -> None:
    """The convolution halves the image, and its channels."""
    model = head(nn.Conv2d(6, 3, 2, 2), 9, (4, 4))
    assert reasons(fold_into_linear, model, IMAGES, given=True) == [
        "merged, it takes more multiply-adds per image: 864 instead of 396"
    ]


def test_dtype_that_is_not_known() -> None:
    """Layers tell theirs when they are lifted; a pass of someone else's need not."""
    table = SymbolTable()
    values = ValueGraph(table)
    x = values.graph.placeholder("x")
    x.meta["facts"] = TensorFacts((table.fresh(), Size(3), Size(2)), True)
    made = values.apply(Conv(drawn(0, 4, 3, 1)), (x,), {}, "conv")
    flat = values.apply(Layout(torch.flatten, pure=True, kind="reshape"), (made.node, 1), {}, "f")
    call = values.apply(Conv(drawn(1, 5, 8)), (flat.node,), {}, "linear")
    values.graph.output(call.node)
    with pytest.raises(Declined) as caught:
        fold_into_linear(call)
    assert caught.value.reason == "the dtypes differ"


@pytest.mark.parametrize("before", [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=6)])
def test_what_stands_before_the_flattening(before: nn.Module) -> None:
    """A scale per channel is folded elsewhere; a depthwise layer is a convolution."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), before, nn.Flatten(), nn.Linear(96, 3))
    times = isinstance(before, nn.Conv2d)
    fires(fold_into_linear, model, IMAGES, int(times), given=True)
