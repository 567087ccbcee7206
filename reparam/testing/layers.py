"""Layers that generated graphs use beside torch's own, in the ways that people write theirs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scale(nn.Module):
    """A layer scale: a factor per channel, before n axes."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * n))

    def forward(self, x: Tensor) -> Tensor:
        """Scale x, (batch, …, channels, *n axes)."""
        return x * self.gamma


class Affine(nn.Module):
    """A factor and a shift per channel, before n axes."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels, *(1,) * n))
        self.beta = nn.Parameter(torch.zeros(channels, *(1,) * n))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift x, (batch, …, channels, *n axes)."""
        return self.alpha * x + self.beta


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose kernels are standardized in every call (Qiao et al., 2019)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch names it
        """Convolve (batch, channels, height, width)."""
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.pow(2).mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(
            input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class DoubledBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose forward is its own: what its class and its numbers say is not all."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch names it
        """Normalize (batch, channels, height, width), and double."""
        return 2 * super().forward(input)
