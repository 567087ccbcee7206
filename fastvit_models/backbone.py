"""What the networks have in common: a stem, stages, a head, and what users do with them."""

import functools
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import checkpoint

from fastvit_models.checkpoint import rename_keys
from fastvit_models.options import check_options

KeyRows = tuple[tuple[str, str], ...]
"""(pattern, replacement) rows, applied in order: from the names of others to those here."""

FeatureInfo = list[dict[str, int | str]]
"""Of each stage `num_chs` (its channels), `reduction` (of H and W) and `module` (its path)."""


_checkpoint = cast("Any", checkpoint).checkpoint  # torch gives it no types


@dataclass(frozen=True)
class Parts:
    """What a network is built of, but for the head.

    Attributes:
        stem: before the stages.
        stages: each a sequence of blocks; blocks under the name `blocks` count one by one.
        feature_info: see `describe_stages`.
        keys: from the names of released checkpoints, and timm's, to those here.
    """

    stem: nn.Module
    stages: nn.ModuleList
    feature_info: FeatureInfo
    keys: KeyRows


class Backbone(nn.Module):
    """Stem and stages.

    Attributes:
        feature_info: of each stage `num_chs`, `reduction` and `module`.
        checkpoint_keys: from the names of released checkpoints, and timm's, to those here.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.feature_info = parts.feature_info
        self.grad_checkpointing = False
        self.stem = parts.stem
        self.stages = parts.stages
        self.checkpoint_keys = parts.keys  # data, which a compiled model keeps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training keeps, of the stages, what goes from block to block alone.

        All else is computed again on the way back, but for the running statistics of batch norms,
        which count every batch once. Hooks of whole stages are not called then.
        Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
        """
        self.grad_checkpointing = enable

    def convert_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """The name here of each tensor of a released file or of timm's; a name from here stays."""
        return rename_keys(keys, self.checkpoint_keys)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """The output of each stage for images `(N, in_channels, H, W)`."""
        x = self.stem(x)
        for stage in self.stages:
            if self.grad_checkpointing and self.training:
                for block in _blocks(stage):
                    again = functools.partial(_recomputed, block)
                    x = _checkpoint(block, x, use_reentrant=False, context_fn=again)
            else:
                x = stage(x)
            yield x


class Classifier(Backbone):
    """Stem, stages, global average pool and a linear layer.

    Whoever builds one gives it its head, last, by `reset_classifier`.

    Attributes:
        num_classes: the length of its logits; 0 for no head.
        num_features: the channels of the last map.
    """

    def __init__(self, parts: Parts, num_features: int) -> None:
        super().__init__(parts)
        self.num_features = num_features
        self.num_classes = 0
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, in_channels, H, W)`, any H and W, → logits `(N, num_classes)`."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `(N, in_channels, H, W)` → the last map, `(N, num_features, ⌈H/32⌉, ⌈W/32⌉)`."""
        *_, x = self.forward_stages(x)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """The last map → logits `(N, num_classes)`; without a classifier `(N, num_features)`."""
        return self.head(x.mean((2, 3)))

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh head for other classes in place of the old one; for 0, none at all.

        Raises `ModelOptionError`, and leaves the model as it was, for what is no number of classes.
        """
        check_options(num_classes=num_classes)
        head = self.make_head(num_classes) if num_classes else nn.Identity()
        head.to(next(self.stem.parameters())).train(self.training)
        del self.head  # so that the new one comes last, as it runs
        self.head, self.num_classes = head, num_classes

    def make_head(self, num_classes: int) -> nn.Module:
        """A head with fresh weights: `(N, num_features)` → `(N, num_classes)`."""
        return nn.Linear(self.num_features, num_classes)


class FeatureExtractor(Backbone):
    """For dense prediction: each stage's output, no head."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `(N, in_channels, H, W)` → `(N, num_chs, ⌈H/reduction⌉, ⌈W/reduction⌉)` each."""
        return [*self.forward_stages(x)]


def assembled(
    parts: Parts, num_features: int, num_classes: int, features_only: bool
) -> Classifier | FeatureExtractor:
    """A network with the plain head, or without any."""
    if features_only:
        return FeatureExtractor(parts)
    model = Classifier(parts, num_features)
    model.reset_classifier(num_classes)
    return model


def describe_stages(widths: Sequence[int], modules: Sequence[str] | None = None) -> FeatureInfo:
    """The `feature_info`; its modules are the stages themselves, if not given.

    Every network here reduces H and W by 4 up to the first stage, and by 2 in each further one.
    """
    modules = modules or [f"stages.{i}" for i in range(len(widths))]
    return [
        {"num_chs": width, "reduction": 4 * 2**i, "module": module}
        for i, (width, module) in enumerate(zip(widths, modules, strict=True))
    ]


@contextmanager
def _same_statistics(block: nn.Module) -> Generator[None]:
    """While a block runs again, its batch norms count no batch twice."""
    kinds = nn.BatchNorm2d | nn.SyncBatchNorm
    norms: list[Any] = [m for m in block.modules() if isinstance(m, kinds)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count


def _recomputed(block: nn.Module) -> tuple[AbstractContextManager[None], ...]:
    """What a checkpointed block runs in, at first and again."""
    return nullcontext(), _same_statistics(block)


def _blocks(stage: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a stage, one by one."""
    return itertools.chain.from_iterable(
        part if name == "blocks" and isinstance(part, nn.Sequential) else [part]
        for name, part in stage.named_children()
    )
