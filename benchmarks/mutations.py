"""How many planted bugs the proof kills, and how many `check_pass` does.

    python -m benchmarks.mutations [--only NAME ...] [--write]

Each bug is a small wrong replacement in one source file (`benchmarks/planted/*.toml`). It is
planted in a process of its own, as the file is imported; no file is touched. First, each rewrite
that a pass makes of blocks that were written for it, then of generated graphs, is held to the proof
alone; then the pass is given to `check_pass`. With no bug planted, generated graphs show false
alarms. Results are kept in build/evidence, so that a run that was stopped goes on where it was.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import hypothesis.strategies
import torch.fx
import typer
from rich.console import Console

from benchmarks.planted import table
from benchmarks.planted.bugs import Bug, load
from benchmarks.planted.child import run
from benchmarks.planted.trial import alarm_trial, check_trial, prove_trial
from benchmarks.record import EVIDENCE, ROOT, Record, fingerprint

SHARED = (hypothesis.strategies, torch.fx)
"""What takes long to import is imported once, and forked with the rest."""

DONE = EVIDENCE / "mutations.jsonl"

SECONDS = 400.0
"""How long one bug may take in each stage."""

STAGES = ("proof", "check", "control", "alarms")

ATTEMPTS = (False, True)
"""`check_pass` is given its own graphs; then, where nothing shows, the blocks of the corpus too."""

WANTED, GRAPHS = 10_000, 100
"""Rewrites without a bug, and how many graphs are drawn in one process for them."""


def measured(bug: Bug, stage: str, attempts: tuple[bool, ...]) -> dict[str, Any]:
    """What kills a bug: the proof, beside the check in float64, or `check_pass`."""
    begun = time.monotonic()
    task = partial(prove_trial, bug, bug.passes)
    if stage == "check":
        task = partial(check_trial, bug, bug.passes, attempts)
    sent, ended = run(task, SECONDS)
    row: dict[str, Any] = {"id": bug.id, "ended": ended, "holes": []}
    for message in sent:
        if "killed" in message:
            row[message.pop("killed")] = message
        elif "hole" in message:
            row["holes"].append(message["hole"])
        else:
            row["run"] = message
    return row | {"seconds": round(time.monotonic() - begun, 1)}


def control(record: Record) -> None:
    """What `check_pass` says of the passes without a bug: else it would count for nothing."""
    for name in sorted({name for bug in load() for name in bug.passes}):
        if (name, "control") not in record.rows:
            begun = time.monotonic()
            sent, ended = run(partial(check_trial, None, (name,), ATTEMPTS), SECONDS)
            row = {"ended": ended, "found": sent, "seconds": round(time.monotonic() - begun, 1)}
            record.keep(row, name, "control")


def alarms(record: Record) -> Iterator[dict[str, Any]]:
    """Rewrites without a bug, chunk by chunk, until there are enough."""
    seen = seed = 0
    while seen < WANTED:
        key = f"graphs {seed}"
        if (key, "alarms") not in record.rows:
            sent, ended = run(partial(alarm_trial, seed, GRAPHS), SECONDS)
            found = [message for message in sent if "alarm" in message]
            tally = sent[-1].get("tally", []) if sent else []
            record.keep({"ended": ended, "alarms": found, "tally": tally}, key, "alarms")
        row = record.rows[key, "alarms"]
        seen += sum(times for *_, times in row["tally"])
        seed += 1
        yield row


def main(
    only: Annotated[list[str] | None, typer.Option(help="How names of bugs begin.")] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Of: proof, check, control, alarms.")
    ] = None,
    old: Annotated[bool, typer.Option(help="Take what was measured on other sources too.")] = False,
    survivors: Annotated[bool, typer.Option(help="Measure again what survived.")] = False,
    again: Annotated[bool, typer.Option(help="Measure what was measured already.")] = False,
    shard: Annotated[str, typer.Option(help="Which part of how many to measure: 0/2.")] = "0/1",
    file: Annotated[Path, typer.Option(help="Where results are kept.")] = DONE,
    write: Annotated[bool, typer.Option(help="Write the table in the docs.")] = False,
) -> None:
    """Measure what has not been measured yet, and print the table."""
    stages = stage or list(STAGES)
    if unknown := set(stages) - set(STAGES):
        raise typer.BadParameter(f"there is no stage {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    record = Record(file, fingerprint("benchmarks/planted"), old=old)
    which, of = map(int, shard.split("/"))
    bugs = [bug for bug in load() if not only or bug.id.startswith(tuple(only))]
    console = Console(width=120)
    for part in ("proof", "check"):
        for number, bug in enumerate(bugs if part in stages else ()):
            row = record.rows.get((bug.key, part), {})
            missed = survivors and bool(row) and table.survives(bug, part, row)
            # What could not be imported, or was killed for its memory, says nothing.
            known = row.get("ended") in ("done", "timeout") and not again and not missed
            if number % of == which and not known:
                attempts = ATTEMPTS[1:] if missed else ATTEMPTS
                record.keep(measured(bug, part, attempts), bug.key, part)
                console.print(
                    table.line(bug, part, record.rows[bug.key, part]), highlight=False, markup=False
                )
    if "control" in stages and not only:
        control(record)
    if "alarms" in stages and not only:
        found = list(alarms(record))
    else:
        found = [row for (_, part), row in record.rows.items() if part == "alarms"]
    results = table.results(bugs, record.rows)
    controlled = table.controlled(
        {k: r for (k, part), r in record.rows.items() if part == "control"}
    )
    console.print(table.counted(results), table.missed(results), table.told(found), sep="\n")
    console.print(controlled, highlight=False, markup=False)
    if write:
        page = ROOT / "docs/mutations.md"
        page.write_text(table.page(results, found, controlled))
        console.print(f"written: {page}")


if __name__ == "__main__":
    typer.run(main)
