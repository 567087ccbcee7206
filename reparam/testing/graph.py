"""Graphs as data: what was drawn, and what it takes to build, print, reduce and run it."""

import functools
import linecache
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.devices import CPU, seed
from reparam.known import TORCH
from reparam.testing import layers
from reparam.testing.randomised import randomised

Shape = tuple[int, ...]

NAMES = "abcdefghijklmnopqrstuvw"
"""What tensors are called, one after the other; inputs are x, y and z."""

HOOKS = {
    "": "",
    "forward": "register_forward_hook(lambda layer, inputs, result: result * 2)",
    "pre": "register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))",
}
"""What a layer may do beyond its forward."""


@dataclass(frozen=True)
class Layer:
    """Something that a model owns.

    Attributes:
        kind: what its name begins with.
        source: the expression that makes it, such as "nn.Conv2d(4, 4, 3)".
        hook: one of `HOOKS`.
        module: what has to be imported for the source to be understood, if anything.
    """

    kind: str
    source: str
    hook: str = ""
    module: str = ""


@dataclass(frozen=True)
class Step:
    """One line of a forward.

    Attributes:
        code: an expression with {0}, {1} … for the tensors that it reads and {p}, {q} … for the
            layers; or statements that give {out} its value.
        reads: numbers of earlier tensors; the inputs of the graph come first.
        layers: numbers of layers; several steps may share one.
        n: how many axes stand behind the channels of the result.
    """

    code: str
    reads: tuple[int, ...]
    layers: tuple[int, ...] = ()
    n: int = 0

    def lines(self, out: str, tensors: list[str], owned: list[str]) -> list[str]:
        """The code with the names that tensors and layers have."""
        names = dict(zip("pqrstu", owned, strict=False))
        code = self.code.format(*tensors, **names, out=out)
        return code.split("\n") if "{out}" in self.code else [f"{out} = {code}"]


@dataclass(frozen=True)
class Input:
    """One tensor that a graph is given.

    Attributes:
        shape: batch first.
        n: how many axes stand behind the channels.
        fixed: whether the graph takes no other sizes, but for the batch.
    """

    shape: Shape
    n: int
    fixed: bool = False

    def resized(self, size: int) -> Shape:
        """The shape with one image, and with so many of everything that is free."""
        channel = len(self.shape) - self.n - 1
        kept = range(len(self.shape)) if self.fixed else (channel,)
        return tuple(
            1 if not axis else (s if axis in kept else size + axis % 2)
            for axis, s in enumerate(self.shape)
        )


def scope(modules: Iterable[str]) -> dict[str, Any]:
    """The names that the source of a model may use."""
    names: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, "layers": layers}
    for module in modules:
        names[module.partition(".")[0]] = __import__(module)
    return names


@dataclass(frozen=True)
class Graph:
    """A model as data, valid by construction.

    Attributes:
        inputs: what it is given.
        layers: what it owns.
        steps: what it does, in order.
        outputs: numbers of the tensors that it returns.
        dtype: of its parameters and inputs.
        seed: of all its numbers.
        special: whether some numbers are those that laws treat apart, such as 0.
        given: whether it is to be compiled with example inputs.
        motifs: what it was put together from.
    """

    inputs: tuple[Input, ...]
    layers: tuple[Layer, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    dtype: str = "float32"
    seed: int = 0
    special: bool = False
    given: bool = False
    motifs: tuple[str, ...] = field(default=(), compare=False)

    @property
    def nodes(self) -> int:
        """How many steps there are."""
        return len(self.steps)

    def pruned(self, *, keep_first: bool = True) -> "Graph":
        """The same without what no output depends on: steps, layers, inputs but the first."""
        first = len(self.inputs)
        used = set(self.outputs)
        for number in range(first + self.nodes - 1, first - 1, -1):
            if number in used:
                used.update(self.steps[number - first].reads)
        kept = [n for n in range(first + self.nodes) if n in used or (keep_first and n == 0)]
        number = {old: new for new, old in enumerate(kept)}
        steps = [self.steps[n - first] for n in kept if n >= first]
        owned = sorted({layer for step in steps for layer in step.layers})
        layer = {old: new for new, old in enumerate(owned)}
        return replace(
            self,
            inputs=tuple(self.inputs[n] for n in kept if n < first),
            layers=tuple(self.layers[n] for n in owned),
            steps=tuple(
                replace(
                    step,
                    reads=tuple(number[n] for n in step.reads),
                    layers=tuple(layer[n] for n in step.layers),
                )
                for step in steps
            ),
            outputs=tuple(number[n] for n in self.outputs),
        )

    @functools.cached_property
    def source(self) -> str:
        """The class of the model, as Python code."""
        return "\n".join(self._lines())

    @property
    def modules(self) -> tuple[str, ...]:
        """What has to be imported for its layers, beside torch."""
        return tuple(sorted({layer.module for layer in self.layers if layer.module}))

    def build(self) -> nn.Module:
        """The model, in evaluation mode, with numbers at which a wrong fold shows."""
        name = f"<reparam.testing graph {abs(hash(self.source)):x}>"
        text = self.source
        namespace = scope(self.modules)
        exec(compile(text, name, "exec"), namespace)
        # Tracebacks, and the remarks that name a line, look the source up there.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        weakref.finalize(namespace["Net"], linecache.cache.pop, name, None)
        with TORCH.random.fork_rng(devices=[]):
            seed(self.seed)
            model: nn.Module = namespace["Net"]().to(getattr(torch, self.dtype))
        return randomised(model, *self.example(), seed=self.seed, special=self.special)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the sizes that were drawn."""
        return self._drawn([each.shape for each in self.inputs])

    def examples(self) -> Iterator[tuple[Tensor, ...]]:
        """Inputs of several sizes, those that were drawn first; the graph may refuse the others."""
        yield self.example()
        for size in (9, 1, 4):
            yield self._drawn([each.resized(size) for each in self.inputs])

    def _drawn(self, shapes: list[Shape]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.seed)
        dtype = getattr(torch, self.dtype)
        return tuple(
            torch.randn(shape, generator=generator, device=CPU).to(dtype) for shape in shapes
        )

    def tensor_name(self, number: int) -> str:
        """What a tensor is called in the source."""
        if number < len(self.inputs):
            return "xyz"[number]
        step = number - len(self.inputs)
        return NAMES[step] if step < len(NAMES) else f"t{step}"

    def layer_name(self, number: int) -> str:
        """What a layer is called in the source."""
        kind = self.layers[number].kind
        earlier = sum(layer.kind == kind for layer in self.layers[:number])
        return f"{kind}{earlier + 1}"

    def _lines(self) -> Iterator[str]:
        arguments = ", ".join(map(self.tensor_name, range(len(self.inputs))))
        yield "class Net(nn.Module):"
        if self.layers:
            yield "    def __init__(self):"
            yield "        super().__init__()"
            for number, layer in enumerate(self.layers):
                yield f"        self.{self.layer_name(number)} = {layer.source}"
                if layer.hook:
                    yield f"        self.{self.layer_name(number)}.{HOOKS[layer.hook]}"
            yield ""
        yield f"    def forward(self, {arguments}):"
        for number, step in enumerate(self.steps, len(self.inputs)):
            tensors = [self.tensor_name(read) for read in step.reads]
            owned = [f"self.{self.layer_name(layer)}" for layer in step.layers]
            for line in step.lines(self.tensor_name(number), tensors, owned):
                yield f"        {line}"
        yield f"        return {', '.join(map(self.tensor_name, self.outputs))}"
