"""One graph in a hundred of the campaign in docs/campaign.md, with seeds of its own."""

import pytest

from tests.campaign import SHARD, Shard, fused_by_torch, shard

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


def test_the_graphs_show_where_the_fuser_of_torch_is_wrong() -> None:
    assert fused_by_torch(0, 60)["wrong"] > 0
