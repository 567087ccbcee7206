"""What a block of the corpus is: a few layers, a forward, and the shape of an input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Any, Tensor], Any]


class Block(nn.Module):
    """Some layers, and a function of them and of an input."""

    def __init__(self, run: Forward, layers: dict[str, Any]) -> None:
        """Own the layers by their names; a tensor becomes a parameter."""
        super().__init__()
        for name, layer in layers.items():
            given = nn.Parameter(layer) if isinstance(layer, Tensor) else layer
            setattr(self, name, given)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        """Apply it."""
        return self.run(self, x)


@dataclass(frozen=True)
class Example:
    """A block, by a name, and what it is compiled with.

    Attributes:
        name: for the record of what found a bug.
        shape: of the input, batch first.
        run: the forward.
        layers: makes the layers, anew each time.
    """

    name: str
    shape: tuple[int, ...]
    run: Forward
    layers: Callable[[], dict[str, Any]]

    def build(self) -> tuple[nn.Module, Tensor]:
        """The block in float64, and an input."""
        torch.manual_seed(0)
        return Block(self.run, self.layers()).double().eval(), torch.randn(self.shape).double()


def scale(*shape: int) -> Tensor:
    """A parameter to draw numbers for."""
    return torch.ones(*shape)


def block(
    name: str, shape: tuple[int, ...], run: Forward, layers: Callable[[], dict[str, Any]]
) -> Example:
    """Short for an example."""
    return Example(name, shape, run, layers)


def on(y: Any, run: Callable[[Any], Any]) -> Any:
    """What a function makes of something: its name stands for something that is read twice."""
    return run(y)
