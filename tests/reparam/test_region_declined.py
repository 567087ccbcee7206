"""What stops a region at once: kinds of tensors that no map mixes, and nothing to merge with."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from passes import merge_affine_region
from reparam.errors import Declined
from reparam.facts import TensorFacts
from reparam.graph import Call, ValueGraph
from reparam.region import merge
from reparam.sizes import Size, SymbolTable
from reparam.values import BatchNorm, Conv, Sum, Value
from tests.passes.alone import Net, reasons
from tests.strategies import drawn

IMAGES = drawn(0, 2, 4, 6, 5).float()


def conv_on(device: str) -> Conv:
    return Conv(drawn(0, 4, 4, 1, 1).to(device))


def norm_on(device: str) -> BatchNorm:
    numbers = (drawn(seed, 4).abs().to(device) for seed in range(4))
    return BatchNorm(*numbers, 1e-5, 2)


def in_series(inner: Value, outer: Value, dtype: torch.dtype) -> Call:
    """The outer of two values of images in float64, what it makes being in another dtype."""
    values = ValueGraph(SymbolTable())
    node = values.graph.placeholder("x")
    node.meta["facts"] = facts = TensorFacts(tuple(map(Size, (2, 4, 6, 5))), True, torch.float64)
    for value in (inner, outer):
        node = values.apply(value, (node,), {}, "call").node
    node.meta["facts"] = replace(facts, dtype=dtype)
    return Call(node)


@pytest.mark.parametrize(
    ("inner", "outer", "dtype", "reason"),
    [
        (conv_on("cpu"), norm_on("meta"), torch.float64, "the devices differ"),
        (conv_on("meta"), norm_on("cpu"), torch.float64, "the devices differ"),
        (conv_on("cpu"), norm_on("cpu"), torch.float32, "the dtypes differ"),
        (conv_on("cpu"), Sum((2.0,)), torch.float32, "the dtypes differ"),
    ],
)
def test_tensors_of_two_kinds_are_not_mixed(
    inner: Value, outer: Value, dtype: torch.dtype, reason: str
) -> None:
    with pytest.raises(Declined) as caught:
        merge(in_series(inner, outer, dtype))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        (conv_on("cpu"), norm_on("cpu")),
        (conv_on("meta"), norm_on("meta")),
        (conv_on("cpu"), Sum((2.0,))),
    ],
)
def test_tensors_of_one_kind_are(inner: Value, outer: Value) -> None:
    assert merge(in_series(inner, outer, torch.float64)) is not None


def added(x: Tensor) -> Tensor:
    index = x.argmax(1)
    return index + index


@pytest.mark.parametrize("count", [lambda x: x.argmax(1) * 2, added])
def test_numbers_that_count_are_not_merged(count: Callable[[Tensor], Tensor]) -> None:
    model = Net(lambda m, x: count(m.conv(x)), conv=nn.Conv2d(4, 4, 1))
    assert reasons(merge_affine_region, model, IMAGES) == [
        "the operands are not known to be floating-point"
    ]


def test_a_sum_of_unknown_sizes_is_not_said_to_be_of_integers() -> None:
    """What the sum is of is known; with two strides, its own sizes and so its dtype are not."""
    model = Net(
        lambda m, x: m.norm(m.a(x) + m.b(x)),
        a=nn.Conv2d(4, 4, 3, stride=2, padding=1),
        b=nn.Conv2d(4, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    assert set(reasons(merge_affine_region, model, drawn(0, 2, 4, 5, 5).float())) == {
        "the operands of the sum are not known to have one shape"
    }


@pytest.mark.parametrize("before", [nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.GELU())])
def test_a_batch_norm_behind_what_is_not_linear_stays(before: nn.Module) -> None:
    model = nn.Sequential(before, nn.BatchNorm2d(4), nn.GELU())
    assert reasons(merge_affine_region, model, IMAGES) == ["no convolution next to it takes it in"]


def test_a_region_that_could_pay_but_would_not_gain_says_what_it_would_cost() -> None:
    """Two layers of low rank, and a dense one of another tensor, which stays whatever they do."""
    model = Net(
        lambda m, x: (m.up(m.down(x)) + m.other(x.relu())).relu(),
        down=nn.Linear(5, 2, bias=False),
        up=nn.Linear(2, 6, bias=False),
        other=nn.Linear(5, 6),
    )
    assert reasons(merge_affine_region, model, IMAGES) == [
        "merged, it takes more multiply-adds per pixel: 30 instead of 22",
        "merged, it takes more multiply-adds per pixel: 66 instead of 58",
    ]


def test_a_batch_norm_that_would_leave_a_constant_to_pad_with_stays() -> None:
    """Padding with -t/s is an operation as well."""
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1))
    (about_the_norm, about_the_convolution) = reasons(merge_affine_region, model, IMAGES)
    assert about_the_norm == "no convolution next to it takes it in"
    assert about_the_convolution == (
        "its shift meets zero padding, and to take it off before is no cheaper"
    )


def test_a_padding_and_an_average_are_no_convolution() -> None:
    """One depthwise convolution would do, where there was none."""
    model = Net(
        lambda m, x: m.pool(nn.functional.pad(m.conv(x).relu(), (1, 1, 1, 1))),
        conv=nn.Conv2d(4, 4, 1),
        pool=nn.AvgPool2d(2),
    )
    assert reasons(merge_affine_region, model, IMAGES, given=True) == [
        "a skip, a padding or an average would become a convolution"
    ]


def test_a_convolution_of_a_sum_is_not_copied() -> None:
    """Two groups of two channels cost no more copied than the norms that would go."""
    model = Net(
        lambda m, x: m.after(m.a(m.conv(x).relu()) + m.b(m.conv(x).tanh())).relu(),
        conv=nn.Conv2d(4, 4, 1),
        a=nn.BatchNorm2d(4),
        b=nn.BatchNorm2d(4),
        after=nn.Conv2d(4, 4, 1, groups=2),
    )
    found = reasons(merge_affine_region, model, IMAGES, given=True)
    assert "a convolution would be copied" in found
