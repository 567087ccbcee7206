"""RepViT, in training form: the variants and the classifier, with and without a distilled head.

Source: Wang et al., "RepViT: Revisiting Mobile CNN From ViT Perspective", CVPR 2024. Where the
paper and the released code differ, this computes what the released code does.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from fastvit_models.backbone import (
    Classifier,
    FeatureExtractor,
    Parts,
    describe_stages,
)
from fastvit_models.blocks import ConvBN, DropPath, SqueezeExcite, truncated_normal
from fastvit_models.options import check_options, check_stages, check_whole


@dataclass(frozen=True)
class RepViTConfig:
    """What tells the variants apart. A stage has twice the width of the one before it.

    Raises `ModelOptionError` for a value out of range.
    """

    depths: tuple[int, int, int, int]
    """Blocks of each stage; but in the first, the first of them halves the resolution."""
    width: int
    """Channels of the first stage."""
    excite_last: bool = False
    """Whether the last block of all has squeeze-and-excite."""

    def __post_init__(self) -> None:
        check_stages("depths", self.depths)
        for stage, depth in enumerate(self.depths):
            check_whole(f"depths[{stage}]", depth, 0 if stage == 0 else 1)
        check_whole("width", self.width, 2)  # the stem's first convolution has half of it

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width * 2**stage for stage in range(len(self.depths)))

    def excited(self, stage: int, block: int) -> bool:
        """Whether a block has squeeze-and-excite: every other one, never the last of a stage."""
        if block == self.depths[stage] - 1:
            return self.excite_last and stage == len(self.depths) - 1
        return block % 2 == (0 if stage == 0 else 1)


VARIANTS = {
    "repvit_m0_6": RepViTConfig((2, 3, 10, 2), 40, excite_last=True),
    "repvit_m0_9": RepViTConfig((3, 4, 16, 3), 48),
    "repvit_m1_0": RepViTConfig((3, 4, 16, 3), 56),
    "repvit_m1_1": RepViTConfig((3, 4, 14, 3), 64),
    "repvit_m1_5": RepViTConfig((5, 6, 26, 5), 64),
    "repvit_m2_3": RepViTConfig((7, 8, 36, 3), 80),
}

KEYS = (
    (r"^features\.0\.0\.", "stem.conv1."),
    (r"^features\.0\.2\.", "stem.conv2."),
    (r"\.token_mixer\.2\.", ".pointwise."),
    (r"\.token_mixer\.0\.", ".token_mixer."),
    (r"\.token_mixer\.1\.", ".se."),
    (r"\.spatial_downsample\.", ".depthwise."),
    (r"\.channel_downsample\.", ".pointwise."),
    (r"\.ffn\.", ".channel_mixer."),
    (r"\.token_mixer\.conv\.", ".token_mixer.large."),
    (r"\.token_mixer\.conv1\.", ".token_mixer.small."),
    (r"\.token_mixer\.bn\.", ".token_mixer.norm."),
    (r"\.se\.fc1\.", ".se.reduce."),
    (r"\.se\.fc2\.", ".se.expand."),
    (r"\.channel_mixer\.(?:m\.0|conv1)\.", ".channel_mixer.expand."),
    (r"\.channel_mixer\.(?:m\.2|conv2)\.", ".channel_mixer.project."),
    (r"^classifier\.(weight|bias)$", r"head.\1"),  # of the fused form of both
    (r"^(?:classifier\.classifier|head\.head)\.", "head.classifier."),
    (r"^(?:classifier\.classifier_dist|head\.head_dist)\.", "head.distilled."),
    (r"^(head\..*)\.bn\.", r"\1.norm."),
    (r"^(head\..*)\.l\.", r"\1.linear."),
    (r"\.c\.", ".conv."),
)
"""(pattern, replacement) rows, from the released names and timm's to the ones here."""


