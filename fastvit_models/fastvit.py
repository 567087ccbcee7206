"""FastViT, in training form: the variants, the classifier, the backbone for dense prediction.

Source: Vasu et al., "FastViT: A Fast Hybrid Vision Transformer using Structural
Reparameterization", ICCV 2023.
"""

import functools
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from fastvit_models.backbone import (
    Classifier,
    FeatureExtractor,
    Parts,
    describe_stages,
)
from fastvit_models.blocks import BLOCK_KEYS, MobileOneBlock, truncated_normal
from fastvit_models.errors import ModelOptionError
from fastvit_models.fastvit_blocks import (
    HEAD_WIDTH,
    AttentionBlock,
    ConditionalPositionEncoding,
    MetaFormerBlock,
    PatchEmbed,
    PoolingMixer,
    RepMixer,
)
from fastvit_models.options import (
    check_number,
    check_options,
    check_rate,
    check_stages,
    check_whole,
)

TOKEN_MIXERS = ("repmixer", "pooling")
"""What can mix tokens where attention does not."""


@dataclass(frozen=True)
class FastViTConfig:
    """What tells the variants apart. A stage has twice the width of the one before it.

    Raises `ModelOptionError` for a value out of range.
    """

    depths: tuple[int, int, int, int]
    """Blocks of each stage."""
    width: int
    """Channels of the first stage."""
    mlp_ratio: int
    """Hidden width of a ConvFFN over its input width."""
    attention: bool = False
    """Whether the last stage mixes tokens by attention; RepMixer does it everywhere else."""
    layer_scale: float = 1e-5
    """Initial value of every layer scale."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block in the published training from scratch."""
    dropout: float = 0.0
    overparameterized: bool = True
    """Whether layers have side branches in training, for better accuracy at the same speed."""
    token_mixer: str = "repmixer"
    """What mixes tokens where attention does not; "pooling" is what the paper starts from."""

    def __post_init__(self) -> None:
        check_stages("depths", self.depths)
        for stage, depth in enumerate(self.depths):
            check_whole(f"depths[{stage}]", depth, 0)
        check_whole("width", self.width, 1)
        check_whole("mlp_ratio", self.mlp_ratio, 1)
        check_number("layer_scale", self.layer_scale)
        check_rate("drop_path_rate", self.drop_path_rate)
        check_rate("dropout", self.dropout)
        if self.attention and self.widths[-1] % HEAD_WIDTH:
            raise ModelOptionError(
                f"width is {self.width}, which makes {self.widths[-1]} channels where attention "
                f"is: give one that makes a multiple of {HEAD_WIDTH}"
            )
        if self.token_mixer not in TOKEN_MIXERS:
            raise ModelOptionError(
                f"token_mixer is {self.token_mixer!r}: give {' or '.join(map(repr, TOKEN_MIXERS))}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width * 2**stage for stage in range(len(self.depths)))


VARIANTS = {  # depths, width, MLP ratio, attention, layer scale, drop path rate
    "fastvit_t8": FastViTConfig((2, 2, 4, 2), 48, 3),
    "fastvit_t12": FastViTConfig((2, 2, 6, 2), 64, 3),
    "fastvit_s12": FastViTConfig((2, 2, 6, 2), 64, 4),
    "fastvit_sa12": FastViTConfig((2, 2, 6, 2), 64, 4, True, 1e-5, 0.1),
    "fastvit_sa24": FastViTConfig((4, 4, 12, 4), 64, 4, True, 1e-5, 0.1),
    "fastvit_sa36": FastViTConfig((6, 6, 18, 6), 64, 4, True, 1e-6, 0.2),
    "fastvit_ma36": FastViTConfig((6, 6, 18, 6), 76, 4, True, 1e-6, 0.35),
}

KEYS = (
    (r"^patch_embed\.", "stem."),
    (r"^network\.0\.", "stages.0.blocks."),
    (r"^network\.1\.proj\.", "stages.1.downsample."),
    (r"^network\.2\.", "stages.1.blocks."),
    (r"^network\.3\.proj\.", "stages.2.downsample."),
    (r"^network\.4\.", "stages.2.blocks."),
    (r"^network\.5\.proj\.", "stages.3.downsample."),
    (r"^network\.6\.(?:pe|reparam_conv)\.", "stages.3.position.conv."),
    (r"^network\.[67]\.", "stages.3.blocks."),
    (r"^conv_exp\.", "final_conv."),
    (r"\.downsample\.0\.lkb_origin\.", ".downsample.large."),
    (r"\.downsample\.0\.small_conv\.", ".downsample.small."),
    (r"\.downsample\.1\.", ".downsample.pointwise."),
    (r"\.downsample\.(?:0\.lkb_reparam|proj\.0\.reparam_conv)\.", ".downsample.fused."),
    (r"\.convffn\.conv\.", ".ffn.depthwise."),
    (r"\.convffn\.", ".ffn."),
    (r"\.norm\.rbr_skip\.", ".norm."),
    (r"^head\.fc\.", "head."),
    (r"\.downsample\.proj\.0\.(large|small)_conv\.", r".downsample.\1."),
    (r"\.downsample\.proj\.1\.", ".downsample.pointwise."),
    (r"\.pos_emb\.pos_enc\.", ".position.conv."),
    (r"\.pos_emb\.", ".position."),
    (r"\.mlp\.conv\.", ".ffn.depthwise."),
    (r"\.mlp\.", ".ffn."),
    (r"\.(layer_scale(?:_\d)?)\.gamma$", r".\1"),
    (r"\.norm\.identity\.", ".norm."),
    *BLOCK_KEYS,
)
"""(pattern, replacement) rows, in order: from the released names and timm's to the ones here."""


class FastViT(Classifier):
    """The classifier."""

    def __init__(self, parts: Parts, config: FastViTConfig, num_classes: int) -> None:
        width = config.widths[-1]
        super().__init__(parts, 2 * width)
        self.final_conv = MobileOneBlock(
            width,
            2 * width,
            3,
            groups=width,
            side_branches=config.overparameterized,
            squeeze_excite=True,
            activation=nn.GELU,
        )
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `(N, in_channels, H, W)` → the last map, `(N, num_features, ⌈H/32⌉, ⌈W/32⌉)`."""
        return self.final_conv(super().forward_features(x))

    def make_head(self, num_classes: int) -> nn.Module:
        """A head with fresh weights: `(N, num_features)` → `(N, num_classes)`."""
        return super().make_head(num_classes).apply(truncated_normal)


class FastViTFeatures(FeatureExtractor):
    """The backbone for dense prediction: a batch norm on each stage's output."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        # The release numbers them by the stage's place in its list of stages and patch embeddings.
        self.norm0, self.norm2, self.norm4, self.norm6 = (
            nn.BatchNorm2d(int(info["num_chs"])) for info in parts.feature_info
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `(N, in_channels, H, W)` → maps `(N, width·2^i, ⌈H/(4·2^i)⌉, …)`, i = 0 … 3."""
        norms = (self.norm0, self.norm2, self.norm4, self.norm6)
        return [norm(y) for norm, y in zip(norms, self.forward_stages(x), strict=True)]

    def convert_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """The name here of each tensor of a released file; a name from here stays as it is.

        Warns where norm6 was trained on another tensor than it reads here.
        """
        converted = super().convert_keys(keys)
        if "network.6.pe.weight" in converted and "norm6.weight" in converted:
            warnings.warn(
                "norm6 of these weights was trained on the position encoding in front of stage 4, "
                "which the released code of the SA and MA variants hands out as the last map; here "
                "that map is stage 4's output: fine-tune before use",
                stacklevel=4,  # the caller of load_checkpoint
            )
        return converted


def create_fastvit(
    config: FastViTConfig,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    features_only: bool = False,
    drop_path_rate: float | None = None,
) -> FastViT | FastViTFeatures:
    """Build a FastViT with fresh weights.

    With `features_only` it is a `FastViTFeatures`, and `num_classes` plays no part.
    `drop_path_rate` is that of the last block, and grows linearly from 0 at the first block; the
    default is the variant's.

    Raises `ModelOptionError` for a value out of range.
    """
    rate = config.drop_path_rate if drop_path_rate is None else drop_path_rate
    check_options(num_classes=num_classes, in_channels=in_channels, drop_path_rate=rate)
    names = [f"norm{2 * i}" for i in range(4)] if features_only else None
    stem, stages = _stem(config, in_channels), _stages(config, rate)
    parts = Parts(stem, stages, describe_stages(config.widths, names), KEYS)
    if features_only:
        return FastViTFeatures(parts)
    return FastViT(parts, config, num_classes)


def _stem(config: FastViTConfig, in_channels: int) -> nn.Sequential:
    """`(N, in_channels, H, W)` → `(N, width, ⌈H/4⌉, ⌈W/4⌉)`."""
    width = config.width
    block = functools.partial(
        MobileOneBlock, side_branches=config.overparameterized, activation=nn.GELU
    )
    return nn.Sequential(
        block(in_channels, width, 3, stride=2),
        block(width, width, 3, stride=2, groups=width),
        block(width, width, 1),
    )


def _stages(config: FastViTConfig, drop_path_rate: float) -> nn.ModuleList:
    """The four stages: `downsample` (but in the first), `position` (before attention), `blocks`."""
    blocks = sum(config.depths)
    rates = iter([drop_path_rate * i / max(blocks - 1, 1) for i in range(blocks)])
    stages = nn.ModuleList()
    for i, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        attention = config.attention and i == len(config.depths) - 1
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if i > 0:
            parts["downsample"] = PatchEmbed(config.widths[i - 1], config.overparameterized)
        if attention:
            parts["position"] = ConditionalPositionEncoding(width)
        parts["blocks"] = nn.Sequential(
            *(_block(config, width, attention, rate) for rate in itertools.islice(rates, depth))
        )
        stages.append(nn.Sequential(parts))
    return stages


def _block(config: FastViTConfig, width: int, attention: bool, drop_path: float) -> nn.Module:
    """One block of a stage: `(N, width, H, W)` → the same."""
    rest = (width, config.mlp_ratio, config.layer_scale, config.dropout, drop_path)
    if attention:
        return AttentionBlock(*rest)
    if config.token_mixer == "pooling":
        mixer = PoolingMixer(width, config.layer_scale)
    else:
        mixer = RepMixer(width, config.layer_scale, config.overparameterized)
    return MetaFormerBlock(mixer, *rest)
