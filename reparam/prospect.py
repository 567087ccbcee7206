"""What a region could gain, told from its form before any weight is computed.

Most calls are the root of nothing that pays. To find that out must cost next to nothing.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

from reparam.cost import cost
from reparam.errors import Declined
from reparam.expansion import affine_call, require_affordable
from reparam.graph import Call
from reparam.values import BatchNorm, Conv, Sum, Value

LONGEST = 64
"""How many calls a region may take in. Merging gains nothing from longer ones; time it costs."""


def could_shrink(root: Call, through: Callable[[Call], bool], meeting: bool) -> bool:
    """Whether maps meet in a tensor; or, if not only `meeting` counts, follow each other.

    Multiples count as well. All else is a tree with one map on each branch, which takes no fewer
    operations in any form. What others read as well stays, and only counts for where it meets. Of
    what is neither a convolution nor a norm, its law has to say whether it is one.

    Raises:
        Declined: if nothing but a composition could, and that can't pay.
    """
    budget = Budget(root, through)
    dear: Declined | None = None
    seen = {root}
    pending: list[tuple[Call, Value | None]] = [(root, None)]
    while pending:
        call, outer = pending.pop()
        stays = call != root and len(call.readers) > 1
        if not (meeting or stays):
            if _shrinks_alone(call):
                return True
            if not isinstance(call.value, Sum):
                try:
                    if outer is not None and _composable(outer, call.value, budget):
                        return True
                except Declined as declined:
                    dear = dear or Declined(declined.reason, call.name)
                    continue
                outer = call.value
        for source in call.inputs:
            if source in seen or len(seen) > LONGEST:
                return True
            seen.add(source)
            if not stays and affine_call(source) and through(source):
                pending.append((source, outer))
    if dear is not None:
        raise dear
    return False


def _composable(outer: Value, inner: Value, budget: "Budget") -> bool:
    """Whether two maps may become one, whose cost is known without their numbers.

    Raises:
        Declined: if they cost more.
    """
    if isinstance(outer, Conv) and isinstance(inner, Conv):
        require_affordable(outer, inner, budget)
    return True


def _shrinks_alone(call: Call) -> bool:
    """Whether a call could become another one without any beside it."""
    value = call.value
    if isinstance(value, Sum):
        return len(value.coefficients) == 1 or any(abs(c) != 1 for c in value.coefficients)
    return not isinstance(value, Conv | BatchNorm)


class Budget:
    """Multiply-adds per pixel of all calls that could go: what a region can pay with.

    Attributes:
        used: whether it has paid for any composition that costs more than its parts.
    """

    def __init__(self, root: Call, through: Callable[[Call], bool]) -> None:
        self.used = False
        self._root, self._through = root, through

    def __call__(self, madds: float) -> bool:
        """Pay for a composition, if it is not too dear."""
        self.used |= madds <= self._total
        return madds <= self._total

    @cached_property
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
            pending |= {x for x in call.inputs if affine_call(x) and through(x)}
