"""Prove what the default passes do to blocks of every motif, and write docs/proofs.md."""

import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import passes
from reparam.proof import CLAIM
from tests.proofs import Proofs, proofs

PAGE = Path(__file__).with_name("proofs.md")

HEAD = f"""\
# What is proven of the default passes

Each rewrite that the default passes make of generated blocks (`tests/proofs.py`), replayed over a
finite field. What is proven:

> {CLAIM}.

*Error probability* bounds the chance that a wrong rewrite passes, over the random choices of the
proof; *degree* is that of the difference of both sides, at most. What has no counterpart in a
finite field is checked in float64 only, and listed with the reason. `docs/how_it_works.md` says
what is claimed and what is not; `make evidence` writes this page.

| pass | proven | degree | error probability | premises | checked in float64 only |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Write the page."""
    begun = time.perf_counter()
    with ProcessPoolExecutor(None, get_context("fork"), torch.set_num_threads, (1,)) as pool:
        found = proofs(run=pool.map)
    seconds = time.perf_counter() - begun
    lines = [_line(rule.name, found.get(rule.name, Proofs())) for rule in passes.DEFAULT]
    PAGE.write_text(HEAD + "".join(lines))
    total = sum(one.proven for one in found.values())
    print(f"{total} proofs of {len(found)} passes in {seconds:.0f} s")


def _line(name: str, found: Proofs) -> str:
    cells = (
        f"`{name}`", found.proven, found.degree, f"{found.probability:.0e}",
        _told(found.premises), _told(found.unproven),
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |\n"


def _told(counts: Counter[str]) -> str:
    return "; ".join(f"{what} ({count})" for what, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    main()
