"""The region engine and its cost gate: what pays is merged, the rest says what it would take."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passes
import reparam
from reparam import Report
from reparam.verify import EXACT, relative_difference
from tests.fused import operators
from tests.randomised import randomised
from tests.strategies import drawn

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """A forward over some layers."""

    def __init__(self, forward: Forward, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def merged(forward: Forward, channels: int = 4, **layers: nn.Module) -> tuple[nn.Module, Report]:
    """Compile, and compare the outputs."""
    x = drawn(1, 2, channels, 13, 12)
    model = randomised(Net(forward, layers).double(), x)
    fused = reparam.compile(model, passes=passes.DEFAULT)
    with torch.no_grad():
        expected, found = model(x), fused(x)
    pairs = (
        zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
    )
    for old, new in pairs:
        assert relative_difference(old, new) <= EXACT
    return fused, reparam.report(fused)


def reasons(report: Report) -> set[str]:
    return {remark.message for remark in report.missed}


def test_the_convolutions_of_a_patch_embedding_stay_two() -> None:
    """FastViT: merged, the depthwise 7x7 and the 1x1 would be one dense 7x7."""
    fused, report = merged(
        lambda s, x: s.pointwise(s.large(x)).relu(),
        48,
        large=nn.Conv2d(48, 96, 7, 2, 3, groups=48),
        pointwise=nn.Conv2d(96, 96, 1),
    )
    assert operators(fused)["Conv2d"] == 2
    (remark,) = report.missed
    assert remark.message.endswith("multiply-adds per pixel: 225,792 instead of 13,920")
    assert remark.call == "pointwise"
    assert remark.blocker == "large"


def test_pointwise_layers_in_series_become_one() -> None:
    """VanillaNet: 1x1, BN, leaky ReLU of slope 1, 1x1, BN."""
    fused, _ = merged(
        lambda s, x: s.norm2(s.conv2(s.norm1(s.conv1(x)))).relu(),
        conv1=nn.Conv2d(4, 16, 1),
        norm1=nn.BatchNorm2d(16),
        conv2=nn.Conv2d(16, 8, 1),
        norm2=nn.BatchNorm2d(8),
    )
    assert operators(fused) == {"Conv2d": 1, "relu": 1}


def test_a_low_rank_update_goes_into_the_dense_layer() -> None:
    """LoRA: alone, b after a would cost more than the two; beside W it is free."""
    fused, _ = merged(
        lambda s, x: (s.dense(x) + 0.5 * s.up(s.down(x))).relu(),
        dense=nn.Linear(12, 16),
        down=nn.Linear(12, 2, bias=False),
        up=nn.Linear(2, 16, bias=False),
    )
    assert operators(fused) == {"Linear": 1, "relu": 1}
    fused, report = merged(
        lambda s, x: s.up(s.down(x)).relu(),
        down=nn.Linear(12, 2, bias=False),
        up=nn.Linear(2, 16, bias=False),
    )
    assert operators(fused)["Linear"] == 2
    assert reasons(report) == {"merged, it takes more multiply-adds per pixel: 192 instead of 56"}


def test_crosses_become_a_square() -> None:
    """ACNet: kxk, 1xk and kx1, each with its batch norm."""
    fused, report = merged(
        lambda s, x: (s.n1(s.square(x)) + s.n2(s.row(x)) + s.n3(s.column(x))).relu(),
        square=nn.Conv2d(4, 8, 3, padding=1, bias=False),
        row=nn.Conv2d(4, 8, (1, 3), padding=(0, 1), bias=False),
        column=nn.Conv2d(4, 8, (3, 1), padding=(1, 0), bias=False),
        n1=nn.BatchNorm2d(8),
        n2=nn.BatchNorm2d(8),
        n3=nn.BatchNorm2d(8),
    )
    assert operators(fused) == {"Conv2d": 1, "relu": 1}
    assert report.missed == ()


def test_of_several_kernels_the_cheapest_partition_is_made() -> None:
    """SLaK: 51x5 and 5x51 stay apart, a 5x5 goes into either."""

    def strip(height: int, width: int) -> nn.Conv2d:
        padding = (height // 2, width // 2)
        return nn.Conv2d(4, 4, (height, width), padding=padding, groups=4)

    fused, _ = merged(
        lambda s, x: (s.tall(x) + s.wide(x) + s.small(x)).relu(),
        tall=strip(51, 5),
        wide=strip(5, 51),
        small=strip(5, 5),
    )
    kernels = sorted(m.kernel_size for m in fused.modules() if isinstance(m, nn.Conv2d))
    assert kernels == [(5, 51), (51, 5)]


def test_a_one_by_one_before_a_kernel_is_free_beside_one() -> None:
    """Diverse branch block, ECB: 1x1 then 3x3, without a shift at the border."""
    fused, _ = merged(
        lambda s, x: (s.dense(x) + s.kernel(s.point(x))).relu(),
        dense=nn.Conv2d(4, 4, 3, padding=1),
        point=nn.Conv2d(4, 16, 1, bias=False),
        kernel=nn.Conv2d(16, 4, 3, padding=1),
    )
    assert operators(fused) == {"Conv2d": 1, "relu": 1}


def read_twice(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    return net.norm(y).relu(), y.sigmoid()


def returned_too(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    return net.norm(y), y


def read_raw_and_normed(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    return (y + net.norm(y)).relu()


def test_a_convolution_that_something_else_reads_stays() -> None:
    fused, report = merged(
        read_twice,
        conv=nn.Conv2d(4, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
    )
    assert operators(fused)["BatchNorm2d"] == 1
    assert "something else reads the convolution before it" in reasons(report)


def test_a_convolution_that_is_an_output_stays() -> None:
    fused, _ = merged(
        returned_too,
        conv=nn.Conv2d(4, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
    )
    assert operators(fused) == {"Conv2d": 1, "BatchNorm2d": 1}


def test_one_read_both_raw_and_through_a_batch_norm_still_merges() -> None:
    """MobileIE: conv(x) + BN(conv(x))."""
    fused, _ = merged(
        read_raw_and_normed,
        conv=nn.Conv2d(4, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
    )
    assert operators(fused) == {"Conv2d": 1, "relu": 1}


def test_a_shared_convolution_is_folded_into_each_of_its_calls() -> None:
    fused, _ = merged(
        lambda s, x: s.one(s.conv(x)).relu() + s.two(s.conv(x.sigmoid())).relu(),
        conv=nn.Conv2d(4, 4, 3, padding=1),
        one=nn.BatchNorm2d(4),
        two=nn.BatchNorm2d(4),
    )
    assert operators(fused)["BatchNorm2d"] == 0
    assert len({id(m) for m in fused.modules() if isinstance(m, nn.Conv2d)}) == 2


def test_one_call_of_a_shared_convolution_can_be_folded_alone() -> None:
    fused, _ = merged(
        lambda s, x: s.norm(s.conv(x)).relu() + s.conv(x.sigmoid()).relu(),
        conv=nn.Conv2d(4, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
    )
    assert operators(fused)["BatchNorm2d"] == 0


def broadcast(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    return net.norm(y + net.gate(F.adaptive_avg_pool2d(y, 1))).relu()


def test_a_broadcast_sum_is_not_distributed_over() -> None:
    fused, report = merged(
        broadcast,
        conv=nn.Conv2d(4, 4, 3, padding=1),
        gate=nn.Conv2d(4, 4, 1),
        norm=nn.BatchNorm2d(4),
    )
    assert operators(fused)["BatchNorm2d"] == 1
    assert all(reason.startswith("the operands") for reason in reasons(report))


def test_tensors_of_two_dtypes_are_not_mixed() -> None:
    x = drawn(1, 2, 4, 6, 6).float()

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.narrow(x.bfloat16()) + net.single(x)

    layers = {"narrow": nn.Conv2d(4, 4, 3).bfloat16(), "single": nn.Conv2d(4, 4, 3)}
    model = Net(forward, dict(layers)).eval()
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused)["Conv2d"] == 2
    assert reasons(reparam.report(fused)) == {"a branch has bfloat16 in it, not linear"}
    with torch.no_grad():
        assert torch.equal(model(x), fused(x))


def test_branch_that_is_subsampled_joins_a_strided_one() -> None:
    fused, _ = merged(
        lambda s, x: (s.conv(x) + s.skip(x)[:, :, ::2, ::2]).relu(),
        conv=nn.Conv2d(4, 4, 3, 2, 1),
        skip=nn.Conv2d(4, 4, 1),
    )
    assert operators(fused) == {"Conv2d": 1, "relu": 1}


def test_branches_that_differ_in_size_stay_apart() -> None:
    """Of the rows that the crop leaves, one is stretched over all."""
    fused, report = merged(
        lambda s, x: (s.conv(x) + s.skip(x)[:, :, :1, :1]).relu(),
        conv=nn.Conv2d(4, 4, 3, 2, 1),
        skip=nn.Conv2d(4, 4, 1),
    )
    assert operators(fused)["Conv2d"] == 2
    assert report.applied == ()


def test_a_long_chain_of_sums_ends() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x)
        for _ in range(20):
            y = y + x
        return y.relu()

    fused, _ = merged(forward, conv=nn.Conv2d(4, 4, 3, padding=1))
    assert operators(fused) == {"Conv2d": 1, "relu": 1}


def test_numbers_that_count_stay_integers() -> None:
    fused, _ = merged(
        lambda s, x: (s.conv(x).argmax(1) * 2 * 3).double(), conv=nn.Conv2d(4, 4, 3, padding=1)
    )
    assert operators(fused)["mul"] >= 1

    def doubled_index(net: Any, x: Tensor) -> Tensor:
        return net.conv(x).argmax(1) * 2 * 3

    model = Net(doubled_index, {"conv": nn.Conv2d(4, 4, 1)}).eval()
    fused = reparam.compile(model, passes=passes.DEFAULT)
    x = drawn(1, 2, 4, 6, 6).float()
    assert fused(x).dtype == model(x).dtype == torch.int64


def test_sizes_stay_integers() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = x.cumsum(1)
        return net.conv(x).reshape(y.shape[0] * 2 * 1 * 2, -1)

    fused, _ = merged(forward, conv=nn.Conv2d(4, 4, 1))
    assert fused is not None
