"""Modules that several schemes are built around."""

import torch
from torch import Tensor, fx, nn

from tests.schemes.scheme import compiled


class LayerScale(nn.Module):
    """`gamma * x`, one number per channel (CaiT, https://arxiv.org/abs/2103.17239, eq. 4).

    Args:
        shape: of gamma: (channels,) for tokens, (channels, 1, 1) for images.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1e-5 * torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class Residual(nn.Module):
    """`x + f(x)`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.function = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(x)


class Tokens(nn.Module):
    """A stem that makes tokens, (batch, height * width, channels), of an image of 3 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x))).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over tokens, (batch, tokens, channels), written out."""

    def __init__(self, channels: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.projection = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.projection((attention @ v).transpose(1, 2).reshape(batch, tokens, channels))


def inference_form(model: nn.Module, x: Tensor, given: bool = False) -> fx.GraphModule:
    """The compiled model itself, also of a model that `minimal` has left in float64."""
    _, fused = compiled(model.float(), x, given)
    return fused
