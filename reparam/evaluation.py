"""The two sides of a rewrite: what both are computed from, and their results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.arguments import mapped
from reparam.devices import held_on_cpu
from reparam.graph import INPUT, Apply, Call, Expression, leaves
from reparam.sizes import Assignment, Size, Symbol
from reparam.values import BatchNorm, Constant, Conv, Layout, Opaque, Shape, Value


@dataclass(frozen=True)
class Operands:
    """What a rewrite takes part in.

    Attributes:
        rewrite: the old calls, and the new expression for each.
        cut: the tensors that the new side is computed from, and that the old side is given too.
        computed: the calls that the old side computes from these.
        drawn: the calls that tensors are drawn for, in order: what both sides are computed from.
    """

    rewrite: Mapping[Call, Expression]
    cut: set[Call]
    computed: set[Call]
    drawn: list[Call]

    @staticmethod
    def of(rewrite: Mapping[Call, Expression]) -> "Operands":
        """Those of a rewrite."""
        cut = _cut(rewrite)
        computed = {*rewrite, *_between(rewrite, cut)}
        return Operands(rewrite, cut, computed, _leaves(rewrite, cut, computed))

    def evaluated(self) -> list[Call]:
        """The calls whose values are applied, on the old side and for sizes, in order."""
        seen: set[Call] = set()
        pending = [*self.rewrite, *leaves(self.rewrite.values())]
        while pending:
            call = pending.pop()
            if call not in seen and (call in self.rewrite or call not in self.drawn):
                seen.add(call)
                pending.extend(call.inputs)
        return sorted(seen)


def _cut(rewrite: Mapping[Call, Expression]) -> set[Call]:
    """The tensors that the new side is computed from, and that are given to the old side too."""
    return {call for call in leaves(rewrite.values()) if call not in rewrite and not _sized(call)}


def _sized(call: Call) -> bool:
    """Whether the result is a size or several, which follow from the shapes of tensors."""
    return isinstance(call.value, Shape) or isinstance(call.facts, Size | tuple)


def _between(rewrite: Mapping[Call, Expression], cut: set[Call]) -> set[Call]:
    """The calls that the old side computes from the cut, by way of tensors: none may be drawn."""
    if not cut:
        return set()
    first = min(cut)
    above: set[Call] = set()
    pending = list(rewrite)
    while pending:
        call = pending.pop()
        if call not in above and call not in cut and not _sized(call) and first < call:
            above.add(call)
            pending.extend(call.inputs)
    between: set[Call] = set()
    for call in sorted(above):
        if any(source in cut or source in between for source in call.inputs):
            between.add(call)
    return between


def _leaves(rewrite: Mapping[Call, Expression], cut: set[Call], computed: set[Call]) -> list[Call]:
    """The calls that tensors are drawn for: what both sides are computed from."""
    drawn = set(cut)
    seen: set[Call] = set()
    pending = [*rewrite, *(call for call in leaves(rewrite.values()) if _sized(call))]
    while pending:
        call = pending.pop()
        if call in seen or call in cut:
            continue
        seen.add(call)
        if (
            isinstance(call.value, Shape)
            and _exact(call.inputs[0])
            and call.inputs[0] not in computed
        ):
            drawn.update(call.inputs)  # only its sizes count, whatever it is computed from
            continue
        opaque = isinstance(call.value, Opaque) and not isinstance(call.value, Layout)
        if call.value is INPUT or (opaque and call not in computed and call.shape is not None):
            drawn.add(call)
        else:
            pending.extend(call.inputs)
    return sorted(drawn)


def _exact(call: Call) -> bool:
    """Whether all axes of a tensor are known."""
    return call.shape is not None and call.shape.exact


def shapes(calls: list[Call], sizes: tuple[int, ...], images: int) -> dict[Call, tuple[int, ...]]:
    """Shapes of the tensors to draw for calls; equal symbols get equal sizes.

    Args:
        calls: that tensors are drawn for.
        sizes: for the symbols, in turn.
        images: of each batch.
    """
    batch = {
        c.shape.axes[0].symbols[0]
        for c in calls
        if c.shape and c.shape.exact and c.shape.axes and c.shape.axes[0].symbols
    }
    given: dict[Symbol, int] = dict.fromkeys(batch, images)
    assignment = Assignment(sizes, given)
    every = {s for c in calls if c.shape for axis in c.shape.axes for s in axis.symbols}
    for symbol in sorted(every, key=lambda symbol: symbol.serial):
        assignment.number(symbol)
    found_out: dict[Call, tuple[int, ...]] = {}
    for call in calls:
        # Of a tensor that nothing is known of, any shape is a test, if what reads it takes it.
        axes = (
            (images, 3, *sizes[:2])
            if call.shape is None
            else tuple(map(assignment, call.shape.axes))
        )
        found_out[call] = axes if call.shape is None or call.shape.exact else (1, *axes)
    return found_out


class Evaluation:
    """The results of calls and expressions, from given tensors, each computed once."""

    def __init__(self, tensors: dict[Call, Tensor], wide: dict[Value, Value]) -> None:
        """`wide` keeps values in float64, from one size to the next."""
        self._wide = wide
        # A value of anyone's may write to what it is given.
        self._results: dict[Any, Any] = {call: drawn.clone() for call, drawn in tensors.items()}

    def __call__(self, part: Call | Apply) -> Any:
        """The result of one."""
        if part not in self._results:
            if isinstance(part, Call):
                args, kwargs = mapped(
                    (part.node.args, part.node.kwargs), fx.Node, lambda node: self(Call(node))
                )
            else:
                args, kwargs = mapped((part.inputs, dict(part.options)), (Call, Apply), self)
            if isinstance(part.value, Opaque) and not isinstance(part.value, Layout):
                # A module that works in place writes to what others may read.
                args, kwargs = mapped((args, kwargs), Tensor, Tensor.clone)
            if isinstance(part, Call) and part.traits.convolution and not args[0].numel():
                raise RuntimeError("a convolution takes no empty image")  # as torch's own doesn't
            with torch.no_grad():
                self._results[part] = self._widened(part.value)(*args, **kwargs)
        return self._results[part]

    def _widened(self, value: Value) -> Value:
        if isinstance(value, Opaque):
            return value.widened()
        if isinstance(value, BatchNorm | Conv | Constant) and value not in self._wide:
            here = held_on_cpu(value)
            held = {name: getattr(here, name) for name in here.__dataclass_fields__}
            tensors = {name: t for name, t in held.items() if isinstance(t, Tensor)}
            wide = {name: t.double() for name, t in tensors.items() if t.is_floating_point()}
            self._wide[value] = replace(here, **wide)
        return self._wide.get(value, value)


def something_left(results: Sequence[Any]) -> bool:
    """Whether there is anything in results to be compared, not just empty images."""
    return all(not isinstance(result, Tensor) or result.numel() > 0 for result in results)
