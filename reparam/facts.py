"""What is known of a call's result without running the model: sizes, number of axes, dtype.

A fact is a `TensorFacts`; for the arithmetic of sizes a `Size` or a bool; a tuple of these; or
None. Sizes are symbolic (`reparam.sizes`), so the facts hold for every input that the model takes.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from reparam.sizes import Size


@dataclass(frozen=True)
class TensorFacts:
    """Facts of a tensor.

    Attributes:
        axes: its sizes; only the last ones, if not `exact`.
        exact: whether these are all its axes.
        dtype: None where it is not known.
    """

    axes: tuple[Size, ...]
    exact: bool
    dtype: torch.dtype | None = None

    def channels(self, n: int) -> int | None:
        """The number of channels in front of n spatial axes, if it is known."""
        if len(self.axes) <= n or not self.axes[-n - 1].known:
            return None
        return self.axes[-n - 1].factor


Facts: TypeAlias = TensorFacts | Size | tuple[Any, ...] | bool | None
