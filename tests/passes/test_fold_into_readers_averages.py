"""Scales and shifts that pass resizing, pools, slices and flattening on their way to readers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes import fold_into_readers
from tests.fused import operators
from tests.passes.alone import Net, alone, reasons, settled
from tests.passes.readers import GAMMA, IMAGES, Step, between, passed, with_scale

AVERAGES: dict[str, Step] = {
    "nearest": lambda m, y: F.interpolate(y, scale_factor=2),
    "nearest to a size": lambda m, y: F.interpolate(y, (5, 3)),
    "nearest-exact": lambda m, y: F.interpolate(y, scale_factor=1.5, mode="nearest-exact"),
    "bilinear": lambda m, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "bilinear, aligned": lambda m, y: F.interpolate(
        y, size=(4, 13), mode="bilinear", align_corners=True
    ),
    "antialiased": lambda m, y: F.interpolate(y, (4, 3), mode="bilinear", antialias=True),
    "bicubic": lambda m, y: F.interpolate(y, scale_factor=2.0, mode="bicubic"),
    "area": lambda m, y: F.interpolate(y, (4, 3), mode="area"),
    "Upsample": lambda m, y: m.up(y),
    "adaptive_avg_pool2d": lambda m, y: F.adaptive_avg_pool2d(y, (3, 4)),
    "AdaptiveAvgPool2d": lambda m, y: m.pool(y),
    "mean": lambda m, y: y.mean((2, 3), keepdim=True).expand(-1, -1, 2, 2),
    "sizes": lambda m, y: F.interpolate(y, (y.shape[2] * 2, y.shape[3] + 1)),
}


def averaged(name: str) -> Net:
    return between(
        AVERAGES[name],
        up=nn.Upsample(scale_factor=2, mode="bilinear"),
        pool=nn.AdaptiveAvgPool2d((None, 4)),
    )


@pytest.mark.parametrize("name", [name for name in AVERAGES if name not in ("mean", "sizes")])
def test_average_takes_any_scale_and_shift_along(name: str) -> None:
    """γ of zero and below, too."""
    gamma = torch.tensor([0.0, -2.0, 1.0, -0.5, 0.25, 3.0])
    assert passed(with_scale(averaged(name), gamma))


@pytest.mark.parametrize("name", AVERAGES)
def test_average_is_right_whether_or_not_it_is_passed(name: str) -> None:
    passed(with_scale(averaged(name)))


def two_readers(step: Step, **parts: nn.Module) -> Net:
    """Of a batch norm that goes to a convolution in two ways."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return m.after(step(m, y)).mean() + m.other(y)

    model = between(step, other=nn.Conv2d(6, 5, 3), **parts)
    model.function = forward
    return model


@pytest.mark.parametrize(
    ("step", "through"),
    [
        (lambda m, y: y[..., ::2, 1::2], True),
        (lambda m, y: y[:, :, 1:, :-2], True),
        (lambda m, y: y[:, :, 1::3], True),
        (lambda m, y: F.avg_pool2d(y, 3, 2), True),
        (lambda m, y: F.avg_pool2d(y, 2, 2, ceil_mode=True), True),
        (lambda m, y: F.avg_pool2d(y, 3, 1, padding=1), False),
        (lambda m, y: F.avg_pool2d(y, 3, 1, padding=1, count_include_pad=False), False),
        (lambda m, y: F.avg_pool2d(y, 3, divisor_override=4), False),
    ],
)
def test_slices_and_averages(step: Step, through: bool) -> None:
    """With a region of two calls something else deals, so something else reads it as well."""
    assert passed(with_scale(two_readers(step), -GAMMA)) == through


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (lambda y: y.flatten(1), None),
        (lambda y: y.reshape(y.shape[0], -1), None),
        (lambda y: y.reshape(-1, 6 * 72), "channels are mixed with other axes"),
        (lambda y: y.permute(0, 2, 3, 1).flatten(1), "channels are mixed with other axes"),
    ],
)
def test_linear_layer_over_all_features(layout: object, reason: str | None, given: bool) -> None:
    """Channels times pixels, how many of these there are being known from the layer alone."""
    model = Net(
        lambda m, x: m.after(layout(m.norm(m.conv(x)))),
        conv=nn.Conv2d(6, 6, 1),
        norm=nn.BatchNorm2d(6),
        after=nn.Linear(6 * 72, 5),
    )
    fused, report = alone(fold_into_readers, model, IMAGES, given=given, others=(IMAGES[:1],))
    assert [remark.message for remark in report.missed] == [reason] * (reason is not None)
    assert operators(fused)["BatchNorm2d"] == (reason is not None)


STRIDED = "a shift is not constant over space behind a transposed convolution"


def transposed_reader(**options: int) -> Net:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return m.up(y).sum((2, 3)) + m.after(y).sum((2, 3))

    settings = {"kernel_size": 3} | options
    model = between(lambda m, y: y, up=nn.ConvTranspose2d(6, 5, **settings))
    model.function = forward
    return model


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stride": 2}, STRIDED),
        ({"stride": 2, "padding": 1, "output_padding": 1}, STRIDED),
        ({"dilation": 2}, "its shift meets zero padding"),
        ({"kernel_size": 1}, None),
    ],
)
def test_transposed_convolution_among_the_readers(
    options: dict[str, int], reason: str | None
) -> None:
    """It takes in a scale; what a shift adds would differ at the border, if there is any."""
    assert passed(with_scale(transposed_reader(**options), -GAMMA, shift=False))
    model = with_scale(transposed_reader(**options))
    _, report = settled(fold_into_readers, model, IMAGES)
    assert (report.applied == ()) == (reason is not None)
    assert [remark.message for remark in report.missed] == ([reason] if reason else [])


@pytest.mark.parametrize("columns", [6, 3])
def test_transposed_convolution_of_scaled_columns(columns: int) -> None:
    """They are no channels, be they as many or not."""
    model = Net(
        lambda m, x: m.after(m.scale * m.linear(x)),
        linear=nn.Linear(8, columns),
        scale=torch.ones(columns),
        after=nn.ConvTranspose2d(6, 4, 2, 2),
    )
    assert reasons(fold_into_readers, model, IMAGES, given=True) == [
        "the two differ in their number of spatial axes"
    ]
