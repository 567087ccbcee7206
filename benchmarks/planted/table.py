"""The tables of what killed which bug, for a terminal and for the docs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.planted.bugs import Bug

COLUMNS = (
    "file",
    "bugs",
    "functional",
    "by the proof",
    "by float64",
    "by check_pass",
    "with blocks",
)

HEAD = """\
# Planted bugs

What verifies the passes is verified itself: small bugs are planted into every default pass and
every law that they use, one at a time, and it is counted what finds them. *Functional* bugs make
some legal model compute something else; the others are about memory, writes, dtypes and rounding,
of which a proof says nothing. *By the proof*: a proof over a finite field rejects a rewrite, with
no other check beside it; *by float64*: so does the comparison in float64; both on the same blocks
and generated graphs. *By check_pass*: `reparam.testing.check_pass` on its own graphs, or else,
*with blocks*, given those blocks as its argument of that name.

The bugs are in `benchmarks/planted`; `make evidence` measures them and writes this page.

"""


@dataclass(frozen=True)
class Result:
    """What came of one bug.

    Attributes:
        proof, float64, check: whether it was found so.
        blocks: whether `check_pass` finds it where it is given the blocks of the corpus too.
        measured: whether both stages ran to their end.
    """

    bug: Bug
    proof: bool
    float64: bool
    check: bool
    blocks: bool
    measured: bool

    @property
    def functional(self) -> bool:
        """Whether a proof has to find it."""
        return self.bug.kind == "functional"


def by_proof(row: Mapping[str, Any]) -> bool:
    """Whether the proof rejected a rewrite that is wrong: where float64 agrees, it is no kill."""
    return "proof" in row and row["proof"]["equal"] != "equal"


def results(bugs: Sequence[Bug], rows: Mapping[tuple[str, ...], dict[str, Any]]) -> list[Result]:
    """What came of each bug."""
    found: list[Result] = []
    for bug in bugs:
        proof, check = (rows.get((bug.key, stage), {}) for stage in ("proof", "check"))
        ended = all(row.get("ended") == "done" for row in (proof, check))
        plain, own = "check_pass" in check, "with blocks" in check
        killed = (by_proof(proof), "float64" in proof, plain, plain or own)
        found.append(Result(bug, *killed, ended))
    return found


def survives(bug: Bug, stage: str, row: Mapping[str, Any]) -> bool:
    """Whether a stage has not found a bug that it has to find."""
    if stage == "proof":
        return bug.kind == "functional" and not by_proof(row)
    return "check_pass" not in row and "with blocks" not in row


def line(bug: Bug, stage: str, row: dict[str, Any]) -> str:
    """One line as soon as a bug was measured."""
    by = [name for name in ("proof", "float64", "check_pass", "with blocks") if name in row]
    told = f"{bug.id} ({bug.kind}), {stage}: {' and '.join(by) or 'survives'}, {row['seconds']} s"
    return told if row["ended"] == "done" else f"{told}: {row['ended']}"


def _count(several: Sequence[Result]) -> tuple[str, ...]:
    """The numbers of a row."""
    functional = [one for one in several if one.functional]
    proof = f"{sum(one.proof for one in functional)} of {len(functional)}"
    float64 = f"{sum(one.float64 for one in functional)} of {len(functional)}"
    check = f"{sum(one.check for one in several)} of {len(several)}"
    blocks = f"{sum(one.blocks for one in several)} of {len(several)}"
    return str(len(several)), str(len(functional)), proof, float64, check, blocks


def _by_file(found: Sequence[Result]) -> list[tuple[str, ...]]:
    files = sorted({one.bug.file for one in found})
    rows = [(f, *_count([one for one in found if one.bug.file == f])) for f in files]
    return [*rows, ("all", *_count(found))]


def counted(found: Sequence[Result]) -> Table:
    """How many bugs of each file what found."""
    table = Table(*COLUMNS, title="Planted bugs")
    for row in _by_file(found):
        table.add_row(*row)
    return table


def _survivors(found: Sequence[Result]) -> list[tuple[str, ...]]:
    """Bugs that one of both did not find."""
    rows: list[tuple[str, ...]] = []
    for one in found:
        by = [] if one.proof or not one.functional else ["the proof"]
        by += [] if one.check else ["check_pass"]
        by += [] if one.blocks else ["with blocks"]
        if by:
            told = ", ".join(by) if one.measured else "not measured"
            rows.append((one.bug.id, one.bug.file, one.bug.what, told))
    return rows


def missed(found: Sequence[Result]) -> Table:
    """Bugs that one of both did not find."""
    table = Table("bug", "file", "what is wrong", "not found by", title="Survivors")
    for row in _survivors(found):
        table.add_row(*row)
    return table


def _by_rule(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Of each pass: rewrites, proven, false alarms of the proof and of float64, and why not."""
    tally: Counter[tuple[str, str, str]] = Counter()
    for row in found:
        for rule, proof, equal, times in row["tally"]:
            tally[rule, proof, equal] += times
    rows: list[tuple[str, ...]] = []
    for name in [*sorted({rule for rule, _, _ in tally}), "all"]:
        own = {key: times for key, times in tally.items() if name in (key[0], "all")}
        reasons: Counter[str] = Counter()
        for (_, proof, _), times in own.items():
            if proof != "proven" and not proof.startswith("rejected"):
                reasons[proof] += times
        numbers = (
            sum(own.values()),
            sum(times for (_, proof, _), times in own.items() if proof == "proven"),
            sum(times for (_, proof, _), times in own.items() if proof.startswith("rejected")),
            sum(t for (_, _, e), t in own.items() if e not in ("equal", "undecided")),
        )
        why = "; ".join(f"{reason} ({times})" for reason, times in reasons.most_common(4))
        rows.append((name, *map(str, numbers), why))
    return rows


RULES = ("pass", "rewrites", "proven", "rejected by the proof", "by float64", "float64 only, since")


def told(found: Sequence[Mapping[str, Any]]) -> Table:
    """What the proof said of right rewrites."""
    table = Table(*RULES, title="Without a bug")
    for row in _by_rule(found):
        table.add_row(*row)
    return table


def controlled(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What `check_pass` says of the passes as they are."""
    wrong = [f"{name} ({row['found'][0]['why']})" for name, row in rows.items() if row["found"]]
    broken = [f"{name} ({row['ended']})" for name, row in rows.items() if row["ended"] != "done"]
    text = f"Without a bug, check_pass finds {len(rows) - len(wrong)} of {len(rows)} passes right."
    return " ".join([text, *(f"Wrong: {each}." for each in wrong), *broken])


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def page(results: Sequence[Result], found: Sequence[Mapping[str, Any]], controlled: str) -> str:
    """The page in the docs."""
    text = HEAD + _markdown(COLUMNS, [(f"`{row[0]}`", *row[1:]) for row in _by_file(results)])
    survivors = [(f"`{i}`", f"`{file}`", what, by) for i, file, what, by in _survivors(results)]
    if survivors:
        text += "\n## What was not found\n\n"
        text += _markdown(("bug", "file", "what is wrong", "not found by"), survivors)
    text += (
        "\n## False alarms\n\nWith no bug planted, all default passes on generated graphs: what "
        f"the proof and the check in float64 say of rewrites that are right. {controlled}\n\n"
    )
    return text + _markdown(RULES, [(f"`{row[0]}`", *row[1:]) for row in _by_rule(found)])
