"""Check a rewrite as it happens: old and new expression on random tensors, in float64.

Leaves get sizes at which every border shows: smaller than the kernels, and large enough for an
interior. What can't be evaluated is no evidence, and no evidence is a failure.
"""

from collections.abc import Mapping
from functools import cache
from math import prod

import torch
from torch import Tensor

from reparam.devices import CPU
from reparam.errors import Declined, Rejected, first_line
from reparam.evaluation import Evaluation, Operands, shapes, something_left
from reparam.graph import Call, Expression
from reparam.values import Value
from reparam.verify import EXACT, relative_difference
from reparam.window import tried, window

SEED = 20230814
"""The leaves are the same in every run, so that a compile is reproducible."""

DRAWN = 2**18
"""How many numbers are drawn once for all checks. What a check needs beyond, it draws itself."""


def check(rewrite: Mapping[Call, Expression]) -> float:
    """The largest relative difference that a rewrite makes, over all sizes tried.

    Raises:
        Rejected: if the two sides differ by more than rounding, or the new one fails.
        Declined: if the old one does not run by itself.
    """
    operands = Operands.of(rewrite)
    seen = window(operands)
    numbers, wide = _Numbers(), dict[Value, Value]()
    worst, interior = 0.0, False
    for images, sizes, spare in tried(seen.sizes, seen, operands):
        if interior and spare:
            break
        tensors = {
            call: numbers(shape) for call, shape in shapes(operands.drawn, sizes, images).items()
        }
        try:
            old = list(map(Evaluation(tensors, wide), rewrite))
        except RuntimeError:
            continue  # too small for a kernel; the larger size must do
        try:
            new = list(map(Evaluation(tensors, wide), rewrite.values()))
        except Exception as error:
            raise Rejected(f"its replacement fails: {first_line(error)}") from error
        interior |= something_left(old)
        for before, after in zip(old, new, strict=True):
            same = isinstance(before, Tensor) and isinstance(after, Tensor)
            difference = relative_difference(before, after) if same else float(before != after)
            if not difference <= EXACT:
                raise Rejected(f"its replacement differs by {difference:.1e}, so it was not done")
            worst = max(worst, difference)
    if not interior:
        raise Declined("it can't be checked, since what it replaces does not run by itself")
    return worst


@cache
def _drawn() -> Tensor:
    """The first numbers of every check: to draw them takes longer than all else of a small one."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(DRAWN, generator=generator, dtype=torch.float64, device=CPU)


class _Numbers:
    """The random numbers of one check, each given out once."""

    def __init__(self) -> None:
        self._used = 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        first, self._used = self._used, self._used + prod(shape)
        if self._used <= DRAWN:
            return _drawn()[first : self._used].reshape(shape)
        generator = torch.Generator().manual_seed(SEED + self._used)
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=CPU)
