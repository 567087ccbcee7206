"""Run passes over a graph of values until nothing changes. The only place that edits the graph."""

import bisect
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import fx

from reparam.arguments import found
from reparam.check import check
from reparam.cost import Cost, cost
from reparam.errors import Declined, Rejected, first_line, require
from reparam.graph import Apply, Call, Expression, ValueGraph, leaves
from reparam.memory import ends_in_layer, shared_result, written_later
from reparam.naming import effect, layer_name, layer_names
from reparam.precision import require_representable
from reparam.proof import Proof
from reparam.prove import prove_rewrite
from reparam.region import LONGEST
from reparam.report import Remark
from reparam.rewrite import Replace, Rewrite
from reparam.traits import Traits
from reparam.values import Layout, Value

Listener = Callable[[Remark], None]

Verify = bool | Literal["proof"]
"""Whether each rewrite is checked in float64, and "proof" for a proof beside that."""


class _Queue:
    """Calls to offer to passes. Earlier passes come first, then calls nearer to the outputs.

    A call waits for one pass at a time, since none is asked before all earlier ones were, and only
    for passes on values of its kind.
    """

    def __init__(self, passes: tuple[Rewrite, ...]) -> None:
        self._passes = passes
        self._next: dict[type[Value], list[int]] = {}
        self._order: dict[fx.Node, int] = {}
        self._waiting: list[deque[fx.Node]] = [deque() for _ in passes]
        self._first = 0  # no call waits for an earlier pass

    def push(self, call: Call, order: int) -> None:
        """Let a call wait for a pass or a later one, unless it waits for an earlier one."""
        node = call.node
        kind = type(call.value)
        order = (self._next.get(kind) or self._following(kind))[order]
        if order < self._order.get(node, len(self._waiting)):
            self._order[node] = order
            self._first = min(self._first, order)
            waiting = self._waiting[order]
            # Calls come here as they leave the queue of an earlier pass, the latest first.
            if not waiting or node < waiting[0]:
                waiting.appendleft(node)
            else:
                bisect.insort(waiting, node)

    def _following(self, kind: type[Value]) -> list[int]:
        """For each pass, and past the end, the first from there on that is on values of a kind."""
        following = [len(self._passes)]
        for order, rule in reversed([*enumerate(self._passes)]):
            following.insert(0, order if issubclass(kind, rule.on) else following[0])
        self._next[kind] = following
        return following

    def pop(self) -> tuple[Call, int] | None:
        """The next call, and the number of the pass that it waits for; None at the end."""
        while self._first < len(self._waiting):
            order, waiting = self._first, self._waiting[self._first]
            while waiting:
                node = waiting.pop()
                if self._order.get(node) == order:
                    del self._order[node]
                    return Call(node), order
            self._first += 1
        return None


