"""NFNet (Brock et al., 2021, https://arxiv.org/abs/2102.06171): weight-standardised convolutions.

The weight is computed in the forward, of parameters alone, so it is a constant of the inference.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

GAMMA = 1.7139588594436646
"""What keeps the variance of a ReLU's output."""


class ScaledStdConv2d(nn.Conv2d):
    """`gain * scale * (w - mean(w)) / sqrt(var(w) * fan_in + eps)`, by output channel (eq. 2).

    The fan-in is in `scale` or under the root; `by_batch_norm` writes it as a batch norm whose
    channels are the output channels.
    """

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        by_batch_norm: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.gain = nn.Parameter(0.5 + torch.rand(outer, 1, 1, 1))
        self.eps, self.by_batch_norm = eps, by_batch_norm
        self.fan_in = self.weight[0].numel()
        self.scale = GAMMA * (self.fan_in**-0.5 if by_batch_norm else 1)

    def standardised(self) -> Tensor:
        if self.by_batch_norm:
            weight = self.weight.reshape(1, self.out_channels, -1)
            scale = (self.gain * self.scale).view(-1)
            weight = F.batch_norm(
                weight, None, None, weight=scale, training=True, momentum=0.0, eps=self.eps
            )
            return weight.reshape_as(self.weight)
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        root = torch.sqrt(variance * self.fan_in + self.eps)
        return (self.weight - mean) / root * self.gain * self.scale

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
        return F.conv2d(
            input,
            self.standardised(),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )


class MomentsApart(ScaledStdConv2d):
    """The same, with mean and variance by methods of the tensor, and rsqrt."""

    def standardised(self) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        variance = self.weight.var(dim=(1, 2, 3), unbiased=False, keepdim=True)
        scale = torch.rsqrt(variance * self.fan_in + self.eps) * self.gain * self.scale
        return self.weight * scale - mean * scale


class Block(nn.Module):
    """`x + conv(relu(conv(relu(x))))`, without the scalars of the signal propagation."""

    def __init__(self, channels: int, by_batch_norm: bool) -> None:
        super().__init__()
        self.a = ScaledStdConv2d(channels, channels, 1, by_batch_norm=by_batch_norm)
        self.b = ScaledStdConv2d(channels, channels, 3, by_batch_norm=by_batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(F.relu(x))))


@settings(max_examples=10)
@given(
    groups=st.integers(1, 2),
    inner=st.integers(1, 3),
    outer=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-2]),
    form=st.sampled_from(["formula", "moments", "batch norm"]),
)
def test_convolution(
    groups: int, inner: int, outer: int, kernel: int, stride: int, bias: bool, eps: float, form: str
) -> None:
    conv_class = MomentsApart if form == "moments" else ScaledStdConv2d
    model = conv_class(
        groups * inner, groups * outer, kernel, stride, groups, bias, form == "batch norm", eps
    )
    assert minimal(model, example(2, groups * inner, 9, 8)) == {"Conv2d": 1}


@settings(max_examples=5)
@given(channels=st.integers(2, 6), by_batch_norm=st.booleans())
def test_block(channels: int, by_batch_norm: bool) -> None:
    counts = minimal(Block(channels, by_batch_norm), example(2, channels, 9, 8))
    assert counts == {"Conv2d": 2, "relu": 2, "add": 1}


@settings(max_examples=5)
@given(channels=st.integers(1, 4), by_batch_norm=st.booleans())
def test_batch_norm_behind(channels: int, by_batch_norm: bool) -> None:
    """What has become a plain convolution takes in what follows."""
    conv = ScaledStdConv2d(2, channels, 3, by_batch_norm=by_batch_norm)
    model = nn.Sequential(conv, nn.BatchNorm2d(channels))
    assert minimal(model, example(2, 2, 9, 8)) == {"Conv2d": 1}


SCHEMES = [
    Scheme("NFNet by formula", lambda: ScaledStdConv2d(4, 6, 3), (2, 4, 9, 8), {"Conv2d": 1}),
    Scheme(
        "NFNet by batch norm", lambda: ScaledStdConv2d(4, 6, 3, by_batch_norm=True), (2, 4, 9, 8),
        {"Conv2d": 1},
    ),
]  # fmt: skip
