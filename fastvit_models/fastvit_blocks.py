"""The building blocks of FastViT, in training form.

Source: Vasu et al., "FastViT: A Fast Hybrid Vision Transformer using Structural
Reparameterization", ICCV 2023. Where the paper and the released code differ, these compute what
the released code does, so that the released weights mean the same here.
"""

import torch
from torch import Tensor, nn

from fastvit_models.blocks import ConvBN, DropPath, MobileOneBlock, truncated_normal

HEAD_WIDTH = 32
"""Channels of an attention head."""


class ConvFFN(nn.Module):
    """The channel mixer: a depthwise 7×7 with batch norm, then a two-layer perceptron per pixel."""

    def __init__(self, channels: int, hidden_channels: int, dropout: float) -> None:
        super().__init__()
        self.depthwise = ConvBN(channels, channels, 7, groups=channels)
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1)
        self.activation = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.apply(truncated_normal)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        hidden = self.dropout(self.activation(self.fc1(self.depthwise(x))))
        return self.dropout(self.fc2(hidden))


class RepMixer(nn.Module):
    """The convolutional token mixer: `x + γ·(mixer(x) − norm(x))`.

    The paper (equation 2) prints `DWConv(BN(x)) + x`, which is not one convolution at a zero-padded
    border; the released code computes what is written here.
    """

    def __init__(self, channels: int, layer_scale: float, overparameterized: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mixer = MobileOneBlock(
            channels, channels, 3, groups=channels, side_branches=overparameterized
        )
        self.layer_scale = _layer_scale(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))


class PoolingMixer(nn.Module):
    """What RepMixer is measured against: `x + γ·(average of 3×3 pixels − x)`.

    Source: Yu et al., "MetaFormer Is Actually What You Need for Vision", CVPR 2022, equation 4.
    """

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.layer_scale = _layer_scale(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        return x + self.layer_scale * (self.pool(x) - x)


class MetaFormerBlock(nn.Module):
    """A token mixer, which has its own residual, then a residual ConvFFN."""

    def __init__(
        self,
        token_mixer: nn.Module,
        channels: int,
        mlp_ratio: int,
        layer_scale: float,
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.ffn = ConvFFN(channels, mlp_ratio * channels, dropout)
        self.layer_scale = _layer_scale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale * self.ffn(x))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, heads of 32 channels, no bias in q, k and v.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, equation 1. As in the
    released code, q is scaled before the product.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.heads = channels // HEAD_WIDTH
        self.scale = HEAD_WIDTH**-0.5
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.apply(truncated_normal)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
        weights = self.dropout(((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1))
        mixed = self.dropout(self.proj((weights @ v).transpose(1, 2).flatten(2)))
        return mixed.transpose(1, 2).reshape(x.shape)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """`(N, H·W, channels)` → `(N, heads, H·W, 32)`."""
        return torch.unflatten(tokens, -1, (self.heads, HEAD_WIDTH)).transpose(1, 2)


class AttentionBlock(nn.Module):
    """Residual attention, then a residual ConvFFN."""

    def __init__(
        self, channels: int, mlp_ratio: int, layer_scale: float, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.token_mixer = Attention(channels, dropout)
        self.layer_scale_1 = _layer_scale(channels, layer_scale)
        self.ffn = ConvFFN(channels, mlp_ratio * channels, dropout)
        self.layer_scale_2 = _layer_scale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        x = x + self.drop_path(self.layer_scale_1 * self.token_mixer(self.norm(x)))
        return x + self.drop_path(self.layer_scale_2 * self.ffn(x))


class PatchEmbed(nn.Module):
    """Halves the resolution and doubles the width, between two stages.

    There is no activation after the sum: the released code computes a GELU there and discards it,
    and the released weights were trained so.
    """

    def __init__(self, channels: int, overparameterized: bool = True) -> None:
        super().__init__()
        wide = 2 * channels
        self.large = ConvBN(channels, wide, 7, stride=2, groups=channels)
        self.small = (
            ConvBN(channels, wide, 3, stride=2, groups=channels) if overparameterized else None
        )
        self.pointwise = MobileOneBlock(
            wide, wide, 1, side_branches=overparameterized, activation=nn.GELU
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → `(N, 2·channels, ⌈H/2⌉, ⌈W/2⌉)`."""
        y = self.large(x)
        return self.pointwise(y if self.small is None else y + self.small(x))


class ConditionalPositionEncoding(nn.Module):
    """Adds a depthwise 7×7 convolution of the input to it.

    Source: Chu et al., "Conditional Positional Encodings for Vision Transformers", ICLR 2023.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        return self.conv(x) + x


def _layer_scale(channels: int, value: float) -> nn.Parameter:
    """The γ of `x + γ·f(x)`, `(channels, 1, 1)`.

    Source: Touvron et al., "Going deeper with Image Transformers", ICCV 2021, equation 4.
    """
    return nn.Parameter(torch.full((channels, 1, 1), float(value)))
