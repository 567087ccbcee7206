"""One node of an ONNX file, as the rules of translation see it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, fx

from reparam.facts import TensorFacts


@dataclass(frozen=True)
class Site:
    """One node of a file, as rules see it.

    Attributes:
        op: its operator.
        attributes: as Python values.
        opset: the version of the standard operators.
        inputs: what computes them in the traced graph; None for one that is left out.
        outputs: how many of its results somebody reads, or may.
        declared: how many have a name.
        facts: of the inputs.
        contents: of those that are constants.
        graph: where calls are added.
        hold: lets the traced graph read a tensor that the file does not have.
    """

    op: str
    attributes: dict[str, Any]
    opset: int
    inputs: tuple[fx.Node | None, ...]
    outputs: int
    declared: int
    facts: tuple[TensorFacts | None, ...]
    contents: tuple[Tensor | None, ...]
    graph: fx.Graph
    hold: Callable[[Tensor], fx.Node]

    def call(self, target: Any, *args: Any, **options: Any) -> fx.Node:
        """Add a call."""
        return self.graph.call_function(target, args, options)

    def given(self, i: int) -> bool:
        """Whether there is such an input."""
        return i < len(self.inputs) and self.inputs[i] is not None

    def content(self, i: int) -> Tensor | None:
        """The content of an input that is a constant."""
        return self.contents[i] if self.given(i) else None

    def integers(self, i: int, attribute: str = "") -> list[int] | None:
        """Integers that are an attribute, or a constant input."""
        if attribute in self.attributes:
            return [int(n) for n in self.attributes[attribute]]
        content = self.content(i)
        if content is None or content.is_floating_point():
            return None
        return [int(number) for number in content.flatten()]

    def rank(self, i: int = 0) -> int | None:
        """The number of axes of an input."""
        facts = self.facts[i]
        return len(facts.axes) if facts is not None else None

    def floating(self, i: int = 0) -> bool:
        """Whether an input is known to be of floating-point numbers."""
        facts = self.facts[i]
        return facts is not None and facts.dtype is not None and facts.dtype.is_floating_point

    def sizes(self, name: str, default: int, n: int) -> tuple[int, ...]:
        """An attribute of one integer per spatial axis."""
        return tuple(map(int, self.attributes.get(name, [default] * n)))


Rule: TypeAlias = Callable[[Site], fx.Node | None]
"""Calls what computes the same in torch; None where that is not known to be the same."""
