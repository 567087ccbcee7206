"""RepVGG, in training form: the variants and the classifier.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, tables 2 and 3.
"""

from dataclasses import dataclass

from torch import nn

from fastvit_models.backbone import Backbone, Features, Parts, checked_options, feature_info
from fastvit_models.blocks import BLOCK_KEYS, MobileOneBlock

WIDTHS = (64, 128, 256, 512)
"""Channels of each stage at multiplier 1."""


@dataclass(frozen=True)
class RepVGGConfig:
    """What tells the variants apart."""

    depths: tuple[int, int, int, int]
    multiplier: float
    """Channels over those of `WIDTHS`, in all stages but the last."""
    last_multiplier: float
    """And in the last."""
    groups: int = 1
    """Of the convolutions of every other layer, from the third of the network to the 27th."""
    squeeze_excite: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        multipliers = (*(self.multiplier,) * 3, self.last_multiplier)
        return tuple(int(w * m) for w, m in zip(WIDTHS, multipliers, strict=True))


A, B = (2, 4, 14, 1), (4, 6, 16, 1)
VARIANTS = {  # depths, multiplier, that of the last stage, groups
    "repvgg_a0": RepVGGConfig(A, 0.75, 2.5),
    "repvgg_a1": RepVGGConfig(A, 1, 2.5),
    "repvgg_a2": RepVGGConfig(A, 1.5, 2.75),
    "repvgg_b0": RepVGGConfig(B, 1, 2.5),
    "repvgg_b1": RepVGGConfig(B, 2, 4),
    "repvgg_b1g2": RepVGGConfig(B, 2, 4, 2),
    "repvgg_b1g4": RepVGGConfig(B, 2, 4, 4),
    "repvgg_b2": RepVGGConfig(B, 2.5, 5),
    "repvgg_b2g2": RepVGGConfig(B, 2.5, 5, 2),
    "repvgg_b2g4": RepVGGConfig(B, 2.5, 5, 4),
    "repvgg_b3": RepVGGConfig(B, 3, 5),
    "repvgg_b3g2": RepVGGConfig(B, 3, 5, 2),
    "repvgg_b3g4": RepVGGConfig(B, 3, 5, 4),
    "repvgg_d2se": RepVGGConfig((8, 14, 24, 1), 2.5, 5, squeeze_excite=True),
}

GROUPED_LAYERS = range(2, 27, 2)
"""The layers with groups, the stem being layer 0."""

KEYS = (
    (r"^stage0\.", "stem."),
    *((rf"^stage{i + 1}\.", f"stages.{i}.") for i in range(4)),
    (r"^linear\.", "head."),
    (r"^head\.fc\.", "head."),
    *BLOCK_KEYS,
)
"""(pattern, replacement) rows, from the released names and timm's to the ones here."""


def create_repvgg(
    config: RepVGGConfig,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    features_only: bool = False,
) -> Backbone | Features:
    """Build a RepVGG with fresh weights, initialised as torch does by default.

    With `features_only` it is a `Features`, and `num_classes` plays no part.

    Raises `ModelOptionError` for a value out of range.
    """
    checked_options(num_classes, in_channels)
    width = min(64, config.widths[0])
    stem = _block(config, in_channels, width, 2, layer=0)
    stages, layer = nn.ModuleList(), 1
    for depth, out in zip(config.depths, config.widths, strict=True):
        blocks: list[nn.Module] = []
        for position in range(depth):
            blocks.append(_block(config, width, out, 2 if position == 0 else 1, layer))
            width, layer = out, layer + 1
        stages.append(nn.Sequential(*blocks))
    parts = Parts(stem, stages, feature_info(config.widths), KEYS)
    if features_only:
        return Features(parts)
    return Backbone(parts, width, num_classes)


def _block(
    config: RepVGGConfig, in_channels: int, out_channels: int, stride: int, layer: int
) -> MobileOneBlock:
    """3×3, 1×1 and identity, a batch norm on each: MobileOne's block with one convolution."""
    return MobileOneBlock(
        in_channels,
        out_channels,
        3,
        stride=stride,
        groups=config.groups if layer in GROUPED_LAYERS else 1,
        squeeze_excite=config.squeeze_excite,
        activation=nn.ReLU,
    )
