"""A layer that can't be traced, with its meaning, and a block whose gains can be folded."""

import math

import torch
from torch import Tensor, nn

import reparam
from reparam.algebra import affine
from reparam.values import Conv

GAIN = math.sqrt(2 / (1 - 1 / math.pi))
"""With it, the ReLU of a standard normal has variance one."""


class Standardize(nn.Module):
    """Take a mean off each channel, and divide by a deviation: (batch, channels, height, width)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.linspace(-1, 1, channels))
        self.deviation = nn.Buffer(torch.linspace(0.5, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Standardize images; what is standardized already stays."""
        if bool((self.deviation == 1).all()) and not bool(self.mean.any()):
            return x
        return (x - self.mean[:, None, None]) / self.deviation[:, None, None]


@reparam.lift(Standardize)
def standardize(layer: Standardize) -> Conv:
    """(x - μ) / σ, a factor and a shift per channel over two axes."""
    scale = 1 / layer.deviation.double()
    return affine(scale, -scale * layer.mean.double(), 2)


class GainBlock(nn.Module):
    """A convolution, a ReLU, and a gain that keeps the variance: (batch, 4, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        return torch.relu(self.conv(x)) * GAIN
