"""Check a pass on generated graphs, and find the smallest on which it is wrong."""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NoReturn

import hypothesis
import torch
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from torch import nn

from reparam.pipelines import Pass
from reparam.testing.arguments import (
    checked_blocks,
    checked_graph,
    checked_pass,
    checked_shapes,
    checked_strategy,
    whole,
)
from reparam.testing.check_model import Outcome, name_of, outcome_on
from reparam.testing.failures import CheckFailed
from reparam.testing.graph import Graph, Shape
from reparam.testing.own_blocks import BlockMotif
from reparam.testing.profiles import Profile, Settings, profile
from reparam.testing.programs import program
from reparam.testing.reduce import reduced
from reparam.testing.strategies import MOTIFS, SHAPES, Motif
from reparam.testing.strategies import graphs as _graphs

SURVEYED = 3
"""How many graphs of each motif are drawn first, to see which of them the pass is for."""

FOCUS = 3
"""How many times as often, after that, a motif is drawn on which the pass fired."""


@dataclass
class PassCheck:
    """What came of checking a pass; all of it was right.

    Attributes:
        name: of the pass.
        graphs: on how many it was tried.
        fired: on how many of them it did something.
        applied: how many rewrites it made.
        equal: how many of its answers were equal in float64, those counted too that the driver
            then did not make; of a torch.fx pass none, which is compared as a whole.
        proven: how many of these were proven over a finite field as well.
        motifs: on which it fired, each alone.
        refused: why rewrites were not made, and how many for each reason.
    """

    name: str
    graphs: int = 0
    fired: int = 0
    applied: int = 0
    equal: int = 0
    proven: int = 0
    motifs: tuple[str, ...] = ()
    refused: Counter[str] = field(default_factory=Counter[str])

    def add(self, outcome: Outcome) -> None:
        """Count one more graph."""
        self.graphs += 1
        self.fired += outcome.applied > 0
        self.applied += outcome.applied
        self.equal += outcome.equal
        self.proven += outcome.proven
        self.refused += outcome.refused

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.name}: right on all {self.graphs} graphs, and fired on {self.fired} of them; "
            f"{self.applied} rewrites made, {self.equal} answers equal in float64, "
            f"{self.proven} proven over a finite field"
        )


