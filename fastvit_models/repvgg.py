"""RepVGG, in training form: the variants and the classifier.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, tables 2 and 3.
"""

from dataclasses import dataclass

from torch import nn

from fastvit_models.backbone import (
    Classifier,
    FeatureExtractor,
    Parts,
    assembled,
    describe_stages,
)
from fastvit_models.blocks import STAGE_KEYS, STAGE_WIDTHS, MobileOneBlock
from fastvit_models.errors import ModelOptionError
from fastvit_models.options import check_number, check_options, check_stages, check_whole


@dataclass(frozen=True)
class RepVGGConfig:
    """What tells the variants apart.

    Raises `ModelOptionError` for a value out of range.
    """

    depths: tuple[int, int, int, int]
    """Blocks of each stage."""
    multiplier: float
    """Channels over those of `STAGE_WIDTHS`, in all stages but the last."""
    last_multiplier: float
    """And in the last."""
    groups: int = 1
    """Of the convolutions of every other layer, from the third of the network to the 27th."""
    squeeze_excite: bool = False
    """Whether every block has squeeze-and-excite, the stem too."""

    def __post_init__(self) -> None:
        check_stages("depths", self.depths)
        for stage, depth in enumerate(self.depths):
            check_whole(f"depths[{stage}]", depth, 1)
        check_number("multiplier", self.multiplier, 1 / STAGE_WIDTHS[0])
        check_number("last_multiplier", self.last_multiplier, 1 / STAGE_WIDTHS[-1])
        check_whole("groups", self.groups, 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        multipliers = (*(self.multiplier,) * 3, self.last_multiplier)
        return tuple(int(w * m) for w, m in zip(STAGE_WIDTHS, multipliers, strict=True))


DEPTHS_A, DEPTHS_B = (2, 4, 14, 1), (4, 6, 16, 1)
VARIANTS = {  # depths, multiplier, that of the last stage
    "repvgg_a0": RepVGGConfig(DEPTHS_A, 0.75, 2.5),
    "repvgg_a1": RepVGGConfig(DEPTHS_A, 1, 2.5),
    "repvgg_a2": RepVGGConfig(DEPTHS_A, 1.5, 2.75),
    "repvgg_b0": RepVGGConfig(DEPTHS_B, 1, 2.5),
    "repvgg_b1": RepVGGConfig(DEPTHS_B, 2, 4),
    "repvgg_b1g2": RepVGGConfig(DEPTHS_B, 2, 4, groups=2),
    "repvgg_b1g4": RepVGGConfig(DEPTHS_B, 2, 4, groups=4),
    "repvgg_b2": RepVGGConfig(DEPTHS_B, 2.5, 5),
    "repvgg_b2g2": RepVGGConfig(DEPTHS_B, 2.5, 5, groups=2),
    "repvgg_b2g4": RepVGGConfig(DEPTHS_B, 2.5, 5, groups=4),
    "repvgg_b3": RepVGGConfig(DEPTHS_B, 3, 5),
    "repvgg_b3g2": RepVGGConfig(DEPTHS_B, 3, 5, groups=2),
    "repvgg_b3g4": RepVGGConfig(DEPTHS_B, 3, 5, groups=4),
    "repvgg_d2se": RepVGGConfig((8, 14, 24, 1), 2.5, 5, squeeze_excite=True),
}

GROUPED_LAYERS = range(2, 27, 2)
"""The layers with groups, the stem being layer 0."""


def create_repvgg(
    config: RepVGGConfig,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    features_only: bool = False,
) -> Classifier | FeatureExtractor:
    """Build a RepVGG with fresh weights, initialised as torch does by default.

    With `features_only` it is a `FeatureExtractor`, and `num_classes` plays no part.

    Raises `ModelOptionError` for a value out of range.
    """
    check_options(num_classes=num_classes, in_channels=in_channels)
    width = min(STAGE_WIDTHS[0], config.widths[0])  # wider ones keep the stem, as released
    stem = _block(config, in_channels, width, 2, layer=0)
    stages, layer = nn.ModuleList(), 1
    for depth, out in zip(config.depths, config.widths, strict=True):
        blocks: list[nn.Module] = []
        for position in range(depth):
            blocks.append(_block(config, width, out, 2 if position == 0 else 1, layer))
            width, layer = out, layer + 1
        stages.append(nn.Sequential(*blocks))
    parts = Parts(stem, stages, describe_stages(config.widths), STAGE_KEYS)
    return assembled(parts, width, num_classes, features_only)


def _block(
    config: RepVGGConfig, in_channels: int, out_channels: int, stride: int, layer: int
) -> MobileOneBlock:
    """3×3, 1×1 and identity, a batch norm on each: MobileOne's block with one convolution."""
    groups = config.groups if layer in GROUPED_LAYERS else 1
    if in_channels % groups or out_channels % groups:
        raise ModelOptionError(
            f"groups is {groups}, and layer {layer} has {in_channels} channels in and "
            f"{out_channels} out: give a number that divides both"
        )
    return MobileOneBlock(
        in_channels,
        out_channels,
        3,
        stride=stride,
        groups=groups,
        squeeze_excite=config.squeeze_excite,
        activation=nn.ReLU,
    )
