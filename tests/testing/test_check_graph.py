"""`check_graph` finds what is wrong with a compile, and what a check of the compile refused."""

from typing import Any

import pytest
from torch import fx

from reparam.report import Remark
from reparam.testing import CheckFailed, Graph, Input, Layer, Step, check_graph
from reparam.testing.failures import went_wrong
from tests.testing import wrong_passes as wrong

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

IMAGES = (Input((2, 4, 5, 6), 2),)
NORM = Graph(
    IMAGES,
    (Layer("conv", "nn.Conv2d(4, 4, 1)"), Layer("bn", "nn.BatchNorm2d(4)")),
    (Step("{p}({0})", (0,), (0,), n=2), Step("{p}({0})", (1,), (1,), n=2)),
    (2,),
)
CLONE = Graph(IMAGES, (), (Step("{0}.clone()", (0,), n=2),), (1,), given=True)


def mirror_results(graph_module: fx.GraphModule) -> fx.GraphModule:
    (output,) = graph_module.graph.find_nodes(op="output")
    with graph_module.graph.inserting_before(output):
        mirrored = graph_module.graph.call_method("flip", (output.args[0], -1))
    output.args = (mirrored,)
    return graph_module


def test_what_is_right() -> None:
    assert len(check_graph(NORM).applied) == 1
    assert not check_graph(CLONE).applied
    assert len(check_graph(NORM, (wrong.rename_relu,)).applied) == 1


@pytest.mark.parametrize(
    ("graph", "rule", "finding"),
    [
        (NORM, wrong.drop_epsilon, "drop_epsilon: bn1: its replacement differs by"),
        (NORM, wrong.write_to_weights, "changes the model that it is given: bn1.running_mean"),
        (NORM, mirror_results, "rolled back: its result differs by"),
        (CLONE, wrong.drop_clones, "output 0 of the result lies in memory of input 0"),
    ],
    ids=lambda each: getattr(each, "name", getattr(each, "__name__", "")),
)
def test_what_is_wrong(graph: Graph, rule: Any, finding: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        check_graph(graph, (rule,))
    assert finding in caught.value.finding
    assert "fused = reparam.compile(model" in caught.value.program


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("its replacement differs by 1.0e-02, so it was not done", True),
        ("its replacement fails: mat1 and mat2 shapes cannot be multiplied", True),
        ("its proof fails: (2, 4) became (2, 3)", True),
        ("the pass failed with ZeroDivisionError: of all things", True),
        ("rolled back: its outputs have another structure", True),
        ("rolled back: it can't be checked without example_inputs", False),
        ("its replacement reads what it replaces, or what comes after it", False),
        ("it would not make the graph smaller", False),
    ],
)
def test_what_went_wrong_is_told_from_what_was_declined(message: str, expected: bool) -> None:
    assert went_wrong(Remark("missed", "fold", "conv", message)) is expected


def test_a_pass_that_could_not_be_checked_is_no_finding() -> None:
    anything = Graph((Input((2, 4), 0),), (), (Step("{0}.relu()", (0,)),), (1,))
    (remark,) = check_graph(anything, (wrong.rename_relu,)).missed
    assert remark.message == "rolled back: it can't be checked without example_inputs"
