"""A user's own modules as motifs."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from reparam.errors import PassError, first_line
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
        module = str(getattr(block, "__module__", ""))
        name = str(getattr(block, "__qualname__", "<nameless>"))
        if "<" in name or "." in name or module not in sys.modules:
            raise PassError(f"{module}.{name} can't be imported: it has to be at a module's top")
        return BlockMotif(Layer(name.lower(), f"{module}.{name}()", module=module))

    @property
    def __name__(self) -> str:
        """The name of the class or function."""
        return self.layer.kind

    def fits(self, shape: Shape) -> bool:
        """Whether it takes a tensor of this shape, and returns one."""
        return self.misfit(shape) is None

    def require_fit(self, shapes: Sequence[Shape]) -> None:
        """See to it that it takes a tensor of one of these shapes.

        Raises:
            PassError: if it takes none, with the reason why not the last.
        """
        why = [self.misfit(shape) for shape in shapes]
        if None not in why:
            taken = ", ".join(map(str, shapes))
            raise PassError(
                f"the block {self.layer.source} takes none of the shapes {taken}: "
                f"given the last, {why[-1]}"
            )

    def misfit(self, shape: Shape) -> str | None:
        """Why it does not take a tensor of this shape and return one, if it does not."""
        try:
            result = shape_of("{p}({0})", (self.layer,), (shape,))
        except (Exception, SystemExit) as error:  # whatever a module raises at other shapes
            return f"without numbers, it raises {type(error).__name__}: {first_line(error)}"
        if len(result) > 1 and all(isinstance(size, int) for size in result):
            return None
        return "it does not return one tensor of two axes or more"

    def __call__(self, d: Draft, x: Drawn) -> Drawn:
        """Call the block."""
        d.layers.append(self.layer)
        y = d.step("{p}({0})", x, owned=(len(d.layers) - 1,))
        return Drawn(y.number, y.shape, y.n if len(y.shape) == len(x.shape) else 0)