def check_pass(
    rule: Pass,
    *,
    max_examples: int | None = None,
    min_fired: int | None = None,
    graphs: st.SearchStrategy[Graph] | None = None,
    blocks: Sequence[Callable[[], nn.Module]] = (),
    shapes: Sequence[tuple[Shape, int]] = SHAPES,
    seed: int | None = None,
    profile_name: str | None = None,
) -> PassCheck:
    """Hold a pass to all that a pass promises, on graphs drawn by Hypothesis.

    On each graph `check_model` holds: each rewrite is equal in float64, at all borders, and over a
    finite field; nothing is changed but what the pass returns; the dtype stays; a second compile
    does nothing more, or a third, where the first wrote one value as several calls. First each
    motif is tried alone, on the same few graphs at every run; then graphs are drawn, mostly of
    those motifs on which the pass fired.

    Args:
        rule: a rewrite (`reparam.rewrite`) or a torch.fx pass.
        max_examples: how many graphs are drawn, beside those of one motif; else the profile says.
        min_fired: on how many graphs the pass has to do something; 1 % of `max_examples` if None.
        graphs: a strategy of graphs in the place of the library's own.
        blocks: classes or functions that return a module, without arguments, from the top of a
            module of yours: more motifs, where a pass needs what the library does not have.
        shapes: of the inputs of graphs, batch first, each with how many axes stand behind its
            channels: for blocks that take others than the library's.
        seed: for other graphs than at every run, beside those of one motif.
        profile_name: "reparam-pr" or "reparam-nightly"; else the environment says.

    Returns:
        How often it fired, and what was checked.

    Raises:
        CheckFailed: if it is wrong, with the smallest program found that shows it; or if it fired
            on too few graphs to tell.
        PassError: if it is no pass, or something among the blocks is no block.
        ReparamError: if another argument is not right.
    """
    run = _Run(checked_pass(rule), profile(profile_name), max_examples, seed)
    least = _least(run.max_examples, min_fired)
    own = [BlockMotif.of(block) for block in checked_blocks(blocks)]
    shapes = checked_shapes(shapes)
    if graphs is not None:
        run.over(checked_strategy(graphs), "graphs")
    else:
        for motif in own:
            motif.require_fit([shape for shape, _ in shapes])
        motifs: list[Motif] = [*own, *MOTIFS.values()]
        fired = run.survey(motifs, shapes)
        run.check.motifs = tuple(motif.__name__ for motif in fired)
        chosen = [*motifs, *fired * max(1, FOCUS * len(motifs) // max(len(fired), 1))]
        stage = "-".join(["mixed", *(motif.__name__ for motif in own)])
        run.over(_graphs(motifs=chosen, shapes=shapes, max_motifs=3), stage)
    if run.check.fired < least:
        raise CheckFailed(_vacuous(run.check, least))
    return run.check


@contextmanager
def _one_thread() -> Generator[None]:
    """Compute in one thread: of images of a few pixels, several would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _least(max_examples: int, min_fired: int | None) -> int:
    """On how many graphs the pass has to fire."""
    if min_fired is None:
        return max(1, max_examples // 100)
    return whole("min_fired", min_fired, 0)


def _vacuous(check: PassCheck, least: int) -> str:
    """That a pass did next to nothing, and what it was held back by."""
    text = f"{check.name} fired on {check.fired} of {check.graphs} graphs, at least {least} wanted"
    text += ": what it is for was not among them, or it does nothing"
    refused = "".join(f"\n  {n} times: {reason}" for reason, n in check.refused.most_common(3))
    hint = "; give check_pass blocks=… or graphs=… that have what it looks for"
    return text + hint + (f"\nWhere it matched, it was not done:{refused}" if refused else "")


class _Run:
    """The checks of one pass, one graph after the other."""

    def __init__(
        self, rule: Pass, chosen: Profile, max_examples: int | None, seed: int | None
    ) -> None:
        self.rule = rule
        self.seed = None if seed is None else whole("seed", seed, 0)
        self.profile = chosen if seed is None else replace(chosen, random=True)
        drawn = chosen.max_examples if max_examples is None else max_examples
        self.max_examples = whole("max_examples", drawn, 1)
        self.check = PassCheck(name_of(rule))

    def survey(self, motifs: Sequence[Motif], shapes: Sequence[tuple[Shape, int]]) -> list[Motif]:
        """Try each motif alone; return those on which the pass fired.

        The same graphs at every run: from other motifs, what was kept would be other graphs.
        """
        told = replace(self.profile, random=False, kept=False).settings(SURVEYED)
        fired: list[Motif] = []
        for motif in motifs:
            before = self.check.fired
            self._over(_graphs(motifs=(motif,), shapes=shapes, max_motifs=1), told)
            if self.check.fired > before:
                fired.append(motif)
        return fired

    def over(self, strategy: st.SearchStrategy[Graph], stage: str) -> None:
        """Check as many graphs as are wanted; what fails is kept under this name.

        Raises:
            CheckFailed: if the pass is wrong on one of them.
        """
        told = self.profile.settings(self.max_examples, f"{self.check.name}-{stage}")
        self._over(strategy, told, self.seed)

    def _over(
        self, strategy: st.SearchStrategy[Graph], told: Settings, seed: int | None = None
    ) -> None:
        """Check the graphs that Hypothesis draws.

        Raises:
            CheckFailed: if the pass is wrong on one of them.
        """
        failing: list[Graph] = []

        def trial(graph: Graph) -> None:
            failing[:] = [graph]
            self.check.add(self._outcome(graph))
            failing.clear()

        test = hypothesis.given(strategy)(trial)
        if seed is not None:
            test = hypothesis.seed(seed)(test)
        try:
            with _one_thread():
                told(test)()
        except CheckFailed as found:
            if not failing:
                raise
            self._report(failing[0], found)
        except FlakyFailure as flaky:
            if not any(isinstance(error, CheckFailed) for error in flaky.exceptions):
                raise
            text = f"{self.check.name}: asked twice about one graph, it answers differently"
            raise CheckFailed(text) from None

    def _outcome(self, graph: Graph, *, sizes: bool = True) -> Outcome:
        """What the pass did to a graph.

        Raises:
            CheckFailed: if it is wrong there.
        """
        model = checked_graph(graph).build()
        inputs = list(graph.examples()) if sizes else [graph.example()]
        return outcome_on(self.rule, model, inputs, given=graph.given)

    def _report(self, graph: Graph, found: CheckFailed) -> NoReturn:
        """Make the graph smaller still, if that is wanted, and print it."""

        def finding(smaller: Graph, sizes: bool) -> str | None:
            try:
                self._outcome(smaller, sizes=sizes)
            except CheckFailed as failed:
                return failed.finding
            except Exception:
                return None  # a graph that does not run shows nothing
            return None

        sizes = finding(graph, False) is None
        smallest = graph
        if self.profile.shrink:
            smallest = reduced(graph, lambda smaller: finding(smaller, sizes) is not None)
        text = finding(smallest, sizes) or found.finding
        raise CheckFailed(text, program(smallest, self.rule, sizes=sizes), smallest.nodes) from None
