"""The blocks of the corpus as functions at the top of a module, as `check_pass` wants them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from benchmarks.planted.corpus import CORPUS
from benchmarks.planted.examples import Block, Example

Factory = Callable[[], nn.Module]


class _OfOneForm(Block):
    """A block that refuses what is not of the form that its example takes.

    Torch's layers take more on the meta device, and fail when they are run.
    """

    def __init__(self, example: Example) -> None:
        super().__init__(example.run, example.layers())
        self.shape = example.shape

    def forward(self, x: Tensor) -> Any:
        images = len(self.shape) == 4
        if type(x) is Tensor and (
            x.ndim != len(self.shape) or (images and x.shape[1] != self.shape[1])
        ):
            raise ValueError(f"it takes tensors such as {self.shape}")
        return super().forward(x)


def _factory(example: Example, name: str) -> Factory:
    """A function without arguments that returns the block; it goes by this name here."""

    def made() -> nn.Module:
        return _OfOneForm(example)

    made.__name__ = made.__qualname__ = name
    globals()[name] = made
    return made


FACTORIES: dict[str, list[Factory]] = {
    rule: [_factory(example, f"{rule}_{number}") for number, example in enumerate(examples)]
    for rule, examples in CORPUS.items()
}
"""By the name of the pass that the blocks are for."""


def shapes(rule: str) -> list[tuple[tuple[int, ...], int]]:
    """What the blocks of a pass are given, and how many axes stand behind the channels."""
    given = {example.shape for example in CORPUS[rule]}
    return [(shape, len(shape) - 2 if len(shape) == 4 else 0) for shape in sorted(given)]
