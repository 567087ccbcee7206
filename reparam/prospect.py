"""What a region could gain, told from its form before any weight is computed.

Most calls are the root of nothing that pays. To find that out must cost next to nothing.
"""

from collections.abc import Callable, Iterator

from reparam.cached import cached
from reparam.cost import cost
from reparam.errors import Declined
from reparam.expansion import affine_call, require_affordable
from reparam.graph import Call
from reparam.values import BatchNorm, Conv, Sum, Value

LONGEST = 64
"""How many calls a region may take in. Merging gains nothing from longer ones; time it costs."""


def could_shrink(root: Call, through: Callable[[Call], bool], meeting: bool) -> bool:
    """Whether a region could become fewer operations: where that is clear from its form alone.

    Two paths that lead to one tensor may be merged, and so may a map and the map before it, or a
    multiple and whatever is beside it. A tree of sums with one map on each branch is as small as it
    gets. What other calls read as well stays where it is.

    Args:
        root: the end of the region.
        through: which calls may be part of it.
        meeting: whether paths that meet are all that counts.

    Raises:
        Declined: if a map follows another, nothing else could be merged, and the two together
            would cost more than all that could go.
    """
    budget = Budget(root, through)
    dearer: list[Declined] = []
    seen = {root}
    pending: list[tuple[Call, Value | None]] = [(root, None)]  # with the map after it, if any
    while pending:
        call, outer = pending.pop()
        stays = call != root and len(call.readers) > 1
        if not (meeting or stays):
            if _shrinks_alone(call):
                return True
            if not isinstance(call.value, Sum):
                declined = None if outer is None else _unaffordable(outer, call, budget)
                if declined is not None:
                    dearer.append(declined)
                    continue
                if outer is not None:
                    return True
                outer = call.value
        for source in call.inputs:
            if source in seen or len(seen) > LONGEST:  # of so large a region, who knows
                return True
            seen.add(source)
            if not stays and affine_call(source) and through(source):
                pending.append((source, outer))
    if dearer:
        raise dearer[0]
    return False


def _shrinks_alone(call: Call) -> bool:
    """Whether a call could become less by itself: a multiple, or what only a law can tell of."""
    value = call.value
    if isinstance(value, Sum):
        return len(value.coefficients) == 1 or any(abs(c) != 1 for c in value.coefficients)
    return not isinstance(value, Conv | BatchNorm)


def _unaffordable(outer: Value, inner: Call, budget: "Budget") -> Declined | None:
    """Why a map and the one before it can't become one: what that costs takes no numbers."""
    if isinstance(outer, Conv) and isinstance(inner.value, Conv):
        try:
            require_affordable(outer, inner.value, budget.affords)
        except Declined as declined:
            return Declined(declined.reason, inner.name)
    return None


class Budget:
    """Multiply-adds of all calls that could go with a root: what a region can pay with.

    Attributes:
        spent: whether it has paid for any composition that costs more than its parts.
    """

    def __init__(self, root: Call, through: Callable[[Call], bool]) -> None:
        """Start with nothing spent; the sum is made when it is first asked for."""
        self.spent = False
        self._root, self._through = root, through

    def affords(self, madds: float) -> bool:
        """Whether so many multiply-adds per pixel are no more than there were."""
        return madds <= self._total

    def pay(self, madds: float) -> bool:
        """Pay for a composition, unless it is too dear."""
        self.spent |= self.affords(madds)
        return self.affords(madds)

    @cached
    def _total(self) -> float:
        return sum(cost(call.value, 0).madds for call in _removable(self._root, self._through))


def _removable(root: Call, through: Callable[[Call], bool]) -> Iterator[Call]:
    """The calls that could go with a root, the latest first: all their readers could."""
    seen: set[Call] = set()
    pending = {root}
    while pending and len(seen) < LONGEST:
        call = max(pending)
        pending.remove(call)
        if call == root or all(reader in seen for reader in call.readers):
            yield call
            seen.add(call)
            pending |= {source for source in call.inputs if affine_call(source) and through(source)}
