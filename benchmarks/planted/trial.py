"""What a child does with a planted bug: run the proof alone, then `check_pass`.

Nothing of the library is imported before the functions are called, since the bug has to be planted
first.
"""

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.planted.bugs import Bug
from benchmarks.planted.child import Send
from benchmarks.planted.plant import plant

if TYPE_CHECKING:
    from reparam.rewrite import Rewrite

DRAWN = 120
"""How many generated graphs a pass is tried on after the blocks that were written for it."""


@dataclass
class Verdict:
    """What became of one rewrite.

    Attributes:
        rule: the pass.
        where: the block, or the number of the generated graph.
        equal: what the check in float64 said: "equal", "undecided", or in what the sides differ.
        proof: "proven", "rejected: …", "failed: …", or why there is none.
    """

    rule: str
    where: str
    equal: str = "undecided"
    proof: str = "none"

    @property
    def differs(self) -> bool:
        """Whether the check in float64 finds the two sides different."""
        return self.equal not in ("equal", "undecided")

    @property
    def rejected(self) -> bool:
        """Whether the proof does."""
        return self.proof.startswith("rejected")


class Witness:
    """Lets each rewrite through, and writes down what the check and the proof say of it."""

    def __init__(self) -> None:
        """Stand in for both in the driver."""
        from reparam import driver

        self.verdicts: list[Verdict] = []
        self.where = ""
        self.whole: list[str] = []
        self._equal = "undecided"
        self._check, self._prove = driver.check, driver.prove_rewrite
        driver.check, driver.prove_rewrite = self.check, self.prove

    def check(self, rewrite: Any, *rest: Any) -> float:
        """Check in float64; no rewrite is stopped by it."""
        from reparam.errors import Declined, Rejected

        try:
            self._check(rewrite, *rest)
            self._equal = "equal"
        except Rejected as rejected:
            self._equal = rejected.reason
        except Declined:
            self._equal = "undecided"
        return 0.0

    def prove(self, rule: Any, call: Any, rewrite: Any, *rest: Any) -> Any:
        """Prove; what it rejects is not made."""
        from reparam.errors import Rejected

        verdict = Verdict(rule.name, self.where, self._equal)
        self.verdicts.append(verdict)
        try:
            proof = self._prove(rule, call, rewrite, *rest)
        except Rejected as rejected:
            verdict.proof = f"rejected: {rejected.reason}"
            raise
        except Exception as error:
            verdict.proof = f"failed: {type(error).__name__}: {error}"
            raise
        verdict.proof = "proven" if proof.reason is None else proof.reason
        return proof

    def watch(self, where: str, model: torch.nn.Module, given: Any, *rules: Any) -> list[Verdict]:
        """Compile with some passes; return what became of each rewrite."""
        import reparam
        from reparam.errors import ReparamError

        self.where, first = where, len(self.verdicts)
        try:
            reparam.compile(model, given, passes=rules, verify="proof")
        except ReparamError as error:
            self.whole.append(f"{where}: {error}"[:300])
        return self.verdicts[first:]


def watched(witness: Witness, name: str) -> Iterator[list[Verdict]]:
    """The rewrites of one pass, first on its own blocks, then on generated graphs."""
    import passes
    from benchmarks.planted.corpus import CORPUS
    from reparam.testing import graphs, randomised
    from reparam.testing.profiles import sample

    rule = getattr(passes, name)
    for example in CORPUS[name]:
        model, given = example.build()
        randomised(model, given)
        yield witness.watch(example.name, model, given, rule)
    for number, graph in enumerate(sample(graphs(), DRAWN, seed=1)):
        given = graph.example() if graph.given else None
        yield witness.watch(f"graph {number}", graph.build(), given, rule)


def quiet() -> None:
    """One thread, and no warnings: what a mutant warns of is of no interest."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def prove_trial(bug: Bug, names: tuple[str, ...], send: Send) -> None:
    """Run the proof on rewrites until it rejects one, and so does the check in float64."""
    quiet()
    plant(bug)
    functional = bug.kind == "functional"
    witness = Witness()
    killed: dict[str, Verdict] = {}
    for verdicts in itertools.chain(*(watched(witness, name) for name in names)):
        for verdict in verdicts:
            wrong = verdict.rejected and verdict.equal != "equal"  # else it would be a false alarm
            kinds = {"proof": wrong, "float64": verdict.differs}
            for kind in (kind for kind, is_so in kinds.items() if is_so and kind not in killed):
                killed[kind] = verdict
                send({"killed": kind, **asdict(verdict), "rewrites": len(witness.verdicts)})
            if functional and verdict.differs and verdict.proof == "proven":
                send({"hole": asdict(verdict)})
        if len(killed) >= (2 if functional else 1):
            break
    reasons = [v.proof for v in witness.verdicts if v.proof != "proven"]
    send({
        "rewrites": len(witness.verdicts), "proven": len(witness.verdicts) - len(reasons),
        "unproven": sorted(set(reasons))[:8], "whole": witness.whole[:3],
    })  # fmt: skip


def check_trial(
    bug: Bug | None, names: tuple[str, ...], attempts: tuple[bool, ...], send: Send
) -> None:
    """Run `check_pass` on the passes until it finds one wrong.

    Each attempt says whether it is given the blocks of the corpus as well.
    """
    quiet()
    if bug is not None:
        plant(bug)
    import passes
    from benchmarks.planted.factories import FACTORIES, shapes
    from reparam.testing import CheckFailed, check_pass
    from reparam.testing.profiles import PR, PROFILES
    from reparam.testing.strategies import SHAPES

    PROFILES["first"] = replace(PROFILES[PR], shrink=False)  # one graph, of whatever size, will do
    for own, name in itertools.product(attempts, names):
        rule: Rewrite = getattr(passes, name)
        options: dict[str, Any] = {"profile_name": "first"}
        if own:
            options |= {"blocks": FACTORIES[name], "shapes": [*shapes(name), *SHAPES]}
        try:
            check_pass(rule, **options)
        except CheckFailed as failed:
            by = "with blocks" if own else "check_pass"
            send({"killed": by, "rule": name, "why": failed.finding})
            return


def alarm_trial(seed: int, count: int, send: Send) -> None:
    """With no bug planted, hold each rewrite of all passes on generated graphs to both checks."""
    quiet()
    import passes
    from reparam.testing import graphs
    from reparam.testing.profiles import sample

    witness = Witness()
    for number, graph in enumerate(sample(graphs(), count, seed=seed)):
        given = graph.example() if graph.given else None
        for verdict in witness.watch(f"graph {number}", graph.build(), given, *passes.DEFAULT):
            if verdict.rejected or verdict.differs or verdict.proof.startswith("failed"):
                send({"alarm": asdict(verdict), "seed": seed, "source": graph.source})
    tally = Counter((v.rule, v.proof, v.equal) for v in witness.verdicts)
    send({"graphs": count, "tally": [[*key, times] for key, times in sorted(tally.items())]})
