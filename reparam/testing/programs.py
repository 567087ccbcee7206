"""A graph and a pass as a short program that anyone can run."""

import sys

from reparam.pipelines import Pass
from reparam.rewrite import Rewrite
from reparam.runs import runs_on
from reparam.testing.check_model import name_of
from reparam.testing.graph import Graph, Shape


def program(graph: Graph, rule: Pass, *, sizes: bool = False) -> str:
    """The lines that build the model of a graph and hold a pass to it.

    Args:
        graph: what was found.
        rule: the pass.
        sizes: whether it takes inputs of other sizes to show what is wrong.
    """
    inputs = _inputs(graph, sizes)
    given = ", given=True" if graph.given else ""
    named = f"inputs[0], {', '.join(f'inputs[{i}]' for i in range(1, len(inputs)))}"
    called = f"check_model({name_of(rule)}, model, {named if sizes else 'inputs'}{given})"
    return _program(graph, inputs, f"{_import(rule)}\n", ["check_model"], [called])


def compile_program(graph: Graph) -> str:
    """The lines that build the model of a graph, compile it, and compare the two at all sizes."""
    example = ", inputs[0]" if graph.given else ""
    last = [f"fused = reparam.compile(model{example})", "assert_equivalent(model, fused, *inputs)"]
    return _program(graph, _inputs(graph, True), "import reparam\n", ["assert_equivalent"], last)


def _inputs(graph: Graph, sizes: bool) -> list[list[Shape]]:
    """The shapes of the inputs, those first that were drawn."""
    if not sizes:
        return [[each.shape for each in graph.inputs]]
    model = graph.build()
    return [
        [tuple(t.shape) for t in inputs] for inputs in graph.examples() if runs_on(model, inputs)
    ]


def _program(
    graph: Graph, inputs: list[list[Shape]], imports: str, used: list[str], last: list[str]
) -> str:
    """The model and its inputs, then some last lines."""
    modules = "".join(f"import {module}\n" for module in graph.modules)
    names = [*used, *(["layers"] if " = layers." in graph.source else []), "randomised"]
    dtype = f".to(torch.{graph.dtype})"
    rows = [_drawn(shapes, dtype) for shapes in inputs]
    one = len(rows) == 1
    listed = rows[0] if one else "[\n" + "".join(f"    {row},\n" for row in rows) + "]"
    special = ", special=True" if graph.special else ""
    example = "inputs" if one else "inputs[0]"
    return f"""\
import torch
import torch.nn.functional as F
from torch import nn

{modules}{imports}from reparam.testing import {", ".join(names)}


{graph.source}


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed({graph.seed}))


inputs = {listed}
torch.manual_seed({graph.seed})
model = randomised(Net(){dtype}, *{example}, seed={graph.seed}{special})
""" + "".join(f"{line}\n" for line in last)


def _drawn(shapes: list[Shape], dtype: str) -> str:
    """A tuple of tensors of these shapes, as source."""
    several = [f"drawn({', '.join(map(str, shape))}){dtype}" for shape in shapes]
    return f"({', '.join(several)},)" if len(several) == 1 else f"({', '.join(several)})"


def _import(rule: Pass) -> str:
    """The line that makes a pass known; where it is not at the top of a module, that says so."""
    function = rule.function if isinstance(rule, Rewrite) else rule
    module, name = getattr(function, "__module__", None), name_of(rule)
    if getattr(sys.modules.get(str(module)), name, None) is not rule:
        return f"# {name}, the pass, has to be defined here: it is not at the top of a module"
    return f"from {module} import {name}"
