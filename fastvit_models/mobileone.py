"""MobileOne, in training form: the variants and the classifier.

Source: Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone", CVPR 2023, table 2.
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
from fastvit_models.options import check_number, check_options, check_stages, check_whole

DEPTHS = (2, 8, 10, 1)
"""Units of each stage; a unit is a depthwise 3×3 block, then a pointwise one."""


@dataclass(frozen=True)
class MobileOneConfig:
    """What tells the variants apart.

    Raises `ModelOptionError` for a value out of range.
    """

    multipliers: tuple[float, float, float, float]
    """Channels of each stage over those of `STAGE_WIDTHS`."""
    conv_branches: int = 1
    """k×k convolutions beside each other in every block behind the stem."""
    squeeze_excite: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Units with squeeze-and-excite at the end of each stage."""

    def __post_init__(self) -> None:
        check_stages("multipliers", self.multipliers)
        check_stages("squeeze_excite", self.squeeze_excite)
        for stage, width in enumerate(STAGE_WIDTHS):
            check_number(f"multipliers[{stage}]", self.multipliers[stage], 1 / width)
            check_whole(f"squeeze_excite[{stage}]", self.squeeze_excite[stage], 0)
        check_whole("conv_branches", self.conv_branches, 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(int(w * m) for w, m in zip(STAGE_WIDTHS, self.multipliers, strict=True))


VARIANTS = {
    "mobileone_s0": MobileOneConfig((0.75, 1, 1, 2), conv_branches=4),
    "mobileone_s1": MobileOneConfig((1.5, 1.5, 2, 2.5)),
    "mobileone_s2": MobileOneConfig((1.5, 2, 2.5, 4)),
    "mobileone_s3": MobileOneConfig((2, 2.5, 3, 4)),
    "mobileone_s4": MobileOneConfig((3, 3.5, 3.5, 4), squeeze_excite=(0, 0, 5, 1)),
}


def create_mobileone(
    config: MobileOneConfig,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    features_only: bool = False,
) -> Classifier | FeatureExtractor:
    """Build a MobileOne with fresh weights, initialised as torch does by default.

    With `features_only` it is a `FeatureExtractor`, and `num_classes` plays no part.

    Raises `ModelOptionError` for a value out of range.
    """
    check_options(num_classes=num_classes, in_channels=in_channels)
    width = min(STAGE_WIDTHS[0], config.widths[0])  # wider ones keep the stem, as released
    stem = MobileOneBlock(in_channels, width, 3, stride=2, activation=nn.ReLU)
    stages = nn.ModuleList()
    for depth, out, excited in zip(DEPTHS, config.widths, config.squeeze_excite, strict=True):
        blocks: list[nn.Module] = []
        for unit in range(depth):
            blocks += _unit(config, width, out, 2 if unit == 0 else 1, unit >= depth - excited)
            width = out
        stages.append(nn.Sequential(*blocks))
    parts = Parts(stem, stages, describe_stages(config.widths), STAGE_KEYS)
    return assembled(parts, width, num_classes, features_only)


def _unit(
    config: MobileOneConfig, width: int, out: int, stride: int, squeeze_excite: bool
) -> list[nn.Module]:
    """`(N, width, H, W)` → `(N, out, ⌈H/stride⌉, ⌈W/stride⌉)`."""
    depthwise, pointwise = (
        MobileOneBlock(
            width, channels, kernel, stride=step, groups=groups,
            conv_branches=config.conv_branches, squeeze_excite=squeeze_excite, activation=nn.ReLU,
        )
        for channels, kernel, step, groups in ((width, 3, stride, width), (out, 1, 1, 1))
    )  # fmt: skip
    return [depthwise, pointwise]
