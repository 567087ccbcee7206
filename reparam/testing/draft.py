"""A graph while it is drawn: which tensors there are, of which shapes, and what may come next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.testing.graph import Graph, Input, Layer, Shape, Step, scope

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn
else:
    DrawFn = Callable  # a protocol that no isinstance can tell, where annotations are checked

T = TypeVar("T")


class Several(tuple[Any, ...]):
    """The shapes of the tensors of a tuple."""

    __slots__ = ()


@dataclass(frozen=True)
class Drawn:
    """A tensor of a graph that is being drawn.

    Attributes:
        number: as steps refer to it.
        shape: batch first.
        n: how many axes stand behind the channels.
    """

    number: int
    shape: Any
    n: int

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.shape[-self.n - 1]

    @property
    def sizes(self) -> Shape:
        """Of the axes behind the channels."""
        return self.shape[len(self.shape) - self.n :]

    @property
    def form(self) -> str:
        """Whether it is "images" over one axis or more, and else by how many axes it has."""
        if self.n:
            return "images"
        return {2: "features", 3: "tokens"}.get(len(self.shape), "maps")


class Draft:
    """A graph that is being drawn. What is drawn first is what it shrinks to."""

    def __init__(self, draw: DrawFn) -> None:
        """Start empty."""
        self._draw = draw
        self.inputs: list[Input] = []
        self.layers: list[Layer] = []
        self.steps: list[Step] = []
        self.tensors: list[Drawn] = []
        self.shapes: list[Any] = []
        self.motifs: list[str] = []
        self.fixed = False

    def draw(self, strategy: st.SearchStrategy[T]) -> T:
        """Draw from any strategy."""
        return self._draw(strategy)

    def together(self, function: Callable[[], T]) -> T:
        """What a function draws, as one thing: a graph shrinks by such things being taken out."""
        return self._draw(st.builds(function))

    def choose(self, *options: T) -> T:
        """One of several, the simplest first."""
        return self._draw(st.sampled_from(options))

    def integer(self, low: int, high: int) -> int:
        """A number from low to high."""
        return self._draw(st.integers(low, high))

    def flip(self) -> bool:
        """Yes or no, each as often."""
        return self._draw(st.booleans())

    def rarely(self, out_of: int = 6) -> bool:
        """Yes, once in so many times."""
        return self._draw(st.integers(0, out_of - 1)) == out_of - 1

    def add_input(self, shape: Shape, n: int) -> Drawn:
        """One more argument of the graph; all of them come before the first step."""
        assert not self.steps, "inputs come first"
        self.inputs.append(Input(shape, n))
        return self._tensor(shape, n)

    def own(self, kind: str, source: str) -> int:
        """A layer or parameter of its own; what is called comes by `call`."""
        self.layers.append(Layer(kind, source))
        return len(self.layers) - 1

    def parameter(self, *shape: int) -> int:
        """A parameter of this shape."""
        sizes = ", ".join(map(str, shape))
        return self.own("w", f"nn.Parameter(torch.randn({sizes}))")

    def call(self, kind: str, source: str, x: Drawn, n: int | None = None) -> Drawn:
        """Call a layer; rarely one that was called before, if there is one of the same form."""
        alike = [i for i, layer in enumerate(self.layers) if layer.source == source]
        layer = alike[0] if alike and self.rarely(8) else self.own(kind, source)
        return self.step("{p}({0})", x, owned=(layer,), n=n)

    def step(
        self, code: str, *reads: Drawn, owned: Sequence[int] = (), n: int | None = None
    ) -> Drawn:
        """One more step.

        Args:
            code: as `Step` has it.
            reads: what it reads.
            owned: the layers that it calls.
            n: how many axes stand behind the channels of its result; those of the first that it
                reads if None.
        """
        numbers = tuple(read.number for read in reads)
        layers = tuple(self.layers[layer] for layer in owned)
        shape = shape_of(code, layers, tuple(self.shapes[number] for number in numbers))
        n = reads[0].n if n is None else n
        self.steps.append(Step(code, numbers, tuple(owned), n))
        return self._tensor(shape, n)

    def _tensor(self, shape: Any, n: int) -> Drawn:
        drawn = Drawn(len(self.shapes), shape, n)
        self.shapes.append(shape)
        if not isinstance(shape, Several):
            self.tensors.append(drawn)
        return drawn

    def graph(self, outputs: tuple[Drawn, ...], *, dtype: str, seed: int, special: bool) -> Graph:
        """What was drawn, without what nothing depends on."""
        return Graph(
            tuple(Input(i.shape, i.n, self.fixed) for i in self.inputs),
            tuple(self.layers),
            tuple(self.steps),
            tuple(dict.fromkeys(output.number for output in outputs)),
            dtype,
            seed,
            special,
            motifs=tuple(self.motifs),
        ).pruned()


Run = Callable[..., Any]


@lru_cache(maxsize=4096)
def shape_of(code: str, owned: tuple[Layer, ...], shapes: tuple[Any, ...]) -> Any:
    """The shape of what a step computes, or the shapes, without numbers."""
    tensors = [f"x{index}" for index in range(len(shapes))]
    names = [f"p{index}" for index in range(len(owned))]
    body = Step(code, ()).lines("out", tensors, names)
    text = f"def run({', '.join((*tensors, *names))}):\n"
    text += "".join(f"    {line}\n" for line in (*body, "return out"))
    namespace = scope(layer.module for layer in owned if layer.module)
    exec(text, namespace)
    run: Run = namespace["run"]
    with torch.device("meta"), torch.no_grad():
        built = [eval(layer.source, namespace) for layer in owned]
        for layer in built:
            if isinstance(layer, nn.Module):
                layer.eval()
        return _shape(run(*map(_tensors, shapes), *built))


def _shape(result: Any) -> Any:
    return tuple(result.shape) if isinstance(result, Tensor) else Several(map(_shape, result))


def _tensors(shape: Any) -> Any:
    return tuple(map(_tensors, shape)) if isinstance(shape, Several) else torch.empty(shape)