class TokenMixer(nn.Module):
    """`BN(BN(depthwise 3×3 of x) + depthwise 1×1 of x + x)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.large = ConvBN(channels, channels, 3, groups=channels)
        self.small = nn.Conv2d(channels, channels, 1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        return self.norm(self.large(x) + self.small(x) + x)


class ChannelMixer(nn.Module):
    """`x + f(x)`, f two 1×1 convolutions, each with batch norm, GELU between; starts as `x`."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.expand = ConvBN(channels, 2 * channels, 1)
        self.activation = nn.GELU()
        self.project = ConvBN(2 * channels, channels, 1)
        self.drop_path = DropPath(drop_path)
        nn.init.zeros_(self.project.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        return x + self.drop_path(self.project(self.activation(self.expand(x))))


class Block(nn.Module):
    """Token mixer, squeeze-and-excite in some, channel mixer."""

    def __init__(self, channels: int, squeeze_excite: bool, drop_path: float) -> None:
        super().__init__()
        self.token_mixer = TokenMixer(channels)
        self.se = _squeeze_excite(channels, squeeze_excite)
        self.channel_mixer = ChannelMixer(channels, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        return self.channel_mixer(self.se(self.token_mixer(x)))


class Downsample(nn.Module):
    """The first block of a stage: halves the resolution and doubles the width."""

    def __init__(self, channels: int, squeeze_excite: bool, drop_path: float) -> None:
        super().__init__()
        self.depthwise = ConvBN(channels, channels, 3, stride=2, groups=channels)
        self.se = _squeeze_excite(channels, squeeze_excite)
        self.pointwise = ConvBN(channels, 2 * channels, 1)
        self.channel_mixer = ChannelMixer(2 * channels, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → `(N, 2·channels, ⌈H/2⌉, ⌈W/2⌉)`."""
        return self.channel_mixer(self.pointwise(self.se(self.depthwise(x))))


class NormLinear(nn.Module):
    """A batch norm, then a linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, num_classes)
        self.linear.apply(truncated_normal)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels)` → `(N, num_classes)`."""
        return self.linear(self.norm(x))


class DistilledHead(nn.Module):
    """A classifier, and one that learns from a teacher: in evaluation mode, their mean."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = NormLinear(channels, num_classes)
        self.distilled = NormLinear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """`(N, channels)` → `(N, num_classes)`; in training mode both, the distilled one last."""
        logits = self.classifier(x), self.distilled(x)
        return logits if self.training else (logits[0] + logits[1]) / 2


class RepViT(Classifier):
    """The classifier.

    With `distillation`, a forward in training mode returns the logits of both heads.
    """

    def __init__(self, parts: Parts, width: int, num_classes: int, distillation: bool) -> None:
        super().__init__(parts, width)
        self.distillation = distillation
        self.reset_classifier(num_classes)

    def make_head(self, num_classes: int) -> nn.Module:
        """A head with fresh weights: `(N, num_features)` → `(N, num_classes)`."""
        if self.distillation:
            return DistilledHead(self.num_features, num_classes)
        head = NormLinear(self.num_features, num_classes)
        return nn.Sequential(OrderedDict[str, nn.Module](classifier=head))


def create_repvit(
    config: RepViTConfig,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    features_only: bool = False,
    drop_path_rate: float | None = None,
    distillation: bool = False,
) -> Classifier | FeatureExtractor:
    """Build a RepViT with fresh weights.

    With `features_only` it is a `FeatureExtractor`, for which `num_classes` and `distillation` play
    no part. `drop_path_rate` is that of the last block, and grows linearly from 0 at the first;
    the default is none at all.

    Raises `ModelOptionError` for a value out of range.
    """
    last_rate = 0.0 if drop_path_rate is None else drop_path_rate
    check_options(num_classes=num_classes, in_channels=in_channels, drop_path_rate=last_rate)
    stem = nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=ConvBN(in_channels, config.width // 2, 3, stride=2),
            activation=nn.GELU(),
            conv2=ConvBN(config.width // 2, config.width, 3, stride=2),
        )
    )
    total, done = sum(config.depths), 0
    stages = nn.ModuleList()
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        blocks: list[nn.Module] = []
        for block in range(depth):
            excited, rate = config.excited(stage, block), last_rate * done / (total - 1)
            halves = stage > 0 and block == 0
            made = Downsample(width // 2, excited, rate) if halves else Block(width, excited, rate)
            blocks.append(made)
            done += 1
        stages.append(nn.Sequential(*blocks))
    parts = Parts(stem, stages, describe_stages(config.widths), (*_block_keys(config), *KEYS))
    if features_only:
        return FeatureExtractor(parts)
    return RepViT(parts, config.widths[-1], num_classes, distillation)


def _squeeze_excite(channels: int, wanted: bool) -> nn.Module:
    """A quarter as wide, to the nearest multiple of 8."""
    return (
        SqueezeExcite(channels, max(8, (channels // 4 + 4) // 8 * 8)) if wanted else nn.Identity()
    )


def _block_keys(config: RepViTConfig) -> Iterator[tuple[str, str]]:
    """Where the blocks are: the release counts through; timm gives the last to the next stage."""
    number = 1
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            yield rf"^features\.{number}\.", f"stages.{stage}.{block}."
            number += 1
        for block in range(depth - (0 if stage == 0 else 1)):
            yield rf"^stages\.{stage}\.blocks\.{block}\.", f"stages.{stage}.{block + (stage > 0)}."
        if stage > 0:
            last = f"stages.{stage - 1}.{config.depths[stage - 1] - 1}."
            yield rf"^stages\.{stage}\.downsample\.pre_block\.", last
            yield rf"^stages\.{stage}\.downsample\.", f"stages.{stage}.0."
            yield rf"^stages\.{stage}\.0\.token_mixer\.0\.", f"stages.{stage}.0.depthwise."