class Driver:
    """One run of some rewrites over one graph.

    A pass has done all it can before a later one is asked, and is asked again about whatever a
    later one changes.

    Every rewrite strictly lowers one measure of what is replaced, so the run ends; each is checked
    before it is made, so that one that fails has left no trace.

    Attributes:
        remarks: what was applied, and at the end what was missed.
        unchecked: rewrites that hold no numbers to check, on the meta device.
        seconds_proving: how long the proofs took.
    """

    def __init__(
        self, values: ValueGraph, passes: tuple[Rewrite, ...], verify: Verify, listener: Listener
    ) -> None:
        """Take the graph, the passes in their order, and who is told of each remark."""
        self.values = values
        self.passes = passes
        self.verify = verify
        self.listener = listener
        self.remarks: list[Remark] = []
        self.unchecked = 0
        self.seconds_proving = 0.0
        self._missed: dict[fx.Node, dict[str, tuple[str, str | None]]] = {}
        self._told: set[tuple[str, str]] = set()
        self._queue = _Queue(passes)

    def run(self) -> list[Remark]:
        """Rewrite until no pass has anything left to do."""
        self._enqueue(reversed([*self.values.calls()]))
        while (task := self._queue.pop()) is not None:
            call, order = task
            if call.node._erased:
                continue
            self._offer(call, self.passes[order])
            self._queue.push(call, order + 1)
        for node in sorted(self._missed):
            for rule, why in self._missed[node].items():
                self._say("missed", rule, Call(node).name, *why)
        return self.remarks

    def _enqueue(self, calls: Iterable[Call]) -> None:
        for call in calls:
            if call.node.op == "call_function":
                self._queue.push(call, 0)

    def _offer(self, call: Call, rule: Rewrite) -> None:
        """Ask a pass about a call, and do what it says."""
        if call.node in self._missed:
            self._missed[call.node].pop(rule.name, None)
        try:
            replacement = rule(call)
            if replacement is not None:
                self._apply(rule, call, replacement)
        except Rejected as rejected:
            self._say("missed", rule.name, call.name, rejected.reason, rejected.blocker)
        except Declined as declined:
            # The error itself would keep alive what stood on the stack: weights in float64.
            why = (declined.reason, declined.blocker)
            self._missed.setdefault(call.node, {})[rule.name] = why
        except (Exception, SystemExit) as error:  # a pass may be anyone's
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
            own = ends_in_layer(expression) or not written_later(root)
            require(own, "its result may be written to, and has to be a tensor of its own")
            apart = not shared_result(root, expression)
            require(apart, "the result would lie in memory of an input or of another result")
        dead = self.values.dead_after(rewrite)
        gone = sorted(dead)
        parts = list(_applications(rewrite))
        kept = functools.reduce(Traits.__or__, [call.traits, *(c.traits for c in gone)])
        old = _measure((c.value, c.traits.convolution) for c in dead)
        old += Cost(sum(c.constant_operations for c in dead), 0)
        new = _measure((part.value, kept.convolution) for part in parts)
        if not new < old:
            raise Declined(f"it would not make the graph smaller: {_size(old)}, then {_size(new)}")
        root = next(iter(rewrite))
        dtype = None if root.shape is None else root.shape.dtype
        require_representable([part.value for part in parts], dtype)
        error, proof = self._checked(rule, call, rewrite, [*parts, *dead])
        name = layer_name(call, gone)
        message = effect(call, name, gone)
        sources = {source for c in dead for source in c.inputs} - dead
        around = {reader for source in sources for reader in _near(source)}
        replaced = layer_names(gone)
        made = self.values.replace(rewrite, dead)
        holding = sorted(fresh for fresh in made if fresh.value.tensors())
        same = len(holding) == len(replaced)
        for fresh, path in zip(holding, replaced if same else [name] * len(holding), strict=True):
            fresh.node.meta["path"] = path
        for fresh in made:
            fresh.node.meta["traits"] = kept
        for c in dead:
            self._missed.pop(c.node, None)
        self._say("applied", rule.name, name, message, None, error, proof)
        near = {*made, *around, *_downstream({*made, *leaves(rewrite.values())})}
        self._enqueue(c for c in near if not c.node._erased)

    def _checked(
        self,
        rule: Rewrite,
        call: Call,
        rewrite: dict[Call, Expression],
        parts: list[Apply | Call],
    ) -> tuple[float | None, Proof | None]:
        """The largest difference in float64, and the proof, as far as they are wanted."""
        if any(tensor.is_meta for part in parts for tensor in part.value.tensors()):
            self.unchecked += 1
            return None, None
        error = check(rewrite) if self.verify else None
        if self.verify != "proof":
            return error, None
        begun = time.perf_counter()
        proof = prove_rewrite(rule, call, rewrite)
        self.seconds_proving += time.perf_counter() - begun
        return error, proof

    def _say(
        self,
        kind: Any,
        rule: str,
        call: str,
        message: str,
        blocker: str | None,
        error: float | None = None,
        proof: Proof | None = None,
    ) -> None:
        remark = Remark(kind, rule, call, message, blocker, error, proof)
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
        for reader in _near(call):
            further = steps + (not isinstance(reader.value, Layout))
            if further < min(reached.get(reader, 3), 3):
                reached[reader] = further
                pending.append((reader, further))
    return set(reached)


def _near(call: Call) -> tuple[Call, ...]:
    """The readers of a call; none where they are more than any region takes in."""
    return call.readers if len(call.node.users) <= LONGEST else ()


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
    operations = elements = 0.0
    for value, layer in values:
        operations += cost(value, 0, layer=layer).operations
        elements += sum(tensor.numel() for tensor in value.tensors())
    return Cost(operations, elements)


def _size(measure: Cost) -> str:
    return f"{measure.operations:g} operations with {measure.madds:,.0f} weights"
