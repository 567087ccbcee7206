"""Generated graphs: each runs, is what it prints, and compiles; all that there is to do is met."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import passes
import reparam
from reparam.testing import MOTIFS, Graph, blocks, graphs
from reparam.testing.equivalence import difference
from reparam.testing.graph import Input, Layer, Step
from reparam.testing.profiles import sample
from reparam.testing.reduce import reduced

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

RATES = 300
"""Graphs on which the rates of layers are measured."""

COMPILED = 1000
"""Graphs on which the rates of passes are."""


@pytest.mark.parametrize("motif", MOTIFS.values(), ids=MOTIFS)
def test_each_motif_runs_and_compiles(motif: Any) -> None:
    for graph in sample(blocks(motif), 12):
        model, example = graph.build(), graph.example()
        assert not model.training
        result = model(*example)
        outputs = result if isinstance(result, tuple) else (result,)
        assert len(outputs) == len(graph.outputs)
        assert all(y.isfinite().all() for y in outputs)
        assert {y.dtype for y in outputs} == {getattr(torch, graph.dtype)}
        fused = reparam.compile(model, example if graph.given else None, verify=False)
        for inputs in graph.examples():
            assert difference(model, fused, inputs) is None, graph.source


@settings(max_examples=30)
@given(graphs())
def test_a_graph_is_the_same_every_time(graph: Graph) -> None:
    first, second = graph.build(), graph.build()
    states = first.state_dict(), second.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert graph.pruned() == graph, "nothing is in it that no output depends on"
    owned = {layer for step in graph.steps for layer in step.layers}
    assert owned == set(range(len(graph.layers)))


def test_what_is_drawn_is_varied() -> None:
    found = sample(graphs(), RATES)
    seen = Counter(
        feature
        for graph in found
        for feature, there in {
            "hooks": any(layer.hook for layer in graph.layers),
            "shared": len([n for step in graph.steps for n in step.layers]) > len(graph.layers),
            "outputs": len(graph.outputs) > 1,
            "groups": "groups=" in graph.source,
            "dilation": "dilation=" in graph.source,
            "transposed": "ConvTranspose" in graph.source,
            "in place": "inplace=True" in graph.source or "_()" in graph.source,
            "1-d": any(each.n == 1 for each in graph.inputs),
            "3-d": any(each.n == 3 for each in graph.inputs),
            "tokens": any(each.n == 0 and len(each.shape) == 3 for each in graph.inputs),
            "features": any(len(each.shape) == 2 for each in graph.inputs),
            "bfloat16": graph.dtype == "bfloat16",
            "float32": graph.dtype == "float32",
            "special": graph.special,
            "given": graph.given,
            "not given": not graph.given,
            "several readers": any(
                sum(n in step.reads for step in graph.steps) > 1
                for n in range(graph.nodes + len(graph.inputs))
            ),
        }.items()
        if there
    )
    assert len(seen) == 17
    assert min(seen.values()) >= RATES // 100, seen


@pytest.mark.long
def test_every_default_pass_fires() -> None:
    fired: Counter[str] = Counter()
    for graph in sample(graphs(), COMPILED):
        fused = reparam.compile(graph.build(), graph.example(), verify=False)
        rules = {remark.rule for remark in reparam.report(fused).applied}
        fired.update(rules)
        fired["any"] += bool(rules)
    assert fired.pop("any") >= 0.8 * COMPILED
    assert set(fired) == {rule.name for rule in passes.DEFAULT}
    assert min(fired.values()) >= COMPILED // 100, fired


CHAIN = Graph(
    inputs=(Input((2, 4, 5, 6), 2),),
    layers=(
        Layer("conv", "nn.Conv2d(4, 4, 1)", hook="pre"),
        Layer("bn", "nn.BatchNorm2d(4)"),
        Layer("conv", "nn.Conv2d(4, 2, 3)"),
    ),
    steps=(
        Step("F.relu({0})", (0,), n=2),
        Step("{p}({0})", (1,), (0,), n=2),
        Step("{0} + {1}", (1, 2), n=2),
        Step("{p}({0})", (3,), (1,), n=2),
        Step("{p}({0})", (4,), (2,), n=2),
    ),
    outputs=(5, 4),
    dtype="float32",
    seed=7,
    given=True,
)


def test_source_is_plain_python() -> None:
    assert CHAIN.source.splitlines() == [
        "class Net(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.conv1 = nn.Conv2d(4, 4, 1)",
        "        self.conv1.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))",
        "        self.bn1 = nn.BatchNorm2d(4)",
        "        self.conv2 = nn.Conv2d(4, 2, 3)",
        "",
        "    def forward(self, x):",
        "        a = F.relu(x)",
        "        b = self.conv1(a)",
        "        c = a + b",
        "        d = self.bn1(c)",
        "        e = self.conv2(d)",
        "        return e, d",
    ]


def calls(graph: Graph, *kinds: type[nn.Module]) -> bool:
    """Whether there are layers of these kinds, in this order, in a graph that runs."""
    model = graph.build()
    model(*graph.example())
    names = [type(layer) for layer in model.children()]
    return [kind for kind in names if kind in kinds] == list(kinds)


def test_what_shows_something_is_cut_down_to_it() -> None:
    smallest = reduced(CHAIN, lambda graph: calls(graph, nn.BatchNorm2d))
    assert smallest.nodes == 1
    assert smallest.source.splitlines()[-2:] == ["        a = self.bn1(x)", "        return a"]
    assert (smallest.seed, smallest.given, smallest.dtype) == (0, False, "float64")


def test_a_step_in_between_is_passed_by() -> None:
    smallest = reduced(CHAIN, lambda graph: calls(graph, nn.Conv2d, nn.BatchNorm2d))
    assert smallest.nodes == 2
    assert not any(layer.hook for layer in smallest.layers)


def test_what_everything_is_needed_for_stays() -> None:
    assert reduced(CHAIN, lambda graph: graph == CHAIN) is CHAIN


def test_sizes_of_examples() -> None:
    shapes = [tuple(x.shape) for (x,) in CHAIN.examples()]
    assert shapes == [(2, 4, 5, 6), (1, 4, 9, 10), (1, 4, 1, 2), (1, 4, 4, 5)]
    fixed = Graph((Input((2, 4, 5, 6), 2, fixed=True),), (), (), (0,))
    assert {tuple(x.shape)[1:] for (x,) in fixed.examples()} == {(4, 5, 6)}
