"""What the families share: the MobileOne block and its parts, stochastic depth, initial weights.

Source: Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone", CVPR 2023, section 3.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK_KEYS = (
    (r"\.rbr_conv\.(\d+)\.", r".branches.conv\1."),
    (r"\.rbr_dense\.", ".branches.conv0."),
    (r"\.rbr_(?:scale|1x1)\.", ".branches.scale."),
    (r"\.rbr_(?:skip|identity)\.", ".branches.identity."),
    (r"\.se\.down\.", ".se.reduce."),
    (r"\.se\.up\.", ".se.expand."),
    (r"\.conv_kxk\.(\d+)\.", r".branches.conv\1."),
    (r"\.conv_kxk\.", ".branches.conv0."),
    (r"\.conv_(?:scale|1x1)\.", ".branches.scale."),
    (r"(?<!branches)\.identity\.", ".branches.identity."),
    (r"\.(?:attn|se)\.fc1\.", ".se.reduce."),
    (r"\.(?:attn|se)\.fc2\.", ".se.expand."),
)
"""(pattern, replacement) rows: from the released names of MobileOne's block and of RepVGG's, and
from timm's for both, to those of `MobileOneBlock`."""


STAGE_KEYS = (
    (r"^stage0\.", "stem."),
    *((rf"^stage{i + 1}\.", f"stages.{i}.") for i in range(4)),
    (r"^linear\.", "head."),
    (r"^head\.fc\.", "head."),
    *BLOCK_KEYS,
)
"""(pattern, replacement) rows of MobileOne and RepVGG: from the released names and timm's."""

STAGE_WIDTHS = (64, 128, 256, 512)
"""Channels of the stages of MobileOne and RepVGG at multiplier 1."""


class ConvBN(nn.Sequential):
    """A k×k convolution without bias, "same" padding for odd k, then a batch norm.

    `(N, in_channels, H, W)` → `(N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)`.
    """

    conv: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        super().__init__(OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(out_channels)))


class SqueezeExcite(nn.Module):
    """Channel attention: `x · σ(expand(ReLU(reduce(mean of x over H and W))))`.

    `width` is that of the layer between.
    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.expand = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.expand(self.reduce(pooled).relu()).sigmoid()


class MobileOneBlock(nn.Module):
    """Sum of parallel branches, then optional squeeze-and-excite, then an activation.

    The branches: `conv_branches` k×k convolutions, a 1×1 "scale" convolution where k > 1, a batch
    norm after each; and a batch norm alone on the identity where stride and widths allow one.
    Without `side_branches`, the k×k convolutions are all there is.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        conv_branches: int = 1,
        side_branches: bool = True,
        squeeze_excite: bool = False,
        activation: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        branches: dict[str, nn.Module] = {
            f"conv{i}": ConvBN(in_channels, out_channels, kernel_size, stride, groups)
            for i in range(conv_branches)
        }
        if side_branches and kernel_size > 1:
            branches["scale"] = ConvBN(in_channels, out_channels, 1, stride, groups)
        if side_branches and stride == 1 and in_channels == out_channels:
            branches["identity"] = nn.BatchNorm2d(out_channels)
        self.branches = nn.ModuleDict(branches)
        narrow = max(1, out_channels // 16)
        self.se = SqueezeExcite(out_channels, narrow) if squeeze_excite else nn.Identity()
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` → `(N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)`."""
        y = functools.reduce(torch.add, [branch(x) for branch in self.branches.values()])
        return self.activation(self.se(y))


class DropPath(nn.Module):
    """Stochastic depth: in training, zeroes whole samples at `rate` and rescales the rest.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → the same."""
        if not self.training or self.rate == 0:
            return x
        return x * functional.dropout(x.new_ones(x.shape[0], 1, 1, 1), self.rate, training=True)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"rate={self.rate:g}"


def truncated_normal(layer: nn.Module) -> None:
    """Weight: truncated normal of standard deviation 0.02; bias: 0. For `nn.Module.apply`."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
