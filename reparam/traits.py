"""What weights keep through a rewrite, beside their numbers."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The layout by the number of axes of a weight, (out, in/groups, *kernel)."""


@dataclass(frozen=True)
class Traits:
    """What weights keep through a rewrite.

    Attributes:
        trainable: whether any of them requires a gradient.
        channels_last: whether those of images are laid out so.
        convolution: whether any of them belongs to a convolution, be it 1×1 and depthwise.
        device: where they are; None if there are none.
    """

    trainable: bool = False
    channels_last: bool = False
    convolution: bool = False
    device: torch.device | None = None

    def __or__(self, other: "Traits") -> "Traits":
        """Of both together."""
        return Traits(
            self.trainable or other.trainable,
            self.channels_last or other.channels_last,
            self.convolution or other.convolution,
            self.device or other.device,
        )


NONE = Traits()
"""Those of a call without weights."""

_known = functools.cache(Traits)


def traits(tensors: Iterable[Any], convolution: bool) -> Traits:
    """The traits of some weights, of a convolution or not; what is no tensor has none."""
    weights = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
    return _known(
        any(weight.requires_grad for weight in weights),
        any(
            weight.ndim in CHANNELS_LAST
            and weight.is_contiguous(memory_format=CHANNELS_LAST[weight.ndim])
            and not weight.is_contiguous()
            for weight in weights
        ),
        convolution,
        # A number on the CPU goes with tensors on any device.
        next((w.device for w in weights if w.ndim or w.device.type != "cpu"), None),
    )
