"""Merge a region of linear calls, by reverse accumulation.

It works like backpropagation. Start at a root with the identity; in reverse order of execution
replace a call by what it computes, `map(call) -> compose(map, value)(inputs)`; contributions to
one tensor meet there. After every step the root is a sum of maps of the tensors reached so far: a
candidate to be written out. One cost judges the whole: what the candidate removes against what it
puts there, per pixel of the root, strides included.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from reparam.cost import Cost, cost
from reparam.errors import Declined, require
from reparam.expansion import affine_call, dearer, diagonal, expanded_terms
from reparam.graph import Apply, Call, Expression
from reparam.operators import Cat
from reparam.rewrite import Replace
from reparam.terms import Group, Term, grouped, merged, met
from reparam.values import Conv, Sum

LONGEST = 64
"""How many calls a region may take in. Merging gains nothing from longer ones; time it costs."""


@dataclass(frozen=True)
class Candidate:
    """The root as a sum of maps.

    Attributes:
        root: the call that is replaced.
        groups: for each tensor that is read, which maps of it become one.
        removed: the calls that go, the root included.
        before, after: costs, per pixel of the root.
    """

    root: Call
    groups: dict[Call, list[Group]]
    removed: tuple[Call, ...]
    before: Cost
    after: Cost

    @property
    def profitable(self) -> bool:
        """Whether operations fall and multiply-adds do not rise."""
        fewer = self.after.operations < self.before.operations
        cheaper = fewer and self.after.madds <= self.before.madds
        return cheaper and not self.copied and all(map(_absorbed, self.flat))

    @property
    def copied(self) -> bool:
        """Whether a convolution was copied to several operands of a sum before it.

        That may save something now, but the operands, merged first, would save more.
        """
        left = sum(isinstance(g.map, Conv) and not g.map.affine for g in self.flat)
        return left > sum(not isinstance(c.value, Sum) and not diagonal(c) for c in self.removed)

    @property
    def gain(self) -> tuple[float, float]:
        """Operations removed, then multiply-adds removed."""
        return self.before.operations - self.after.operations, self.before.madds - self.after.madds

    @property
    def flat(self) -> list[Group]:
        """The maps that are left, of all tensors."""
        return [group for groups in self.groups.values() for group in groups]

    @property
    def single(self) -> Group | None:
        """The map, if the root is one map of one tensor."""
        flat = self.flat
        return flat[0] if len(flat) == 1 else None


def _absorbed(group: Group) -> bool:
    """Whether no skip, padding or average becomes a convolution that was none before."""
    return group.convolutions > 0 or isinstance(group.map, Sum) or group.map.affine


def _shows_border(candidate: Candidate) -> bool:
    """Whether a batch norm or scale went, but left a constant that the input is padded with."""
    bordered = any(isinstance(g.map, Conv) and g.map.border is not None for g in candidate.flat)
    return bordered and any(map(diagonal, candidate.removed))


@dataclass(frozen=True)
class Blocked:
    """A call that could not be expanded, and why."""

    call: Call
    reason: str


def merge(
    root: Call,
    through: Callable[[Call], bool] = affine_call,
    accept: Callable[[Candidate], bool] = lambda _: True,
) -> Replace | None:
    """Merge the region that ends in a call, as far as that pays.

    Args:
        root: a call that computes a linear map.
        through: which calls may be expanded into what they compute; the root always is.
        accept: which candidates the pass is for.

    Returns:
        The replacement, or None if nothing linear stands before the root.

    Raises:
        Declined: if something does, but can't be merged or would cost more.
    """
    if not affine_call(root) or isinstance(root.value, Cat):
        return None
    blocked: list[Blocked] = []
    found: list[Candidate] = []
    for frugal in (False, True):
        found += [c for c in _candidates(root, through, blocked, frugal) if accept(c)]
    best = max((c for c in found if c.profitable), key=lambda c: c.gain, default=None)
    if best is not None:
        return Replace({root: _written(best)})
    if blocked:
        raise Declined(blocked[0].reason, blocked[0].call.name)
    costly = [c for c in found if c.after.operations < c.before.operations]
    if costly:
        least = min(costly, key=lambda c: c.after.madds)
        reason = "a skip, a padding or an average would become a convolution"
        if least.copied:
            reason = "a convolution would be copied"
        if least.after.madds > least.before.madds:
            reason = dearer(least.before.madds, least.after.madds)
        raise Declined(reason, least.removed[-1].name)
    shown = next((c for c in found if _shows_border(c)), None)
    if shown is not None:
        raise Declined(
            "its shift meets zero padding, and to take it off before is no cheaper",
            shown.removed[-1].name,
        )
    require(not diagonal(root), "no convolution next to it takes it in", root.inputs[0].name)
    return None


def _candidates(
    root: Call, through: Callable[[Call], bool], blocked: list[Blocked], frugal: bool
) -> Iterator[Candidate]:
    """Expand call after call, the latest first, and yield the root as a sum after each.

    With `frugal`, a composition that costs more than its parts is not made.
    """
    terms: dict[Call, tuple[Term, ...]] = {root: (Term(Sum((1.0,))),)}
    expanded: dict[Call, float] = {}
    budget = _budget(root, through)
    stuck: set[Call] = set()
    while len(expanded) < LONGEST:
        open_calls = [call for call in terms if call not in stuck]
        if not open_calls:
            return
        call = max(open_calls)
        stays = call != root and not all(reader in expanded for reader in call.readers)
        if call != root and not (affine_call(call) and through(call)):
            stuck.add(call)
            continue
        if stays and not any(source in terms for source in call.inputs):
            # It runs anyway, for others: nothing is gained unless its map meets another there.
            stuck.add(call)
            continue
        try:
            _same_kind(root, call)
            terms[call] = tuple(merged(group) for group in grouped(terms[call]))
            parts = expanded_terms(call, terms[call], limit=None if frugal or stays else budget)
        except Declined as declined:
            stuck.add(call)
            if not frugal:
                blocked.append(Blocked(call, declined.reason))
            continue
        expanded[call] = _pixels(terms.pop(call)[0])
        for source, new in parts:
            terms[source] = met(terms.get(source, ()), new)
        if len(expanded) > 1 or isinstance(call.value, Sum):
            yield _candidate(root, dict(terms), expanded)


def _same_kind(root: Call, call: Call) -> None:
    """Refuse to mix dtypes, which rounds differently from the original, and devices."""
    dtypes = {c.shape.dtype for c in (root, call, *call.inputs) if c.shape is not None}
    if isinstance(call.value, Sum):  # of integers too, which no convolution would tell
        dtypes |= {c.shape.dtype if c.shape else None for c in call.inputs}
        floating = all(dtype is not None and dtype.is_floating_point for dtype in dtypes)
        require(floating, "the operands are not known to be floating-point")
    require(len(dtypes - {None}) <= 1, "the dtypes differ")
    devices = {t.device for c in (root, call) for t in c.value.tensors()}
    require(len(devices) <= 1, "the devices differ")


def _budget(root: Call, through: Callable[[Call], bool]) -> float:
    """Multiply-adds per pixel of all calls that the region may take in: what it can pay with."""
    seen: set[Call] = set()
    pending = [root]
    total = 0
    while pending and len(seen) < LONGEST:
        call = pending.pop()
        if call in seen or not affine_call(call) or (call != root and not through(call)):
            continue
        seen.add(call)
        total += cost(call.value, 0).madds
        pending.extend(call.inputs)
    return total


def _pixels(term: Term) -> float:
    """Pixels of a tensor per pixel of the root, by the stride of the map between them."""
    return prod(term.map.stride) if isinstance(term.map, Conv) else 1


def _candidate(
    root: Call, terms: dict[Call, tuple[Term, ...]], expanded: dict[Call, float]
) -> Candidate:
    removed: list[Call] = []
    for call in expanded:  # in reverse order of execution
        read = call in terms or any(reader not in removed for reader in call.readers)
        if call == root or not read:
            removed.append(call)
    channels = _channels(root, terms)
    before = Cost(0, 0)
    for call in removed:
        before += cost(call.value, channels, expanded[call], layer=call.traits.convolution)
    groups = {call: grouped(several) for call, several in terms.items()}
    return Candidate(root, groups, tuple(removed), before, _written_cost(groups, channels))


def _channels(root: Call, terms: dict[Call, tuple[Term, ...]]) -> int:
    """The channels of the root, for the cost of its additions."""
    convs = (t.map for group in terms.values() for t in group if isinstance(t.map, Conv))
    conv = next(convs, None)
    return conv.out_channels if conv is not None else 1


def _written_cost(groups: dict[Call, list[Group]], channels: int) -> Cost:
    flat = [group for several in groups.values() for group in several]
    total = Cost(len(flat) - 1, (len(flat) - 1) * channels)
    for group in flat:
        map_ = group.map
        # In a sum of several, a coefficient of -1 is a subtraction, and 1 is nothing.
        if isinstance(map_, Conv) or len(flat) == 1 or abs(map_.coefficients[0]) != 1:
            total += cost(map_, channels, layer=group.convolutions > 0)
    return total


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
