"""What a region could become: a root as a sum of maps, and what one cost says of it.

It is judged only when somebody asks, since most are never looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from reparam.cached import cached
from reparam.cost import Cost, cost
from reparam.empties import takes_fewer_sizes
from reparam.expansion import diagonal
from reparam.graph import Call
from reparam.terms import Group, Term, extra_madds, grouped, joined
from reparam.values import Conv, Sum


@dataclass(frozen=True)
class Candidate:
    """The root as a sum of maps.

    Attributes:
        root: the call that is replaced.
        terms: the maps of each tensor that is read.
        removed: the calls that go, the root first, and their pixels per pixel of the root.
        operations: how many these are.
    """

    root: Call
    terms: dict[Call, tuple[Term, ...]]
    removed: dict[Call, float]
    operations: float

    @cached
    def groups(self) -> dict[Call, list[Group]]:
        """For each tensor that is read, which maps of it become one."""
        return {call: grouped(several) for call, several in self.terms.items()}

    @cached
    def before(self) -> Cost:
        """What goes, per pixel of the root."""
        gone = [call_cost(c, self._channels, pixels) for c, pixels in self.removed.items()]
        return Cost(self.operations, sum(one.madds for one in gone))

    @cached
    def after(self) -> Cost:
        """What comes, per pixel of the root."""
        return _written_cost(self.flat, self._channels)

    @cached
    def _channels(self) -> int:
        """The channels of the root, for the cost of its additions."""
        convs = (t.map for group in self.terms.values() for t in group if isinstance(t.map, Conv))
        conv = next(convs, None)
        return conv.out_channels if conv is not None else 1

    @property
    def most_gained(self) -> float:
        """A bound of the operations gained: as if all maps of each tensor became one."""
        convs = sum(any(t.convolutions for t in terms) for terms in self.terms.values())
        return self.operations - (len(self.terms) - 1 + convs)

    @property
    def fewer(self) -> bool:
        """Whether operations fall; what could be gained at most may show that they don't."""
        return self.most_gained > 0 and self.after.operations < self.operations

    @property
    def profitable(self) -> bool:
        """Whether operations fall, multiply-adds do not rise, and it runs on all images."""
        return self.cheaper and not self.smaller_fail

    @cached
    def cheaper(self) -> bool:
        """Whether operations fall and multiply-adds do not rise."""
        cheaper = self.fewer and self.after.madds <= self.before.madds
        return cheaper and not self.copied and all(map(_absorbed, self.flat))

    @cached
    def smaller_fail(self) -> bool:
        """Whether it fails on small images, of which a crop left nothing so far."""
        maps = {call: [group.map for group in groups] for call, groups in self.groups.items()}
        return takes_fewer_sizes(maps, self.removed)

    @property
    def copied(self) -> bool:
        """Whether a convolution was copied to several operands of a sum before it.

        That may save something now, but the operands, merged first, would save more.
        """
        left = sum(isinstance(g.map, Conv) and not g.map.affine for g in self.flat)
        return left > sum(not isinstance(c.value, Sum) and not diagonal(c) for c in self.removed)

    @property
    def gain(self) -> Cost:
        """Operations removed, then multiply-adds removed."""
        return Cost(
            self.before.operations - self.after.operations, self.before.madds - self.after.madds
        )

    @property
    def flat(self) -> list[Group]:
        """The maps that are left, of all tensors."""
        return [group for groups in self.groups.values() for group in groups]

    def apart(self, accept: Callable[[list[Group]], bool]) -> tuple[Group, Group] | None:
        """Of the maps of one tensor that did not become one, the two that came nearest to it.

        Args:
            accept: which maps would be accepted if those two were one.
        """
        several = (
            pair
            for call, terms in self.terms.items()
            if len(terms) > 1
            for pair in combinations(self.groups[call], 2)
        )
        wanted = (
            (a, b)
            for a, b in several
            if accept([joined(a, b), *(g for g in self.flat if g is not a and g is not b)])
        )
        return min(wanted, key=lambda pair: extra_madds(pair[0].map, pair[1].map), default=None)


def call_cost(call: Call, channels: int, pixels: float) -> Cost:
    """The cost of a call, as a convolution if it runs as one."""
    return cost(call.value, channels, pixels, layer=call.traits.convolution)


def _absorbed(group: Group) -> bool:
    """Whether no skip, padding or average becomes a convolution that was none before."""
    return group.convolutions > 0 or isinstance(group.map, Sum) or group.map.affine


def shows_border(candidate: Candidate) -> bool:
    """Whether a batch norm or scale went, but left a constant that the input is padded with."""
    if not any(map(diagonal, candidate.removed)):
        return False
    return any(isinstance(g.map, Conv) and g.map.border is not None for g in candidate.flat)


def _written_cost(flat: list[Group], channels: int) -> Cost:
    total = Cost(len(flat) - 1, (len(flat) - 1) * channels)
    for group in flat:
        map_ = group.map
        # In a sum of several, a coefficient of -1 is a subtraction, and 1 is nothing.
        if isinstance(map_, Conv) or len(flat) == 1 or abs(map_.coefficients[0]) != 1:
            total += cost(map_, channels, layer=group.convolutions > 0)
    return total
