"""Compile 100 000 generated graphs, and write docs/campaign.md: `make evidence`.

A run that was stopped goes on where it was.
"""

import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

import passes
from benchmarks.record import EVIDENCE, Record, commit, fingerprint
from tests.campaign import SHARD, Shard, fused_by_torch, shard

PAGE = Path(__file__).with_name("campaign.md")
DONE = EVIDENCE / "campaign.jsonl"
GRAPHS = 100_000
BY_TORCH = 4
"""Shards that PyTorch's own fuser is given."""

HEAD = """\
# A campaign of generated graphs

{graphs:,} graphs of `reparam.testing.graphs()` through `reparam.compile` with the default passes,
half of them with checks and half without, each result compared with its original at several sizes,
and as to the memory that it lies in (`tests/campaign.py`; `make evidence` does it again). It ran on
the sources of commit {commit}. On {matched:.1%} of them there was something to fuse;
{rewrites:,} rewrites were made.

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
graphs; to draw, fuse and compare them took {taken}:

| | graphs |
|---|---|
"""


def main() -> None:
    """Compile what has not been compiled yet, and write the page."""
    record, workers = Record(DONE, fingerprint("tests/campaign.py")), os.cpu_count() or 1
    seeds = [seed for seed in range(GRAPHS // SHARD) if (str(seed),) not in record.rows]
    with ProcessPoolExecutor(workers, get_context("fork"), _single) as pool:
        running = {pool.submit(shard, seed): str(seed) for seed in seeds}
        for finished in as_completed(running):
            record.keep(asdict(finished.result()), running[finished])
        begun = time.monotonic()
        theirs = sum(pool.map(fused_by_torch, range(BY_TORCH)), Counter[str]())
        taken = f"{time.monotonic() - begun:.0f} seconds in {workers} processes"
    _write([Shard(**found) for found in record.rows.values()], theirs, taken)


def _single() -> None:
    """One thread for each process: more would wait for each other."""
    torch.set_num_threads(1)


def _write(shards: list[Shard], theirs: Counter[str], taken: str) -> None:
    graphs = sum(each.graphs for each in shards)
    lines = HEAD.format(
        graphs=graphs,
        commit=commit("tests/campaign.py"),
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
    lines += TORCH.format(graphs=theirs.total(), taken=taken)
    lines += "".join(f"| {outcome} | {count} |\n" for outcome, count in theirs.most_common())
    PAGE.write_text(lines)


if __name__ == "__main__":
    main()
