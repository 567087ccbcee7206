"""Arithmetic with constants and instance norms: what is a scale and shift per channel, and folds.

Before and after a convolution the channels are known, with example inputs and without.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.algebra import affine, batch_norm_affine
from reparam.values import BatchNorm, Conv, Opaque, Sum, Value
from tests.lifted import SCALE, SHAPES, SHIFT, Forward, Net, lifted, same
from tests.strategies import drawn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
ONES = torch.ones(4, dtype=torch.float64)
INVERSE = 1 / SCALE
GUARDS = {"_assert", "eq", "getattr"}
"""Of a number of axes that was learned from an example."""


class Between(nn.Module):
    """A forward between two convolutions, on what the first makes."""

    def __init__(self, n: int, forward: Forward, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.net = CONVS[n - 1](4, 4, 1), Net(forward, layer)
        self.last = CONVS[n - 1](4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.net(self.first(x)))


def column(vector: Tensor) -> Tensor:
    """A number per channel, as it spreads over images."""
    return vector[:, None, None]


def scaled(scale: float, shift: float, n: int = 2) -> Conv:
    return affine(ONES * scale, ONES * shift, n)


# fmt: off
AFFINE: list[tuple[int, Forward, Value]] = [
    (2, lambda m, x: x / column(m.scale), affine(INVERSE, None, 2)),
    (1, lambda m, x: x.div(m.scale[:, None]), affine(INVERSE, None, 1)),
    (3, lambda m, x: torch.true_divide(x, column(m.scale)[..., None]), affine(INVERSE, None, 3)),
    (2, lambda m, x: x.divide(other=column(m.scale)), affine(INVERSE, None, 2)),
    (2, lambda m, x: x.divide_(column(m.scale)), affine(INVERSE, None, 2)),
    (2, lambda m, x: x / torch.full((1,), 4.0), affine(ONES / 4, None, 2)),
    (2, lambda m, x: torch.true_divide(x, 4), Sum((0.25,))),
    (2, lambda m, x: torch.negative(x), Sum((-1.0,))),
    (2, lambda m, x: x.multiply(column(m.scale)), affine(SCALE, None, 2)),
    (2, lambda m, x: torch.multiply(3, x), Sum((3.0,))),
    (2, lambda m, x: torch.subtract(x, column(m.shift), alpha=2), affine(ONES, -2 * SHIFT, 2)),
    (2, lambda m, x: x.subtract(x), Sum((1.0, -1.0))),
    (2, lambda m, x: torch.rsub(x, column(m.shift), alpha=2), affine(-2 * ONES, SHIFT, 2)),
    (2, lambda m, x: torch.rsub(x, 1), scaled(-1, 1)),
    (2, lambda m, x: 1 - x, scaled(-1, 1)),
    (3, lambda m, x: 0.5 + x, scaled(1, 0.5, 3)),
    (1, lambda m, x: x - 3, scaled(1, -3, 1)),
    (2, lambda m, x: torch.add(x, 2, alpha=3), scaled(1, 6)),
    (2, lambda m, x: torch.sub(x, 2, alpha=-3), scaled(1, 6)),
    (2, lambda m, x: x.sub_(2), scaled(1, -2)),
    (2, lambda m, x: x - 0, Sum((1.0,))),
    (2, lambda m, x: torch.zeros(()) + x, Sum((1.0,))),
    (2, lambda m, x: torch.tensor(1.5) - x, scaled(-1, 1.5)),
    (2, lambda m, x: 0.0 - x, Sum((-1.0,))),
    (2, lambda m, x: torch.add(x, 2, alpha=0), Sum((1.0,))),
]
# fmt: on


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("n", "forward", "expected"), AFFINE)
def test_arithmetic_with_constants(n: int, forward: Forward, expected: Value, known: bool) -> None:
    x = drawn(0, *SHAPES[n])
    *_, call, last = lifted(Between(n, forward), x, known)
    assert same(call.value, expected)
    assert isinstance(last.value, Conv)
    folds(Between(n, forward), x, known)


def folds(model: nn.Module, x: Tensor, known: bool) -> None:
    """One convolution is left, that computes the same, also of an image without a batch."""
    model = model.double().eval()
    fused = reparam.compile(model, x) if known else reparam.compile(model)
    reparam.verify(model, fused, x).raise_if_different()
    counts = reparam.report(fused).after.operators
    left = {name: count for name, count in counts.items() if name not in GUARDS}
    assert left in [{kind.__name__: 1} for kind in CONVS]
    if not known:
        reparam.verify(model, fused, x[0]).raise_if_different()


UNKNOWN = "the channels of its input are not known"

# fmt: off
OPAQUE: list[tuple[Forward, str | None]] = [
    (lambda m, x: column(m.scale) / x, None),
    (lambda m, x: 2 / x, None),
    (lambda m, x: x / x, None),
    (lambda m, x: x.div(column(m.scale), rounding_mode="floor"), None),
    (lambda m, x: x.div(4, rounding_mode="trunc"), None),
    (lambda m, x: x / column(torch.arange(1, 5)), None),
    (lambda m, x: x / column(torch.tensor([1.0, 2.0, float("inf"), 4.0])), None),
    (lambda m, x: (x / column(torch.tensor([1.0, 0.0, 2.0, 4.0]))).clamp(-9, 9), None),
    (lambda m, x: (x + float("inf")).clamp(-9, 9), None),
    (lambda m, x: torch.add(x, other=True), None),
    (lambda m, x: (x + 1j).real, None),
    (lambda m, x: x[:, :1] / column(m.scale), f"it may be a scale per channel, but {UNKNOWN}"),
    (lambda m, x: x.sum(1, keepdim=True) / m.scale[None, :, None, None],
        f"it may be a scale per channel, but {UNKNOWN}"),
    (lambda m, x: (x.long() + 1).double(), None),
    (lambda m, x: x.long() - 1.5, None),
    (lambda m, x: (x.long() + torch.tensor(0.0)).double(), None),
]
# fmt: on


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("forward", "reason"), OPAQUE)
def test_what_is_no_linear_map_stays(forward: Forward, reason: str | None, known: bool) -> None:
    x = drawn(0, *SHAPES[2])
    model = Net(lambda m, x: forward(m, m.layer(x)), nn.Conv2d(4, 4, 1)).double().eval()
    fused = reparam.compile(model, x) if known else reparam.compile(model)
    reparam.verify(model, fused, x).raise_if_different()
    opaque = [call.value for call in lifted(model, x, known) if isinstance(call.value, Opaque)]
    assert {value.reason for value in opaque if value.reason} <= {reason}
    assert [value for value in opaque if value.__name__ not in ("getitem", "clamp", "sum")]


def test_a_shift_of_unknown_channels_says_so() -> None:
    (call,) = lifted(Net(lambda m, x: x + 1), drawn(0, *SHAPES[2]))
    assert isinstance(call.value, Opaque)
    assert call.value.reason == f"it may be a shift per channel, but {UNKNOWN}"


@pytest.mark.parametrize("known", [True, False])
def test_sizes_are_no_tensors(known: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        tall, wide = x.shape[-2], x.shape[-1]
        return x * (1 - tall) + (tall + 1) / 2 + (0 - wide) + column(torch.full((4,), 1.0 + wide))

    model = Net(lambda m, x: forward(m, m.layer(x)), nn.Conv2d(4, 4, 1)).double().eval()
    x = drawn(0, *SHAPES[2])
    fused = reparam.compile(model, x) if known else reparam.compile(model)
    reparam.verify(model, fused, x).raise_if_different()
    reparam.verify(model, fused, drawn(1, 3, 4, 5, 7)).raise_if_different()


def test_a_wider_divisor_widens_the_result() -> None:
    """What it is divided by is float64, and so is the result; there is no one convolution."""

    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) / column(SCALE)

    model, x = Wider().eval(), drawn(0, *SHAPES[2]).float()
    fused = reparam.compile(model, x)
    assert fused(x).dtype == model(x).dtype == torch.float64
    assert torch.equal(fused(x), model(x))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_instance_norm_by_running_statistics(n: int, scales: bool, known: bool) -> None:
    x = drawn(0, *SHAPES[n])
    norm = NORMS[n - 1](4, 0.1, affine=scales, track_running_stats=True)
    model = Between(n, lambda m, x: m.layer(x), norm)
    statistics(norm)
    *_, call, _ = lifted(model, x, known)
    tensors = norm.running_mean, norm.running_var, norm.weight, norm.bias
    mean, variance, weight, bias = (None if t is None else t.detach() for t in tensors)
    expected = BatchNorm(mean, variance, weight, bias, norm.eps, n)
    assert same(call.value, expected if known else batch_norm_affine(expected))
    folds(model, x, known)


def statistics(norm: Any) -> None:
    """Statistics, scale and shift that hide nothing."""
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            if tensor is not None:
                tensor.copy_(drawn(tensor.numel(), *tensor.shape))
        norm.running_var.copy_(drawn(7, 4).abs() + 0.5)


def test_instance_norm_of_images_without_a_batch() -> None:
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    statistics(norm)
    model = Between(2, lambda m, x: m.layer(x), norm).double().eval()
    x = drawn(0, *SHAPES[2])[0]
    folds(model, x, True)
    (call,) = lifted(Net(lambda m, x: m.layer(x), norm), x)
    assert isinstance(call.value, Conv)


@pytest.mark.parametrize("change", [{"track_running_stats": False}, {"training": True}])
def test_instance_norm_by_statistics_of_each_image(change: dict[str, bool]) -> None:
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    model = Between(2, lambda m, x: m.layer(x), norm).double().eval()
    for name, value in change.items():
        setattr(norm, name, value)
    fused = reparam.compile(model)
    assert reparam.report(fused).after.operators["Conv2d"] == 2
    messages = {remark.message for remark in reparam.report(fused).missed}
    assert messages & {"it uses the statistics of each image"}


def test_an_instance_norm_that_normalizes_in_a_way_of_its_own() -> None:
    class Doubled(nn.InstanceNorm2d):
        def _apply_instance_norm(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super()._apply_instance_norm(x) * 2

    norm = Doubled(4, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.Conv2d(4, 4, 1)).double().eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    fused = reparam.compile(model)
    torch.testing.assert_close(fused(x), model(x))
    messages = [remark.message for remark in reparam.report(fused).missed]
    assert "its class Doubled normalizes in a way of its own" in messages
