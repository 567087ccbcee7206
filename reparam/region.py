"""Merge a region of linear calls, by reverse accumulation.

It works like backpropagation. Start at a root with the identity; in reverse order of execution
replace a call by what it computes, `map(call) -> compose(map, value)(inputs)`; contributions to
one tensor meet there. After every step the root is a sum of maps of the tensors reached so far: a
candidate to be written out. One cost judges the whole: what the candidate removes against what it
puts there, per pixel of the root, strides included.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch

from reparam.candidate import Candidate, call_cost, shows_border
from reparam.cost import FREE, Cost
from reparam.errors import Declined, require
from reparam.expansion import (
    affine_call,
    dearer,
    diagonal,
    expanded_terms,
    require_one_shape,
)
from reparam.graph import Apply, Call, Expression
from reparam.operators import Cat
from reparam.prospect import LONGEST, Budget, could_shrink
from reparam.rewrite import Replace
from reparam.terms import Group, Term, apart_and_together, grouped, merged, met
from reparam.values import Conv, Sum

Accept = Callable[[list[Group]], bool]


@dataclass(frozen=True)
class Blocked:
    """A call that could not be expanded, and why."""

    call: Call
    reason: str


def merge(
    root: Call,
    through: Callable[[Call], bool] = affine_call,
    accept: Accept | None = None,
) -> Replace | None:
    """Merge the region that ends in a call, as far as that pays.

    Args:
        root: a call that computes a linear map.
        through: which calls may be expanded into what they compute; the root always is.
        accept: whether the pass is for a region that becomes these maps. With it, only regions are
            looked at in which two paths lead to one tensor; and of two maps of a tensor that would
            be accepted as one, the reason why they stay apart goes before any other.

    Returns:
        The replacement, or None if there is nothing to merge.

    Raises:
        Declined: if something does, but can't be merged or would cost more.
    """
    if not affine_call(root) or isinstance(root.value, Cat):
        return None
    if not could_shrink(root, through, meeting=accept is not None):
        require(not diagonal(root), "no convolution next to it takes it in", root.inputs[0].name)
        return None
    blocked: list[Blocked] = []
    budget = Budget(root, through)
    accepted = accept or _any
    found = list(_candidates(root, through, blocked, budget))
    best = _best(found, accepted)
    if budget.spent:
        frugal = list(_candidates(root, through, blocked, None))
        found += frugal
        best = max(best, _best(frugal, accepted), key=_gain)
    if best is not None:
        return Replace({root: _written(best)})
    if accept is not None:
        _require_merged(found, accept)
    failing = next((c for c in found if c.cheaper and accepted(c.flat)), None)
    if failing is not None:
        reason = "of a small image, the crop may leave nothing, which no convolution takes"
        raise Declined(reason, [*failing.removed][-1].name)
    if blocked:
        raise Declined(blocked[0].reason, blocked[0].call.name)
    costly = [c for c in found if c.fewer and accepted(c.flat)]
    if costly:
        least = min(costly, key=lambda c: c.after.madds)
        reason = "a skip, a padding or an average would become a convolution"
        if least.copied:
            reason = "a convolution would be copied"
        if least.after.madds > least.before.madds:
            reason = dearer(least.before.madds, least.after.madds)
        raise Declined(reason, [*least.removed][-1].name)
    shown = next((c for c in found if shows_border(c) and accepted(c.flat)), None)
    if shown is not None:
        raise Declined(
            "its shift meets zero padding, and to take it off before is no cheaper",
            [*shown.removed][-1].name,
        )
    require(not diagonal(root), "no convolution next to it takes it in", root.inputs[0].name)
    _require_merged(found, accepted)
    return None


def _any(_: list[Group]) -> bool:
    return True


def _require_merged(found: list[Candidate], accept: Accept) -> None:
    """Decline if maps of one tensor that the pass is for stay apart, by a law or for their cost."""
    for pair in (candidate.apart(accept) for candidate in found):
        if pair is not None:
            apart, together = apart_and_together(pair[0].map, pair[1].map)
            raise Declined(dearer(apart, together))


def _best(found: list[Candidate], accept: Accept) -> Candidate | None:
    """The candidate that gains most, of several the one that takes in least.

    One whose bound is below what was found already need not be judged.
    """
    best: Candidate | None = None
    gain = FREE
    for candidate in reversed(found):
        if candidate.most_gained < gain.operations:
            continue
        if candidate.profitable and accept(candidate.flat) and candidate.gain >= gain:
            best, gain = candidate, candidate.gain
    return best


def _gain(candidate: Candidate | None) -> Cost:
    return FREE if candidate is None else candidate.gain


def _candidates(
    root: Call,
    through: Callable[[Call], bool],
    blocked: list[Blocked],
    budget: Budget | None,
) -> Iterator[Candidate]:
    """Expand so many calls, the latest first, and yield the root as a sum after each.

    Without a budget, a composition that costs more than its parts is not made.
    """
    terms: dict[Call, tuple[Term, ...]] = {root: (Term(Sum((1.0,))),)}
    expanded: set[Call] = set()
    removed: dict[Call, float] = {}
    operations = 0.0
    stuck: set[Call] = set()
    while len(expanded) < LONGEST:
        call = max((call for call in terms if call not in stuck), default=None)
        if call is None:
            return
        readers = call.readers if call != root else ()
        stays = not all(reader in expanded for reader in readers)
        if call != root and not (affine_call(call) and through(call)):
            stuck.add(call)
            continue
        if stays and not any(source in terms for source in call.inputs):
            # It runs anyway, for others: nothing is gained unless its map meets another there.
            stuck.add(call)
            continue
        try:
            _same_kind(root, call)
            if len(terms[call]) > 1:
                terms[call] = tuple(map(merged, grouped(terms[call])))
            pays = None if stays or budget is None else budget.pay
            parts = expanded_terms(call, terms[call], pays)
        except Declined as declined:
            stuck.add(call)
            if budget is not None:
                blocked.append(Blocked(call, declined.reason))
            continue
        pixels = _pixels(terms[call][0])
        expanded.add(call)
        if all(reader in removed for reader in readers):
            removed[call] = pixels
            operations += call_cost(call, 1, pixels).operations
        terms = _with(terms, call, parts)
        if len(expanded) > 1 or isinstance(call.value, Sum):
            yield Candidate(root, dict(terms), dict(removed), operations)


def _with(
    terms: dict[Call, tuple[Term, ...]], call: Call, parts: Iterable[tuple[Call, Term]]
) -> dict[Call, tuple[Term, ...]]:
    """The same sum, a call in its place expanded: the first operand decides how a sum lies."""
    after: dict[Call, tuple[Term, ...]] = {}
    for each, those in terms.items():
        for source, new in parts if each == call else ((each, term) for term in those):
            after[source] = met(after.get(source, ()), new)
    return after


def _same_kind(root: Call, call: Call) -> None:
    """Refuse to mix dtypes, which rounds differently from the original, and devices."""
    operands = {(shape := source.shape) and shape.dtype for source in call.inputs}
    results = {shape.dtype for each in (root, call) if (shape := each.shape) is not None}
    dtypes = operands | results
    summed = isinstance(call.value, Sum)
    if summed and not all(map(_floating, dtypes)):  # integers, which no convolution would tell of
        if len(call.inputs) > 1 and len(operands) == 1 and all(map(_floating, operands)):
            require_one_shape(call)  # the dtype of a broadcast sum is not known
        raise Declined("the operands are not known to be floating-point")
    require(len(dtypes - {None}) <= 1, "the dtypes differ")
    if not (summed or root == call):
        held = {t.device for t in (*root.value.tensors(), *call.value.tensors())}
        devices = {root.traits.device, call.traits.device} - {None}
        require(len(held) <= 1 and len(devices) <= 1, "the devices differ")


def _floating(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point


def _pixels(term: Term) -> float:
    """Pixels of a tensor per pixel of the root, by the stride of the map between them."""
    return prod(term.map.stride) if isinstance(term.map, Conv) else 1


def _written(candidate: Candidate) -> Expression:
    """The candidate as an expression: a map, or a weighted sum of maps and tensors."""
    operands: list[Expression] = []
    coefficients: list[float] = []
    for call, groups in candidate.groups.items():
        for group in groups:
            total = merged(group).map
            if isinstance(total, Sum):
                coefficients.append(total.coefficients[0])
                operands.append(call)
            else:
                coefficients.append(1.0)
                operands.append(Apply(total, (call,)))
    if coefficients == [1.0]:
        return operands[0]
    return Apply(Sum(tuple(coefficients)), tuple(operands))
