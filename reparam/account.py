"""Put the account of a compile together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reparam.driver import Verify
from reparam.report import Counts, Remark, Report, Verification


@dataclass(frozen=True)
class Work:
    """What was done to a graph.

    Attributes:
        remarks: all that was said.
        before, after: its size.
        unchecked: rewrites that hold no numbers to check.
        seconds_proving: how long the proofs took.
        axes: how many axes inputs have, by the example inputs.
    """

    remarks: Sequence[Remark]
    before: Counts
    after: Counts
    unchecked: int = 0
    seconds_proving: float = 0.0
    axes: Mapping[str, int] = field(default_factory=dict[str, int])


def account(work: Work, verify: Verify, whole: str | None, seconds: float) -> Report:
    """The report of a compile that took so many seconds, and was compared as a `whole`."""
    by_kind = {
        kind: tuple(remark for remark in work.remarks if remark.kind == kind)
        for kind in ("applied", "missed", "analysis")
    }
    applied = by_kind["applied"]
    errors = [remark.error for remark in applied if remark.error is not None]
    proven = [remark for remark in applied if remark.proof is not None and remark.proof.proven]
    mode = "proof" if verify == "proof" else "float64"
    return Report(
        **by_kind,
        before=work.before,
        after=work.after,
        verification=Verification(
            mode if verify and not work.unchecked else "unverified",
            len(errors),
            max(errors, default=0.0),
            whole,
            len(proven),
            seconds if mode == "proof" else 0.0,
            work.seconds_proving,
        ),
        axes=dict(work.axes),
    )
