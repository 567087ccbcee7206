"""Make a graph that shows something smaller, as long as it still shows it.

Hypothesis shrinks what was drawn, and can take out just what was drawn at once. Here any step can
go: cut off before it, cut off behind it, or passed by.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from reparam.testing.draft import Several, shape_of
from reparam.testing.graph import Graph, Input, Step

MOST = 400
"""How many smaller graphs are tried, at most."""


def reduced(graph: Graph, shows: Callable[[Graph], bool]) -> Graph:
    """The smallest graph found that still shows it.

    Args:
        graph: one that does.
        shows: whether another one does. It may be asked about graphs that do not run.
    """
    tried = 0
    seen = {graph}
    while True:
        for smaller in _smaller(graph):
            if _size(smaller) >= _size(graph) or smaller in seen:
                continue
            seen.add(smaller)
            tried += 1
            if tried > MOST:
                return graph
            if shows(smaller):
                graph = smaller
                break
        else:
            return graph


def _size(graph: Graph) -> tuple[int, ...]:
    hooks = sum(bool(layer.hook) for layer in graph.layers)
    flags = graph.special + graph.given + (graph.dtype != "float64") + (graph.seed > 0)
    outputs, inputs = len(graph.outputs), len(graph.inputs)
    return graph.nodes, outputs, inputs, hooks, flags, len(graph.source)


def _smaller(graph: Graph) -> Iterator[Graph]:
    """Graphs with less in them, those first that lack most."""
    first = len(graph.inputs)
    shapes = _shapes(graph)
    for number in range(first, first + graph.nodes):  # what comes behind goes
        if not isinstance(shapes[number], Several) and (number,) != graph.outputs:
            yield replace(graph, outputs=(number,)).pruned()
    for number in range(first + graph.nodes - 1, first - 1, -1):  # what comes before goes
        step = graph.steps[number - first]
        if not isinstance(shapes[number], Several):
            yield from _given(graph, number, shapes[number], step.n)
    for number in range(first, first + graph.nodes):  # one goes
        for read in dict.fromkeys(graph.steps[number - first].reads):
            if shapes[read] == shapes[number]:
                yield _bypassed(graph, number, read)
    for output in graph.outputs if len(graph.outputs) > 1 else ():
        yield replace(graph, outputs=tuple(o for o in graph.outputs if o != output)).pruned()
    for number, layer in enumerate(graph.layers):
        if layer.hook:
            layers = list(graph.layers)
            layers[number] = replace(layer, hook="")
            yield replace(graph, layers=tuple(layers))
    for changes in ({"special": False}, {"given": False}, {"dtype": "float64"}, {"seed": 0}):
        yield replace(graph, **changes)


def _shapes(graph: Graph) -> list[Any]:
    """The shape of each tensor."""
    shapes: list[Any] = [each.shape for each in graph.inputs]
    for step in graph.steps:
        layers = tuple(replace(graph.layers[layer], hook="") for layer in step.layers)
        shapes.append(shape_of(step.code, layers, tuple(shapes[read] for read in step.reads)))
    return shapes


def _given(graph: Graph, number: int, shape: tuple[int, ...], n: int) -> Iterator[Graph]:
    """The graph with one of its tensors as an input, in the place of all that led to it."""
    if len(graph.inputs) == 3 or len(shape) < 2:
        return
    first = len(graph.inputs)
    fixed = any(each.fixed for each in graph.inputs)
    moved = [*range(first), *range(first + 1, first + graph.nodes + 1)]
    moved[number] = first
    steps = tuple(
        replace(step, reads=tuple(moved[read] for read in step.reads)) for step in graph.steps
    )
    outputs = tuple(moved[output] for output in graph.outputs)
    inputs = (*graph.inputs, Input(shape, n, fixed))
    yield replace(graph, inputs=inputs, steps=steps, outputs=outputs).pruned(keep_first=False)


def _bypassed(graph: Graph, number: int, read: int) -> Graph:
    """The graph with one of its tensors in the place of another, computed from it."""

    def moved(reads: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(read if other == number else other for other in reads)

    steps: list[Step] = [replace(step, reads=moved(step.reads)) for step in graph.steps]
    return replace(graph, steps=tuple(steps), outputs=moved(graph.outputs)).pruned()
