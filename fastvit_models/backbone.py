"""What the networks have in common: a stem, stages, a head, and what users do with them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import checkpoint

from fastvit_models.checkpoint import rename_keys
from fastvit_models.errors import ModelOptionError

KeyRows = tuple[tuple[str, str], ...]
"""(pattern, replacement) rows, applied in order: from the names of others to those here."""

FeatureInfo = list[dict[str, int | str]]
"""Of each map its channels, its reduction of H and W, and its module, under timm's keys."""


recomputed = cast("Any", checkpoint).checkpoint


@dataclass(frozen=True)
class Parts:
    """What a network is built of, but for the head.

    Attributes:
        stem: before the stages.
        stages: each a sequence of blocks; blocks under the name `blocks` count one by one.
        feature_info: of the stages.
        keys: from the names of released checkpoints, and timm's, to those here.
    """

    stem: nn.Module
    stages: nn.ModuleList
    feature_info: FeatureInfo
    keys: KeyRows


class Trunk(nn.Module):
    """Stem and stages.

    With `set_grad_checkpointing()`, training keeps no activations but those between blocks, and
    computes the others again on the way back: less memory, about a third more time.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.feature_info = parts.feature_info
        self.grad_checkpointing = False
        self.stem = parts.stem
        self.stages = parts.stages
        self._keys = parts.keys

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training trades time for memory."""
        self.grad_checkpointing = enable

    def convert_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """The name here of each tensor of a released file or of timm's; a name from here stays."""
        return rename_keys(keys, self._keys)

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The output of each stage for images `(N, in_channels, H, W)`."""
        x = self.stem(x)
        for stage in self.stages:
            if self.grad_checkpointing and self.training:
                for block in _blocks(stage):
                    x = recomputed(block, x, use_reentrant=False)
            else:
                x = stage(x)
            yield x


class Backbone(Trunk):
    """A classifier: stem, stages, global average pool and a linear layer.

    Attributes:
        num_classes: that it tells apart; 0 after `reset_classifier(0)`.
        num_features: channels before the head.
        feature_info: of each stage its channels, its reduction of H and W, and its module.
    """

    def __init__(self, parts: Parts, num_features: int, num_classes: int) -> None:
        super().__init__(parts)
        self.num_features = num_features
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, in_channels, H, W)`, any H and W, → logits `(N, num_classes)`."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `(N, in_channels, H, W)` → the last map, `(N, num_features, ⌈H/32⌉, ⌈W/32⌉)`."""
        *_, x = self.maps(x)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """The last map → logits `(N, num_classes)`; without a classifier `(N, num_features)`."""
        return self.head(x.mean((2, 3)))

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh head for other classes in place of the old one; for 0, none at all.

        Raises `ModelOptionError` for a negative number.
        """
        if num_classes < 0:
            raise ModelOptionError(f"num_classes is {num_classes}: give at least 0")
        self.num_classes = num_classes
        self.head = self.make_head() if num_classes else nn.Identity()
        self.head.to(next(self.stem.parameters()))

    def make_head(self) -> nn.Module:
        """A head with fresh weights: `(N, num_features)` → `(N, num_classes)`."""
        return nn.Linear(self.num_features, self.num_classes)


class Features(Trunk):
    """A backbone for dense prediction: each stage's output, no head."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `(N, in_channels, H, W)` → the four maps that `feature_info` tells of."""
        return [*self.maps(x)]


def checked_options(num_classes: int, in_channels: int, drop_path_rate: float = 0.0) -> None:
    """Raise `ModelOptionError` for a value out of range."""
    if num_classes < 1:
        raise ModelOptionError(
            f"num_classes is {num_classes}: give at least 1, or features_only=True for no head"
        )
    if in_channels < 1:
        raise ModelOptionError(f"in_channels is {in_channels}: give at least 1")
    if not 0 <= drop_path_rate < 1:
        raise ModelOptionError(f"drop_path_rate is {drop_path_rate}: give at least 0, less than 1")


def feature_info(widths: Sequence[int], modules: Sequence[str] | None = None) -> FeatureInfo:
    """One entry for each stage; the modules are the stages themselves, if not given."""
    modules = modules or [f"stages.{i}" for i in range(len(widths))]
    return [
        {"num_chs": width, "reduction": 4 * 2**i, "module": module}
        for i, (width, module) in enumerate(zip(widths, modules, strict=True))
    ]


def _blocks(stage: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a stage, one by one."""
    return itertools.chain.from_iterable(
        part if name == "blocks" and isinstance(part, nn.Sequential) else [part]
        for name, part in stage.named_children()
    )
