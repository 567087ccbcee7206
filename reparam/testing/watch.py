"""Watch a pass on calls while it is at work, and hold each of its answers to what it promises."""

from collections.abc import Mapping

from torch import Tensor, nn

from reparam.check import check
from reparam.errors import Declined, Rejected, first_line
from reparam.graph import Call, Expression, leaves
from reparam.prove import prove_rewrite
from reparam.rewrite import Replace, Rewrite
from reparam.testing.sameness import edges, identical, same_rewrite


class Watch:
    """One pass under observation: it is asked twice, and each answer is checked before it is made.

    What is wrong is noted, not raised: a compile takes what a pass raises for the pass's own.

    Attributes:
        rewrite: the pass to compile with, of the same name.
        finding: the first thing that was wrong, if anything.
        broken: what a check itself raised, which says nothing about the pass.
        equal: how many answers were equal in float64.
        proven: how many of them were proven over a finite field as well.
    """

    def __init__(self, rule: Rewrite, *, prove: bool = True) -> None:
        """Take the pass, and whether to prove what it does over a finite field as well."""
        self.rule, self.prove = rule, prove
        self.rewrite = Rewrite(self._ask, rule.name, rule.on)
        self.finding: str | None = None
        self.broken: Exception | None = None
        self.equal = self.proven = 0
        self._seen: dict[int, tuple[Tensor, Tensor, str]] = {}

    def unchanged(self) -> None:
        """Find out at the end whether the pass wrote to a weight that it was shown."""
        for tensor, copy, call in self._seen.values():
            if not identical(tensor, copy):
                self._note(call, "it writes to a weight that it was shown")

    def _ask(self, call: Call) -> Replace | None:
        """Ask the pass, and check what it says.

        Raises:
            Declined: as the pass does.
        """
        graph = call.node.graph
        before = edges(graph)
        for node in graph.nodes:
            self._remember(Call(node))
        try:
            first = self._answer(call)
            second = self._answer(call)
        except Declined as declined:
            self._as_it_was(call, before)
            if not isinstance(declined.reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                self._note(call, f"it declines for {declined.reason!r}, not for a reason in words")
                raise Rejected("it gives no reason in words") from declined
            self._declines_again(call, declined)
            raise
        except (Exception, SystemExit) as error:  # a pass may be anyone's, and a script
            told = f"{type(error).__name__}: {first_line(error)}"
            self._note(call, f"it raised {told}")
            raise Rejected(f"the pass failed with {told}") from error
        self._as_it_was(call, before)
        if first is None or second is None:
            if first is not second:
                self._note(call, "asked twice about one call, it answers differently")
            return first
        try:
            self._check(call, first.roots(call), second.roots(call))
        except Exception as error:
            self.broken = self.broken or error
            raise
        return first

    def _answer(self, call: Call) -> Replace | None:
        answer = self.rule(call)
        if answer is not None and not isinstance(answer, Replace):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"it returned {type(answer).__name__}, not a Replace or None")
        return answer

    def _declines_again(self, call: Call, declined: Declined) -> None:
        try:
            self.rule(call)
        except Declined as again:
            if again.reason == declined.reason:
                return
        except (Exception, SystemExit):
            pass
        self._note(call, "asked twice about one call, it answers differently")

    def _remember(self, call: Call) -> None:
        target = getattr(call.value, "target", None)
        module = [target] if isinstance(target, nn.Module) else []
        held = (tensor for one in module for tensor in (*one.parameters(), *one.buffers()))
        for tensor in (*call.value.tensors(), *held):
            if id(tensor) not in self._seen:
                self._seen[id(tensor)] = tensor, tensor.clone(), str(call)

    def _as_it_was(self, call: Call, before: list[tuple[object, ...]]) -> None:
        if edges(call.node.graph) != before:
            self._note(call, "it edits the graph that it is asked about")

    def _check(
        self, call: Call, first: Mapping[Call, Expression], second: Mapping[Call, Expression]
    ) -> None:
        """Compare both sides, in float64 and over a finite field."""
        if not same_rewrite(first, second):
            self._note(call, "asked twice about one call, it answers differently")
        if not all(leaf < root for root, new in first.items() for leaf in leaves([new])):
            return  # the driver refuses what reads what it replaces
        try:
            check(first)
            self.equal += 1
        except Rejected as rejected:
            self._note(call, f"in float64, {rejected.reason.removesuffix(', so it was not done')}")
            return
        except Declined:
            return  # it can't be checked alone: the comparison of the whole has to do
        if not self.prove:
            return
        try:
            proof = prove_rewrite(self.rule, call, first)
        except Rejected as rejected:
            self._note(call, f"over a finite field, {rejected.reason}")
            return
        self.proven += proof.proven

    def _note(self, call: Call | str, what: str) -> None:
        self.finding = self.finding or f"{self.rule.name}, asked about {call}: {what}"
