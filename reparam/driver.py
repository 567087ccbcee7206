"""Run passes over a graph of values until nothing changes. The only place that edits the graph."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from reparam.arguments import found
from reparam.check import check
from reparam.cost import Cost, cost
from reparam.errors import Declined, Rejected, first_line, require
from reparam.graph import Apply, Call, Expression, ValueGraph, leaves
from reparam.operators import ConvTranspose, Norm
from reparam.report import Remark
from reparam.rewrite import Replace, Rewrite
from reparam.traits import Traits
from reparam.values import BatchNorm, Constant, Conv, Layout, Value

Listener = Callable[[Remark], None]


@dataclass(frozen=True)
class _Task:
    """A call to offer to a pass. Earlier passes come first, then calls nearer to the outputs."""

    order: int
    call: Call

    def __lt__(self, other: "_Task") -> bool:
        if self.order != other.order:
            return self.order < other.order
        return other.call < self.call


LARGEST_BORDER = 16.0
"""Of the constants that padded inputs are moved by. Activations are of order one, and
what is taken off them and added again costs as many bits as it is larger."""


class Driver:
    """One run of some rewrites over one graph.

    A pass has done all it can before a later one is asked, and is asked again about whatever a
    later one changes.

    Every rewrite strictly lowers one measure of what is replaced, so the run ends; each is checked
    before it is made, so that one that fails has left no trace.

    Attributes:
        remarks: what was applied, and at the end what was missed.
        unchecked: rewrites that hold no numbers to check, on the meta device.
    """

    def __init__(
        self, values: ValueGraph, passes: tuple[Rewrite, ...], verify: bool, listener: Listener
    ) -> None:
        """Take the graph, the passes in their order, and who is told of each remark."""
        self.values = values
        self.passes = passes
        self.verify = verify
        self.listener = listener
        self.remarks: list[Remark] = []
        self.unchecked = 0
        self._missed: dict[tuple[Call, str], Declined] = {}
        self._told: set[tuple[str, str]] = set()
        self._queue: list[_Task] = []
        self._queued: set[_Task] = set()

    def run(self) -> list[Remark]:
        """Rewrite until no pass has anything left to do."""
        self._enqueue(self.values.calls())
        while self._queue:
            task = heapq.heappop(self._queue)
            self._queued.discard(task)
            if not task.call.node._erased:
                self._offer(task.call, self.passes[task.order])
        for (call, rule), declined in sorted(self._missed.items(), key=lambda item: item[0][0]):
            self._say("missed", rule, call.name, declined.reason, declined.blocker)
        self.values.graph.lint()
        return self.remarks

    def _enqueue(self, calls: Iterable[Call]) -> None:
        for call in calls:
            if call.node.op != "call_function":
                continue
            for order in range(len(self.passes)):
                task = _Task(order, call)
                if task not in self._queued:
                    self._queued.add(task)
                    heapq.heappush(self._queue, task)

    def _offer(self, call: Call, rule: Rewrite) -> None:
        """Ask a pass about a call, and do what it says."""
        self._missed.pop((call, rule.name), None)
        try:
            replacement = rule(call)
            if replacement is not None:
                self._apply(rule, call, replacement)
        except Rejected as rejected:
            self._say("missed", rule.name, call.name, rejected.reason, rejected.blocker)
        except Declined as declined:
            self._missed[call, rule.name] = declined
        except Exception as error:  # a pass may be anyone's
            line = first_line(error)
            reason = f"the pass failed with {type(error).__name__}: {line}"
            self._say("missed", rule.name, call.name, reason, None)

    def _apply(self, rule: Rewrite, call: Call, replacement: Replace) -> None:
        """Check a rewrite and make it.

        Raises:
            Declined: if it is not right, not smaller, or can't be made.
        """
        rewrite = replacement.roots(call)
        require(all(not root.node._erased for root in rewrite), "it replaces a call that is gone")
        for root, expression in rewrite.items():
            before = all(leaf < root and leaf not in rewrite for leaf in leaves([expression]))
            require(before, "its replacement reads what it replaces, or what comes after it")
        dead = self.values.dead_after(rewrite)
        parts = list(_applications(rewrite))
        kept = Traits()
        for gone in dead:
            kept |= gone.traits
        old = _measure((c.value, c.traits.convolution) for c in dead)
        old += Cost(sum(c.constant_operations for c in dead), 0)
        new = _measure((part.value, kept.convolution) for part in parts)
        require(new < old, f"it would not make the graph smaller: {_size(old)}, then {_size(new)}")
        _require_representable(rewrite, parts)
        error = self._checked(rewrite, parts, dead)
        name = _name(call, dead)
        message = _effect(call, name, dead)
        around = {reader for c in dead for source in c.inputs for reader in source.readers}
        made = self.values.replace(rewrite)
        holding = sorted(fresh for fresh in made if fresh.value.tensors())
        for fresh, path in zip(holding, _names(name, dead, len(holding)), strict=True):
            fresh.node.meta["path"] = path
        for fresh in made:
            fresh.node.meta["traits"] = kept
        for gone in dead:
            for other in self.passes:
                self._missed.pop((gone, other.name), None)
        self._say("applied", rule.name, name, message, None, error)
        near = {*made, *around, *_downstream({*made, *leaves(rewrite.values())})}
        self._enqueue(c for c in near if not c.node._erased)

    def _checked(
        self, rewrite: dict[Call, Expression], parts: list[Apply], dead: set[Call]
    ) -> float | None:
        values = [*(part.value for part in parts), *(call.value for call in dead)]
        if any(tensor.is_meta for value in values for tensor in value.tensors()):
            self.unchecked += 1
            return None
        return check(rewrite) if self.verify else None

    def _say(
        self,
        kind: Any,
        rule: str,
        call: str,
        message: str,
        blocker: str | None,
        error: float | None = None,
    ) -> None:
        remark = Remark(kind, rule, call, message, blocker, error)
        if kind == "missed" and (call, message) in self._told:
            return
        self._told.add((call, message))
        self.remarks.append(remark)
        self.listener(remark)


def _downstream(calls: set[Call]) -> set[Call]:
    """The readers of calls, and theirs; a rearrangement in between counts as nothing."""
    reached: dict[Call, int] = {}
    pending = [(call, 0) for call in calls]
    while pending:
        call, steps = pending.pop()
        for reader in call.readers:
            further = steps + (not isinstance(reader.value, Layout))
            if further < min(reached.get(reader, 3), 3):
                reached[reader] = further
                pending.append((reader, further))
    return set(reached)


def _applications(rewrite: dict[Call, Expression]) -> Any:
    """Every application in the expressions, each once."""
    seen: set[int] = set()
    pending: list[Expression] = list(rewrite.values())
    while pending:
        part = pending.pop()
        if isinstance(part, Apply) and id(part) not in seen:
            seen.add(id(part))
            yield part
            pending.extend(found((part.inputs, dict(part.options)), (Call, Apply)))


def _measure(values: Iterable[tuple[Value, bool]]) -> Cost:
    """The measure that every rewrite lowers: operations, then elements of weights.

    With each value, whether it runs as a convolution even if it only scales and shifts.
    """
    total = Cost(0, 0)
    for value, layer in values:
        elements = sum(tensor.numel() for tensor in value.tensors())
        total += Cost(cost(value, 0, layer=layer).operations, elements)
    return total


def _size(measure: Cost) -> str:
    return f"{measure.operations:g} operations with {measure.madds:,.0f} weights"


def _require_representable(rewrite: dict[Call, Expression], parts: list[Apply]) -> None:
    """Refuse numbers that overflow, or that were no numbers to begin with."""
    shapes = [root.shape for root in rewrite]
    for part in parts:
        if isinstance(part.value, Conv) and part.value.border is not None:
            modest = bool((part.value.border.abs() <= LARGEST_BORDER).all())
            require(modest, "the constant at the border is too large to be taken off exactly")
        for tensor in part.value.tensors():
            if isinstance(part.value, Constant) or tensor.is_meta:
                continue
            dtype = shapes[0].dtype if shapes[0] is not None else None
            require(dtype is not None, "the dtype of its input is not known; pass example_inputs")
            require(bool(torch.isfinite(tensor).all()), "a weight or a statistic is not finite")
            assert dtype is not None
            name = str(dtype).removeprefix("torch.")
            cast = tensor.to(dtype)
            require(bool(torch.isfinite(cast).all()), f"a folded weight overflows {name}")
            if tensor.is_floating_point() and tensor.ndim > 1:
                # Rounding alone leaves each row half a unit of its length off, at most.
                rows = tensor.double().flatten(1)
                lost = (cast.double().flatten(1) - rows).square().sum(1)
                fine = lost <= torch.finfo(dtype).eps ** 2 * rows.square().sum(1)
                require(bool(fine.all()), f"a folded weight underflows {name}")


def _holders(calls: set[Call]) -> list[Call]:
    """The calls that hold weights."""
    kinds = Conv | BatchNorm | Norm | ConvTranspose
    return sorted(call for call in calls if isinstance(call.value, kinds))


def _name(root: Call, dead: set[Call]) -> str:
    """A name for what replaces some calls.

    It is that of the one convolution among them, whose weights it continues; of several, what the
    names of all that held weights begin with.
    """
    holders = [call for call in _holders(dead) if call.node.meta.get("module", True)]
    convs = [call for call in holders if isinstance(call.value, Conv)]
    if len(convs) == 1:
        return convs[0].name
    shared: list[str] = []
    for parts in zip(*(call.name.split(".") for call in holders), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or next((call.name for call in holders), root.name)


def _names(name: str, dead: set[Call], count: int) -> list[str]:
    """Names for so many new layers: those of the convolutions that go, if these are as many."""
    layers = [call for call in _holders(dead) if call.node.meta.get("module", True)]
    convs = [call.name for call in layers if isinstance(call.value, Conv)]
    return convs if len(convs) == count else [name] * count


def _effect(root: Call, name: str, dead: set[Call]) -> str:
    """What a rewrite did, by the names of what it took in."""
    held = [call.name for call in _holders(dead)]
    others = list(dict.fromkeys([*held, *(call.name for call in sorted(dead))]))
    taken = [other for other in others if other != name]
    if len(dead) == 1:
        return f"{root.name} is gone"
    more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
    return f"{', '.join(taken[:3])}{more} into {name}"
