"""A user's own modules as motifs."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from reparam.errors import PassError
from reparam.testing.draft import Draft, Drawn, shape_of
from reparam.testing.graph import Layer, Shape


@dataclass(frozen=True)
class BlockMotif:
    """A motif that calls what a class or function returns.

    Attributes:
        layer: how to make it.
    """

    layer: Layer

    @staticmethod
    def of(block: Callable[[], nn.Module]) -> "BlockMotif":
        """The motif of a class or function that is called without arguments.

        Raises:
            PassError: if a program could not import it by its name.
        """
        module, name = block.__module__, block.__qualname__
        if "<" in name or "." in name or module not in sys.modules:
            raise PassError(f"{module}.{name} can't be imported: it has to be at a module's top")
        return BlockMotif(Layer(name.lower(), f"{module}.{name}()", module=module))

    @property
    def __name__(self) -> str:
        """The name of the class or function."""
        return self.layer.kind

    def fits(self, shape: Shape) -> bool:
        """Whether it takes a tensor of this shape, and returns one."""
        try:
            result = shape_of("{p}({0})", (self.layer,), (shape,))
        except Exception:  # whatever a module raises at a shape that is not for it
            return False
        return len(result) > 1 and all(isinstance(size, int) for size in result)

    def __call__(self, d: Draft, x: Drawn) -> Drawn:
        """Call the block."""
        d.layers.append(self.layer)
        y = d.step("{p}({0})", x, owned=(len(d.layers) - 1,))
        return Drawn(y.number, y.shape, y.n if len(y.shape) == len(x.shape) else 0)
