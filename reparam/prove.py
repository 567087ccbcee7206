"""Prove a rewrite over a finite field: for all weights at once, not for those at hand.

The pass is asked again about the same calls, their weights, statistics and inputs being random
residues, and what it returns is compared with what it replaces, exactly. Two rational functions
that differ are equal at a random place with a probability of at most their degree over the number
of residues that are drawn from, about half the prime.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, product
from math import ceil, log
from typing import Any, cast

import torch
from torch import Tensor

from reparam.arguments import mapped
from reparam.devices import CPU
from reparam.errors import Declined, Rejected, first_line
from reparam.evaluation import Evaluation, Operands, shapes, something_left
from reparam.field import POSITIVES
from reparam.graph import Apply, Call, Expression
from reparam.premises import Premises, border_of_zero, special, weights_of
from reparam.proof import Proof
from reparam.residue import (
    Places,
    Residue,
    UnmodelledError,
    VanishedError,
    coerced,
    places_of,
)
from reparam.residue_operators import RULES
from reparam.rewrite import Rewrite
from reparam.values import BatchNorm, Conv, Value
from reparam.window import swept, tried, window

SEED = 19600420
"""The places are the same in every run, so that a proof is reproducible."""

PLACES = 5
"""At how many random places both sides are evaluated first."""

CHANCE = 1e-18
"""How likely it may be, at most, that a wrong rewrite passes."""

MOST_PLACES = 40
"""Where so many do not suffice, the degrees are too high for the prime."""

ATTEMPTS = 8
"""How often other places are drawn where a denominator is zero."""


def prove_rewrite(
    rule: Rewrite, call: Call, rewrite: Mapping[Call, Expression], seed: int = SEED
) -> Proof:
    """Prove what a pass returned for a call, the graph being as it was then.

    Raises:
        Rejected: if the two sides differ; it names the shape of the first result that does.
    """
    operands, count, degree = Operands.of(rewrite), PLACES, 0
    while count <= MOST_PLACES:
        try:
            proof = _proof(rule, call, operands, count, seed)
        except UnmodelledError as unmodelled:
            return Proof(str(unmodelled))
        except Rejected:
            raise
        except Exception as error:  # what a pass or a layer does with residues may be anything
            return Proof(f"the proof fails with {type(error).__name__}: {first_line(error)}")
        if proof.probability <= CHANCE:
            return proof
        degree = proof.degree
        ratio = min(degree / POSITIVES, 0.5)
        count = max(ceil(log(CHANCE / 2) / log(ratio)), count + 1)
    return Proof(f"its degree, of at most {degree:,}, is too high")


def _proof(rule: Rewrite, call: Call, operands: Operands, count: int, seed: int) -> Proof:
    """The proof at so many places, others being drawn where a denominator is zero at one."""
    for attempt in range(ATTEMPTS):
        try:
            return _Replay(rule, call, operands, count, seed + 1000 * attempt).proof()
        except VanishedError:
            continue
    raise UnmodelledError("a denominator is zero wherever it was tried")


class _Replay:
    """One rewrite, done again on residues."""

    def __init__(
        self, rule: Rewrite, call: Call, operands: Operands, count: int, seed: int
    ) -> None:
        self.rule, self.call, self.operands = rule, call, operands
        self.count, self.seed = count, seed
        self.form, self.seen = _form(operands.rewrite), window(operands)
        self.weights = {
            f"{holder.name}.{name}": tensor
            for holder in operands.evaluated()
            for name, tensor in weights_of(holder.value).items()
        }
        self.borders = [c for c in operands.evaluated() if border_of_zero(c) is not None]

    def proof(self) -> Proof:
        """Under the least premises under which the pass does the same again.

        Raises:
            UnmodelledError: if it does not, or if there is nothing to compare.
        """
        kinds = frozenset(name for name, w in self.weights.items() if special(w).any())
        reason = "for random weights the pass does something else"
        relations = (False, True) if self.borders else (False,)
        choices = (frozenset[str](), kinds) if kinds else (kinds,)
        for related, kept, signed in product(relations, choices, (False, True)):
            try:
                premises = Premises(kept, related, signed)
                least = self._least(premises) if kept else premises
                proof = None if least is None else self._under(least)
            except UnmodelledError as unmodelled:
                reason = str(unmodelled)
                continue
            if proof is not None:
                return proof
        raise UnmodelledError(reason)

    def _least(self, premises: Premises) -> Premises | None:
        """The same premises without those that the pass does not need; None if it needs more."""
        with self._drawn(premises):
            if self._again() is None:
                return None
        for name in sorted(premises.kept):
            fewer = replace(premises, kept=premises.kept - {name})
            with self._drawn(fewer):
                premises = premises if self._again() is None else fewer
        return premises

    def _under(self, premises: Premises) -> Proof | None:
        """The proof, or None if the pass does something else under these premises."""
        degree = bottom = compared = 0
        with self._drawn(premises) as places:
            again = self._again()
            if again is None:
                return None
            told = tuple(premises.told(self.weights, self.borders, places.looked))
            wide: dict[Value, Value] = {}
            for images, sizes, spare in tried(swept(self.operands), self.seen, self.operands):
                if compared and spare:
                    break
                sides = list(self._sides(again, images, sizes, places, wide))
                compared += bool(sides) and something_left([old for old, _, _ in sides])
                for old, new, alike in sides:
                    top, below = _compared(old, new, alike)
                    degree, bottom = max(degree, top), max(bottom, below)
        if not compared:
            raise UnmodelledError("what it replaces does not run by itself")
        chance = places.chance(degree, bottom)
        return Proof(None, told, degree, self.count, chance, compared)

    @contextmanager
    def _drawn(self, premises: Premises) -> Generator[Places]:
        """The calls of the old side with residues for weights, for a while."""
        places = Places(self.count, self.seed, RULES)
        weights: dict[int, Residue] = {}
        held = self.operands.evaluated()
        values = {call: call.value for call in held if weights_of(call.value)}
        try:
            for call, value in values.items():
                drawn = {
                    name: self._residue(call, name, premises, weights, places)
                    for name in weights_of(value)
                }
                call.node.target = cast("Any", replace(value, **drawn))
            for call in self.borders if premises.related else ():
                border = border_of_zero(call)
                call.node.target = cast("Any", replace(cast("Conv", call.value), border=border))
            yield places
        finally:
            for call, value in values.items():
                call.node.target = cast("Any", value)

    def _residue(
        self,
        call: Call,
        name: str,
        premises: Premises,
        weights: dict[int, Residue],
        places: Places,
    ) -> Residue:
        """Random residues for a weight; the same ones wherever the same tensor stands."""
        value, path = call.value, f"{call.name}.{name}"
        weight = weights_of(value)[name]
        if id(weight) not in weights:
            if isinstance(value, BatchNorm) and name == "variance":
                weights[id(weight)] = places.draw_variance(path, weight, value.eps)
            else:
                kept = special(weight) if path in premises.kept else None
                weights[id(weight)] = places.draw(path, weight, kept, premises.signed)
        return weights[id(weight)]

    def _again(self) -> dict[Call, Expression] | None:
        """What the pass returns for these weights, if it is of the same form."""
        try:
            replacement = self.rule(self.call)
        except Declined:
            return None
        if replacement is None:
            return None
        again = replacement.roots(self.call)
        return again if _form(again) == self.form else None

    def _sides(
        self,
        again: Mapping[Call, Expression],
        images: int,
        sizes: tuple[int, ...],
        places: Places,
        wide: dict[Value, Value],
    ) -> Iterator[tuple[Any, Any, bool]]:
        """The results of both sides, root by root; none where the sizes are too small.

        With each pair, whether the functions that nothing is known of had the same arguments.
        """
        given = shapes(self.operands.drawn, sizes, images)
        if min(chain(*given.values()), default=1) < 1:
            return  # what it is computed from would have failed
        drawn: dict[Call, Tensor] = {
            call: places.draw(call.name, torch.zeros(shape, device=CPU))
            for call, shape in given.items()
        }
        places.applied.clear()
        try:
            old = list(map(Evaluation(drawn, wide), again))
        except RuntimeError:
            return
        applied = set(places.applied)
        places.applied.clear()
        try:
            new = list(map(Evaluation(drawn, wide), again.values()))
        except (UnmodelledError, VanishedError):
            raise
        except Exception as error:
            raised = f"{type(error).__name__}: {first_line(error)}"
            raise Rejected(f"its proof fails: at {sizes} the new side raises {raised}") from error
        alike = applied == places.applied
        yield from ((before, after, alike) for before, after in zip(old, new, strict=True))


def _compared(old: Any, new: Any, alike: bool) -> tuple[int, int]:
    """The degrees of the difference of two results, above and below.

    Raises:
        Rejected: if they differ.
        UnmodelledError: if they differ, but functions that nothing is known of are not `alike`.
    """
    if not isinstance(old, Residue) and not isinstance(new, Residue):
        same = torch.equal(old, new) if isinstance(old, Tensor) else old == new
        if not same:
            raise Rejected(f"its proof fails: {_told(old)} became {_told(new)}")
        return 0, 0
    places = places_of((old, new))
    old, new = coerced((old, new), places)
    if old.shape != new.shape:
        raise Rejected(f"its proof fails: {tuple(old.shape)} became {tuple(new.shape)}")
    apart = ~old.same(new)
    if bool(apart.any()):
        if not alike:
            raise UnmodelledError("both sides apply functions that nothing is known of differently")
        if places.skewed:
            raise UnmodelledError("the sign of a sum has no counterpart in a finite field")
        first = tuple(apart.nonzero()[0].tolist())
        raise Rejected(
            f"its proof fails: {int(apart.sum())} results of {tuple(old.shape)} differ, the first "
            f"at {first}"
        )
    a, b = old.bound, new.bound
    return max(a.top + b.bottom, b.top + a.bottom), a.bottom + b.bottom


def _told(result: Any) -> str:
    """A result that is no residue, for a message."""
    return f"{tuple(result.shape)}, {result.dtype}" if isinstance(result, Tensor) else repr(result)


def _form(rewrite: Mapping[Call, Expression]) -> Any:
    """All of a rewrite but its numbers."""

    def form(part: Any) -> Any:
        if isinstance(part, Call):
            return part
        held = {name: getattr(part.value, name) for name in part.value.__dataclass_fields__}
        plain = mapped(held, Tensor, lambda tensor: tuple(tensor.shape))
        inner = mapped((part.inputs, dict(part.options)), (Call, Apply), form)
        return type(part.value), plain, inner

    return {root: form(expression) for root, expression in rewrite.items()}
