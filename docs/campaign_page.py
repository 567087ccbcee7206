"""Compile 100 000 generated graphs, and write docs/campaign.md: `make evidence`.

Each shard is kept in build/evidence as soon as it is done, so that a run that was stopped goes on
where it was.
"""

import json
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

import passes
from tests.campaign import SHARD, Shard, fused_by_torch, shard

PAGE = Path(__file__).with_name("campaign.md")
DONE = Path("build/evidence/campaign.jsonl")
GRAPHS = 100_000
BY_TORCH = 4
"""Shards that PyTorch's own fuser is given."""

HEAD = """\
# A campaign of generated graphs

{graphs:,} graphs of `reparam.testing.graphs()` through `reparam.compile` with the default passes,
half of them with checks and half without, each result compared with its original at several sizes,
and as to the memory that it lies in (`tests/campaign.py`; `make evidence` does it again). On
{matched:.1%} of them there was something to fuse; {rewrites:,} rewrites were made.

| | graphs |
|---|---|
| wrong results | {wrong} |
| compiles that failed | {failed} |
| rewrites that a check refused | {rejected} |
| right results refused for roundings, in float32 or bfloat16 | {unlucky} |

| pass | fired on |
|---|---|
"""

TORCH = """
PyTorch's own fuser, `torch.fx.experimental.optimization.fuse`, on the first {graphs:,} of these
graphs, which took {seconds:.0f} seconds:

| | graphs |
|---|---|
"""


def main() -> None:
    """Compile what has not been compiled yet, and write the page."""
    DONE.parent.mkdir(parents=True, exist_ok=True)
    done = dict(map(json.loads, DONE.read_text().splitlines())) if DONE.exists() else {}
    left = [seed for seed in range(GRAPHS // SHARD) if seed not in done]
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork"), _single) as pool:
        running = {pool.submit(shard, seed): seed for seed in left}
        for finished in as_completed(running):
            seed, found = running[finished], asdict(finished.result())
            done[seed] = found
            with DONE.open("a") as file:
                file.write(json.dumps([seed, found]) + "\n")
        begun = time.monotonic()
        theirs = sum(pool.map(fused_by_torch, range(BY_TORCH)), Counter[str]())
        seconds = time.monotonic() - begun
    _write([Shard(**found) for found in done.values()], theirs, seconds)


def _single() -> None:
    """One thread for each process: more would wait for each other."""
    torch.set_num_threads(1)


def _write(shards: list[Shard], theirs: Counter[str], seconds: float) -> None:
    graphs = sum(each.graphs for each in shards)
    lines = HEAD.format(
        graphs=graphs,
        matched=sum(each.matched for each in shards) / graphs,
        rewrites=sum(each.rewrites for each in shards),
        wrong=sum(len(each.wrong) for each in shards),
        failed=sum(len(each.failed) for each in shards),
        unlucky=sum(each.unlucky for each in shards),
        rejected=sum(len(each.rejected) for each in shards),
    )
    for rule in passes.DEFAULT:
        fired = sum(each.fired.get(rule.name, 0) for each in shards)
        lines += f"| `{rule.name}` | {fired:,} |\n"
    lines += TORCH.format(graphs=theirs.total(), seconds=seconds)
    lines += "".join(f"| {outcome} | {count} |\n" for outcome, count in theirs.most_common())
    PAGE.write_text(lines)


if __name__ == "__main__":
    main()
