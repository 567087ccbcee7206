"""Maps of one tensor, as they meet in a region: which of them become one, and what that costs."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from math import inf
from typing import NamedTuple

from reparam.algebra import add, added_shape, identity_like, numberless, scale_output
from reparam.composition import compose
from reparam.cost import conv_madds, summed_madds
from reparam.errors import Declined, require
from reparam.values import Conv, Sum


class Term(NamedTuple):
    """One linear map of a tensor.

    Attributes:
        map: the map; a `Sum` of one coefficient while the number of channels is not needed.
        convolutions: how many of the paths that met in it lead through convolutions.
        skips: how many don't: there the tensor itself was scaled and shifted.
    """

    map: Conv | Sum
    convolutions: int = 0
    skips: int = 1

    def with_map(self, map_: Conv | Sum) -> "Term":
        """The same paths, by another map."""
        return Term(map_, self.convolutions, self.skips)


class Group(NamedTuple):
    """Maps of one tensor that are to be one map.

    Attributes:
        map: the merged map, with the right sizes but without numbers.
        terms: what it is merged from.
    """

    map: Conv | Sum
    terms: tuple[Term, ...]

    @property
    def convolutions(self) -> int:
        """How many paths lead through convolutions."""
        return sum(term.convolutions for term in self.terms)

    @property
    def skips(self) -> int:
        """How many don't."""
        return sum(term.skips for term in self.terms)


def met(terms: tuple[Term, ...], new: Term) -> tuple[Term, ...]:
    """The terms of one tensor with one more; two multiples of it are one multiple."""
    twin = next((t for t in terms if isinstance(t.map, Sum) and isinstance(new.map, Sum)), None)
    if twin is None:
        return (*terms, new)
    both = merged(Group(new.map, (twin, new)))
    return (*(term for term in terms if term is not twin), both)


def grouped(terms: tuple[Term, ...]) -> list[Group]:
    """Merge maps of one tensor pair by pair, the most rewarding first, as long as that pays."""
    if len(terms) == 1:
        return [Group(terms[0].map, terms)]
    alike: dict[Hashable, list[Term]] = {}
    for term in terms:  # those of one form merge without loss, before any pair is weighed
        alike.setdefault(_form(term.map), []).append(term)
    groups = [
        Group(same[0].map if len(same) == 1 else _numberless(same[0].map), tuple(same))
        for same in alike.values()
    ]
    while True:
        pairs = (
            (extra_madds(a.map, b.map), i, a, b)
            for i, a in enumerate(groups)
            for b in groups[i + 1 :]
        )
        best = min((p for p in pairs if p[0] <= 0), default=None, key=lambda p: p[:2])
        if best is None:
            return groups
        _, _, a, b = best
        groups = [group for group in groups if group is not a and group is not b]
        groups.append(Group(_added(a.map, b.map, added_shape), a.terms + b.terms))


def _form(map_: Conv | Sum) -> Hashable:
    """What maps whose sum is of the same form share; multiples are of one form."""
    if isinstance(map_, Sum):
        return Sum
    if map_.border is not None:  # whether two constants agree takes numbers to tell
        return id(map_)
    shape, padding, dilation = map_.weight.shape, map_.padding, map_.dilation
    return shape, map_.stride, padding, dilation, map_.groups, map_.padding_mode


def joined(a: Group, b: Group) -> Group:
    """Two groups as if they were one, told by the map that mixes more channels."""
    maps = [group.map for group in (a, b) if isinstance(group.map, Conv)]
    return Group(min(maps, key=lambda map_: map_.groups, default=a.map), a.terms + b.terms)


def _numberless(map_: Conv | Sum) -> Conv | Sum:
    """The map without its weights: enough to tell what merges with what, and the cost."""
    return numberless(map_, tuple(map_.weight.shape)) if isinstance(map_, Conv) else map_


def extra_madds(a: Conv | Sum, b: Conv | Sum) -> float:
    """Multiply-adds per pixel that merging two maps adds; infinitely many if no law allows it."""
    if isinstance(a, Sum) and isinstance(b, Sum):
        return 0
    try:
        apart, together = apart_and_together(a, b)
    except Declined:
        return inf
    return together - apart


def apart_and_together(a: Conv | Sum, b: Conv | Sum) -> tuple[int, int]:
    """Multiply-adds per pixel of two maps and the sum of both, and of the one they would become.

    Raises:
        Declined: if no law allows that.
    """
    pair = _pair(a, b)
    apart = sum(conv_madds(map_) for map_ in (a, b) if isinstance(map_, Conv))
    return apart + pair[0].out_channels, summed_madds(*pair)


def _pair(a: Conv | Sum, b: Conv | Sum) -> tuple[Conv, Conv]:
    """Both as convolutions; at least one is."""
    if isinstance(a, Sum):
        assert isinstance(b, Conv)
        return identity_like(b, a.coefficients[0]), b
    return a, identity_like(a, b.coefficients[0]) if isinstance(b, Sum) else b


def _added(a: Conv | Sum, b: Conv | Sum, law: Callable[[Conv, Conv], Conv] = add) -> Conv | Sum:
    if isinstance(a, Sum) and isinstance(b, Sum):
        return Sum((a.coefficients[0] + b.coefficients[0],))
    return law(*_pair(a, b))


def merged(group: Group) -> Term:
    """The maps of a group as one."""
    # Multiples first: each needs a convolution beside it to become one.
    maps = sorted((term.map for term in group.terms), key=lambda map_: isinstance(map_, Conv))
    total = maps[0]
    for map_ in maps[1:]:
        total = _added(total, map_)
    return Term(total, group.convolutions, group.skips)


def operand(map_: Conv | Sum, coefficient: float, index: int) -> Conv | Sum:
    """A map of a weighted sum as a map of one of its operands.

    The bias and the border of the whole stay with the first.

    Raises:
        Declined: if the border can't be moved.
    """
    if isinstance(map_, Sum):
        return Sum((map_.coefficients[0] * coefficient,))
    if index > 0:
        return replace(map_, weight=map_.weight * coefficient, bias=None, border=None)
    border = map_.border
    if border is not None:
        require(coefficient != 0, "a border can't pass a factor of 0")
        border = border / coefficient
    return replace(map_, weight=map_.weight * coefficient, border=border)


def composed(outer: Conv | Sum, inner: Conv) -> Conv:
    """A map of what a convolution makes."""
    if isinstance(outer, Sum):
        return inner if outer.coefficients[0] == 1 else scale_output(outer.coefficients[0], inner)
    return compose(outer, inner)
