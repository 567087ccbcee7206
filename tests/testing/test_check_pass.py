"""`check_pass` takes what is right, and shows what is wrong by a program of a few lines."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import passes
import reparam
from reparam.errors import PassError, ReparamError
from reparam.testing import MOTIFS, CheckFailed, blocks, check_model, check_pass, graphs
from tests.testing import wrong_passes as wrong

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

ROOT = Path(__file__).parents[2]
MOST_NODES = 5


def failure(rule: object, **options: object) -> CheckFailed:
    with pytest.raises(CheckFailed) as caught:
        check_pass(rule, **options)
    return caught.value


def runs(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    return subprocess.run(
        [sys.executable, folder / "program.py"],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_right_pass() -> None:
    begun = time.monotonic()
    found = check_pass(wrong.fold_norm, max_examples=40)
    assert time.monotonic() - begun < 60
    assert found.fired > 10
    assert found.applied <= found.equal
    assert found.proven > 0
    assert "conv_norm" in found.motifs
    assert str(found).startswith(f"fold_norm: right on all {found.graphs} graphs, and fired on ")


def test_it_is_deterministic_and_a_seed_changes_it() -> None:
    strategy = blocks(MOTIFS["conv_norm"])
    options = {"graphs": strategy, "max_examples": 10, "min_fired": 0}
    first, second = (check_pass(wrong.fold_norm, **options) for _ in range(2))
    assert str(first) == str(second)
    others = {str(check_pass(wrong.fold_norm, seed=seed, **options)) for seed in range(4)}
    assert others - {str(first)}  # of the counts of one seed, all may happen to agree


@pytest.mark.parametrize(
    ("rule", "finding"),
    [
        (wrong.drop_epsilon, "its replacement differs by"),
        (wrong.forget_readers, "its replacement differs by"),
        (wrong.forget_groups, "its replacement differs by"),
        (wrong.write_to_weights, "it writes to a weight that it was shown"),
        (wrong.edit_graph, "it edits the graph that it is asked about"),
        (wrong.fail, "it raised ZeroDivisionError: of all things"),
        (wrong.approximate_gelu, "DIFFERENT: error against float64 is"),
        (wrong.double_parameters, "double_parameters, the whole model on"),
    ],
    ids=lambda each: getattr(each, "name", getattr(each, "__name__", "")),
)
def test_a_wrong_pass(rule: object, finding: str, tmp_path: Path) -> None:
    found = failure(rule, max_examples=60)
    assert finding in found.finding
    assert 0 < found.nodes <= MOST_NODES, found
    done = runs(found.program, tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith(found.finding.splitlines()[-1])


def test_a_pass_that_keeps_a_state() -> None:
    found = failure(reparam.rewrite(wrong.Moody().__call__))
    assert "asked twice about one call, it answers differently" in found.finding
    assert "has to be defined here: it is not at the top of a module" in found.program


def test_a_pass_that_is_wrong_now_and_then() -> None:
    found = failure(reparam.rewrite(wrong.Forgetful().__call__))
    assert str(found) == "__call__: asked twice about one graph, it answers differently"


def test_a_vacuous_pass() -> None:
    found = failure(wrong.look_for_nothing, max_examples=20)
    assert found.finding.startswith("look_for_nothing fired on 0 of ")
    assert "graphs, at least 1 wanted" in found.finding


def test_a_pass_that_only_grows_ends_and_is_told_apart() -> None:
    found = failure(wrong.grow, max_examples=20)
    assert "grow fired on 0 of" in found.finding
    assert "it would not make the graph smaller" in found.finding


def test_a_pass_that_fires_too_seldom() -> None:
    assert "at least 500 wanted" in failure(wrong.fold_norm, max_examples=20, min_fired=500).finding


def test_a_torch_fx_pass() -> None:
    found = check_pass(wrong.rename_relu, max_examples=40)
    assert 0 < found.fired < found.graphs
    assert (found.equal, found.proven) == (0, 0), "it is compared as a whole"


def test_what_is_no_pass() -> None:
    with pytest.raises(PassError, match="is no pass"):
        check_pass(3)  # type: ignore[arg-type]
    with pytest.raises(ReparamError, match="no profile is named 'weekly'"):
        check_pass(wrong.fold_norm, profile_name="weekly")


class Gate(nn.Module):
    """Two layers of sixteen channels, which no graph of the library's has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.entr(self.conv(x).sigmoid())


def drop_entropy(graph_module: fx.GraphModule) -> fx.GraphModule:
    for node in list(graph_module.graph.nodes):
        if node.target is torch.special.entr:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    return graph_module


def test_blocks_of_ones_own() -> None:
    assert "fired on 0 of" in failure(drop_entropy, max_examples=10).finding
    shapes = [((2, 16, 4, 4), 2)]
    found = failure(drop_entropy, max_examples=10, blocks=[Gate], shapes=shapes)
    assert found.nodes == 1
    assert f"{Gate.__module__}.Gate()" in found.program
    with pytest.raises(PassError, match="takes none of the shapes"):
        check_pass(drop_entropy, blocks=[Gate])
    with pytest.raises(PassError, match="at a module's top"):
        check_pass(drop_entropy, blocks=[lambda: nn.ReLU(inplace=True)])


def test_graphs_of_ones_own() -> None:
    strategy = graphs(shapes=[((2, 4), 0)], dtypes=["float64"])
    found = check_pass(passes.fold_batchnorm, graphs=strategy, max_examples=50)
    assert (found.graphs, found.motifs) == (50, ())


def test_one_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 6, 5)
    outcome = check_model(passes.fold_batchnorm, model, x, (x[:, :, :4],))
    assert (outcome.applied, outcome.equal, outcome.proven) == (1, 1, 1)
    with pytest.raises(CheckFailed, match="double_parameters, the whole model on"):
        check_model(wrong.double_parameters, model, x)


def test_a_result_in_memory_of_an_input() -> None:
    x = torch.randn(2, 3, 6, 5)
    with pytest.raises(CheckFailed, match="drop_clones: output 0 of the result lies in memory of"):
        check_model(wrong.drop_clones, wrong.Cloning().eval(), x)


def test_without_hypothesis_the_extra_is_named() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; import reparam.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("install it with: pip install 'reparam[test]'")


@pytest.mark.long
@pytest.mark.parametrize("rule", passes.DEFAULT, ids=lambda rule: rule.name)
def test_the_default_passes(rule: Any) -> None:
    assert check_pass(rule, min_fired=15).proven > 0
