"""Rows 27 to 32: strides, dilations, transposed convolutions, borders, pools and groups."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.bad_inputs.branches import SIZES, branches, merged, not_merged
from tests.bad_inputs.outcomes import (
    IMAGE,
    calls,
    compiled,
    fused_exactly,
    norms,
    same,
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn


@pytest.mark.parametrize("size", [(1, 1), (2, 2)], ids=["one pixel", "broadcast"])
def test_row_27_identity_beside_a_stride(size: tuple[int, int]) -> None:
    """Only for images so small that the sum exists at all; on two by two, it is broadcast."""
    x = drawn(1, 4, 4, *size)
    model = branches(nn.Conv2d(4, 4, 3, 2, padding=1), nn.Identity(), x=x)
    not_merged(model, "the branches differ in stride|not known to have one shape", x)


def test_row_27_subsampled_identity() -> None:
    model = Net(
        lambda m, x: m.norm(m.conv(x) + x[:, :, ::2, ::2]).relu(),
        conv=nn.Conv2d(4, 4, 3, 2, padding=1),
        norm=nn.BatchNorm2d(4),
    )
    fused = fused_exactly(trained(model))
    for size in SIZES:
        same(model, fused, drawn(2, *size))


@pytest.mark.parametrize("dilation", [2, (1, 2)])
def test_row_28_branches_of_two_dilations(dilation: Any) -> None:
    reach = (4, 4) if dilation == 2 else (2, 4)
    model = branches(
        nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 4, 3, padding=tuple(r // 2 for r in reach), dilation=dilation),
    )
    merged(model, *SIZES)


def test_row_28_a_dilated_kernel_that_would_cost_more() -> None:
    """3×3 dilated by 4 reaches over 9×9: dense, that is dearer than both."""
    model = branches(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=4, dilation=4))
    not_merged(model, "multiply-adds")


def test_row_28_branches_of_two_strides() -> None:
    x = drawn(1, 4, 4, 5, 5)
    model = branches(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3), x=x)
    not_merged(model, "the branches differ in stride|not known to have one shape", x)


TRANSPOSED: tuple[tuple[Any, Any, Any], ...] = (
    (nn.ConvTranspose1d, nn.BatchNorm1d, (6,)),
    (nn.ConvTranspose2d, nn.BatchNorm2d, (5, 6)),
    (nn.ConvTranspose3d, nn.BatchNorm3d, (3, 4, 2)),
)


@pytest.mark.parametrize(("conv", "norm", "size"), TRANSPOSED)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_row_29_transposed(conv: Any, norm: Any, size: Any, groups: int, bias: bool) -> None:
    """As many channels in as out, so that the wrong axis of the weight would fit, too."""
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": groups, "bias": bias}
    for channels in (4, 6):
        x = drawn(1, 3, 4, *size)
        model = trained(nn.Sequential(conv(4, channels, 3, **options), norm(channels)), x)
        assert calls(fused_exactly(model, x, example_inputs=x)) == 1


@pytest.mark.parametrize("padding", [0, 1])
def test_row_29_norm_before_a_transposed_one(padding: int) -> None:
    layers = (nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3, stride=2, padding=padding))
    model = trained(nn.Sequential(*layers))
    fused = compiled(model)
    same(model, fused)
    assert norms(fused) == [] or reparam.report(fused).missed


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_row_30_bias_before_padding(kernel: int, padding: int) -> None:
    """The bias of the 1×1 does not reach the border, where zeros are; the merged one must not."""
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, kernel, padding=padding)))
    fused = compiled(model)
    for size in SIZES:
        same(model, fused, drawn(2, *size))
    if padding == 0:
        assert calls(fused) == 1
    else:
        assert calls(fused) == 1 or "zero padding" in str(reparam.report(fused).missed)


def test_row_30_norms_around() -> None:
    """As in a DBB's branch: 1×1, norm, k×k, norm."""
    layers = (nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
    model = nn.Sequential(*layers, nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    fused = fused_exactly(trained(model))
    for size in SIZES:
        same(model, fused, drawn(2, *size))


def pooled(pool: nn.Module, x: Tensor = IMAGE) -> nn.Module:
    return branches(nn.Conv2d(4, 4, 3, padding=1), pool, x=x)


def test_row_31_uncounted_padding() -> None:
    model = pooled(nn.AvgPool2d(3, 1, 1, count_include_pad=False))
    not_merged(model, "count_include_pad=False")


def test_row_31_partial_windows() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.norm(m.conv(x) + m.pool(x)).relu()

    parts: dict[str, nn.Module] = {
        "conv": nn.Conv2d(4, 4, 4, 2, padding=1),
        "pool": nn.AvgPool2d(2, 2, ceil_mode=True),
        "norm": nn.BatchNorm2d(4),
    }
    x = drawn(1, 2, 4, 6, 8)
    model = trained(Net(forward, **parts), x)
    fused = compiled(model)
    same(model, fused, x)
    assert "ceil_mode" in str(reparam.report(fused).missed)
    same(trained(nn.Sequential(parts["pool"])), compiled(nn.Sequential(parts["pool"]).eval()))


def test_row_31_options_that_change_nothing() -> None:
    """Nothing is padded; with a stride of 1 no window is partial."""
    merged(pooled(nn.AvgPool2d(1, 1, count_include_pad=False)), *SIZES)
    merged(pooled(nn.AvgPool2d(3, 1, 1)), *SIZES)
    fused = compiled(model := pooled(nn.AvgPool2d(3, 1, 1, ceil_mode=True)))
    same(model, fused)


@pytest.mark.parametrize("include", [True, False])
def test_row_31_divisor(include: bool) -> None:
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=include, divisor_override=5)
    merged(pooled(pool), *SIZES)


GROUPS: tuple[tuple[int, int], ...] = ((4, 1), (2, 1), (4, 2))


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_row_32_groups_that_nest(groups: tuple[int, int]) -> None:
    model = branches(*(nn.Conv2d(4, 4, 3, padding=1, groups=g) for g in groups))
    fused = merged(model, *SIZES)
    (conv,) = (module for module in fused.modules() if isinstance(module, nn.Conv2d))
    assert conv.groups == math.gcd(*groups)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(12, 12, 3, padding=1, groups=4),
        lambda: nn.Conv2d(12, 12, 3, padding=1, groups=6),
    ],
    ids=["4 and 3", "6 and 3"],
)
def test_row_32_groups_by_cost(make: Callable[[], nn.Module]) -> None:
    """Four and three groups have only one in common, and dense it is dearer than both."""
    x = drawn(1, 2, 12, 6, 5)
    first, second = make(), nn.Conv2d(12, 12, 3, padding=1, groups=3)
    model = Net(lambda m, x: (m.first(x) + m.second(x)).relu(), first=first, second=second)
    fused = compiled(trained(model, x))
    same(model, fused, x)
    if calls(fused) > 2:
        assert "multiply-adds" in str(reparam.report(fused).missed)
        assert first.groups == 4
    else:
        assert first.groups == 6


def test_row_32_depthwise_and_skip() -> None:
    merged(branches(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Identity()), *SIZES)


def test_row_32_dtype_of_the_sum_is_kept() -> None:
    model = branches(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1)).float()
    fused = compiled(model)
    assert fused(IMAGE.float()).dtype == torch.float32
