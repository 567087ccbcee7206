"""One graph in a hundred of the campaign in docs/campaign.md, with seeds of its own."""

from collections import Counter

import pytest
import torch

import passes
from reparam.testing import graphs
from reparam.testing.check_graph import compiled
from reparam.testing.equivalence import difference
from reparam.testing.profiles import sample
from tests.campaign import SHARD, Shard, by_roundings, fused_by_torch, shard

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


@pytest.mark.long
@pytest.mark.parametrize("seed", [1000, 1001], ids=["checked", "unchecked"])
def test_generated_graphs_are_compiled_right(seed: int) -> None:
    found = shard(seed)
    assert (found.wrong, found.failed, found.rejected) == ([], [], [])
    assert found.graphs == SHARD
    assert found.matched >= 0.8 * SHARD


def test_a_shard_counts_what_it_finds() -> None:
    found = shard(0, 20)
    assert found.graphs == 20
    assert sum(found.fired.values()) >= found.matched > 0
    assert found == shard(0, 20)
    assert found != Shard()


def test_what_is_wrong_is_no_rounding() -> None:
    """Weights that are off by a hundredth, which bfloat16 would hardly show."""
    several = [graph for graph in sample(graphs(), 60, seed=0) if graph.dtype == "float32"]
    judged: Counter[bool] = Counter()
    for graph in several:
        model = graph.build()
        fused, _ = compiled(graph, model, passes.DEFAULT, False)
        with torch.no_grad():
            for parameter in fused.parameters():
                parameter.mul_(1.01)
        differs = difference(model, fused, graph.example())
        if differs is not None:
            judged[by_roundings(graph, model, fused, graph.example())] += 1
    assert judged[True] == 0
    assert judged[False] > len(several) / 2


def test_the_graphs_show_where_the_fuser_of_torch_is_wrong() -> None:
    assert fused_by_torch(0, 60)["wrong"] > 0
