"""Compile one module: trace it, rewrite it, write it back. What can't be traced stays.

Of a module that stays, the parts that its own code only calls are compiled each on its own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, cast

import torch
from torch import fx, nn

from reparam import known
from reparam.arguments import dismantle
from reparam.capture import Capture, capture, modules_of
from reparam.driver import Driver, Listener, Verify
from reparam.effects import copy_what_leaves, state_written
from reparam.errors import TrainingModeError, UntracedError
from reparam.foreign import FxPass, run_foreign
from reparam.graph import ValueGraph
from reparam.held import lift_held
from reparam.interface import keep_interface
from reparam.lower import lower
from reparam.paths import prefixes
from reparam.pipelines import Pass
from reparam.places import NO_CODE
from reparam.report import Counts, Remark, axes_told, count
from reparam.rewrite import Rewrite
from reparam.storage import place_of
from reparam.usage import called_parts, parts_of
from reparam.values import Opaque
from reparam.wrappers import duplicate


@dataclass(frozen=True)
class Options:
    """How to compile a model, and each of its parts."""

    passes: tuple[Pass, ...]
    verify: Verify
    listener: Listener
    path: str = ""


class Block:
    """A module being compiled, and the account of it.

    Attributes:
        fused: the result.
        remarks: about it and its parts, by their paths in it.
        unchecked: rewrites that hold no numbers to check.
        seconds_proving: how long the proofs took.
        axes: how many axes inputs have, by the example inputs.
        before, after: its operators, those of compiled parts among them.
        reads: paths of the modules that it calls, and of the tensors that it reads.
        writes: paths of the tensors that it writes to.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        example_inputs: Any = None,
        constants: Mapping[str, Any] | None = None,
        method: str = "forward",
    ) -> None:
        """Compile.

        Raises:
            TrainingModeError: if the model is in training mode.
            CaptureError: if there are constants and it can't be traced, or has no such argument.
        """
        self.options = options
        self.remarks: list[Remark] = []
        self.unchecked = 0
        self.seconds_proving = 0.0
        self.axes: dict[str, int] = {}
        self.fused: nn.Module
        self.before: Counts
        self.after: Counts
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self._parts: list[Block] = []
        try:
            captured = capture(model, example_inputs, constants, method)
            copy_what_leaves(captured)
        except UntracedError as error:
            if constants or method != "forward":
                raise
            self._leave(model, error.reason)
            return
        self._compile(model, captured, example_inputs, constants or {}, method == "forward")

    def _compile(
        self,
        model: nn.Module,
        captured: Capture,
        example: Any,
        constants: Mapping[str, Any],
        forward: bool,
    ) -> None:
        self.before = count(model, captured.graph, captured.attribute)
        nodes = captured.graph.nodes
        self.reads = {str(n.target) for n in nodes if n.op in ("get_attr", "call_module")}
        self.writes = state_written(captured)
        told = axes_told(model, self.before) if forward else {}
        values, self.axes = lift_held(captured, example, told)
        for remark in _left_whole(captured, values):
            self._say(remark)
        for _, group in groupby(self.options.passes, lambda one: isinstance(one, Rewrite)):
            members = tuple(group)
            rewrites = tuple(one for one in members if isinstance(one, Rewrite))
            if rewrites:
                driver = Driver(values, rewrites, self.options.verify, self._say)
                driver.run()
                self.unchecked += driver.unchecked
                self.seconds_proving += driver.seconds_proving
            for foreign in members[len(rewrites) :]:
                captured, values, remark = run_foreign(
                    cast("FxPass", foreign), captured, values, example, bool(self.options.verify)
                )
                self._say(remark)
        fused = lower(values, captured, self._compiled_parts(captured))
        keep_interface(model, fused)
        dismantle(captured.graph, values.graph)
        for message in _assertions(fused.graph):
            self._say(Remark("analysis", "capture", "", message))
        self.fused, self.after = fused, count(fused, fused.graph, fused.get_submodule)
        self._add_up()

    def _leave(self, model: nn.Module, reason: str) -> None:
        """Leave a module as it is, but for the parts that it only calls."""
        name = type(model).__name__
        self._say(Remark("missed", "capture", "", f"{name} can't be traced and stays: {reason}"))
        parts = self._compile_parts({"": model})
        self.fused = duplicate(model, parts)
        self.before = Counts({name: 1}, sum(p.numel() for p in model.parameters()))
        self.after = Counts({name: 1}, sum(p.numel() for p in self.fused.parameters()))
        self._add_up()

    def _compiled_parts(self, captured: Capture) -> dict[int, nn.Module]:
        """Compiled parts of the modules that stay whole, by the identity of the original."""
        if not captured.untraced:
            return {}
        targets = {str(node.target) for node in captured.graph.nodes if node.op != "call_function"}
        entered = {folder for target in targets for folder in prefixes(target)[:-1]}
        whole = [path for path in captured.untraced if path in targets]
        apart = [path for path in whole if path not in entered]
        for path in whole:
            if path not in apart and any(True for _ in called_parts(captured.attribute(path))):
                reason = "its parts are called from elsewhere as well, and stay as they are"
                self._say(Remark("missed", "capture", path, reason))
        return self._compile_parts({path: captured.attribute(path) for path in apart})

    def _compile_parts(self, whole: Mapping[str, nn.Module]) -> dict[int, nn.Module]:
        """Compile the parts of modules that are called, and used in no other way by anybody."""
        holders = [holder for module in whole.values() for holder in module.modules()]
        called = {id(holder): list(called_parts(holder)) for holder in holders}
        read = {
            id(part)
            for holder in holders
            for part in parts_of(holder)
            if all(part is not other for other in called[id(holder)])
        }
        apart = _held_apart(holders)
        found: dict[int, nn.Module] = {}
        for path, module in whole.items():
            places = {id(part): name for name, part in modules_of(module)}
            for part in called[id(module)]:
                if id(part) in found or id(part) in read:
                    continue
                place = f"{path}.{places[id(part)]}".strip(".")
                if apart(part):
                    found |= self._compile_part(part, place)
                else:
                    reason = "another module has a buffer of it as well, and may write to it"
                    self._say(Remark("missed", "capture", place, reason))
        return found

    def _compile_part(self, part: nn.Module, place: str) -> dict[int, nn.Module]:
        if isinstance(part, torch.jit.ScriptModule):
            self._say(Remark("missed", "capture", place, NO_CODE))
            return {}
        try:
            block = Block(part, replace(self.options, path=self._place(place)))
        except TrainingModeError as error:
            self._say(Remark("missed", "capture", place, str(error)))
            return {}
        self.remarks += block.remarks
        if not any(remark.kind == "applied" for remark in block.remarks):
            return {}
        self.unchecked += block.unchecked
        self.seconds_proving += block.seconds_proving
        self._parts.append(block)
        return {id(part): block.fused}

    def _place(self, path: str) -> str:
        """The path, in the model, of something in this module."""
        return f"{self.options.path}.{path}".strip(".")

    def _add_up(self) -> None:
        """Count the operators of compiled parts with those of the whole."""
        for part in self._parts:
            self.before = self.before.with_operators(part.before)
            self.after = self.after.with_operators(part.after)

    def _say(self, remark: Remark) -> None:
        if self.options.path:
            remark = remark.inside(self.options.path)
        self.remarks.append(remark)
        self.options.listener(remark)


def _held_apart(holders: Sequence[nn.Module]) -> Callable[[nn.Module], bool]:
    """Whether a part of some modules has its buffers for itself."""

    def places(modules: Iterable[nn.Module]) -> Counter[Any]:
        several = {id(module): module for module in modules}.values()
        return Counter(place_of(b) for m in several for b in m.buffers(recurse=False))

    total = places(holders)

    def apart(part: nn.Module) -> bool:
        return all(total[place] == count for place, count in places(part.modules()).items())

    return apart


def _left_whole(captured: Capture, values: ValueGraph) -> Iterator[Remark]:
    """A remark for each call that is of a known kind, or could be, but stays opaque."""
    for path, reason in captured.untraced.items():
        message = f"it can't be traced and stays as it is: {reason}"
        yield Remark("missed", "capture", path, message)
    opaque = [(call, v) for call in values.calls() if isinstance(v := call.value, Opaque)]
    for call, value in opaque:
        if value.reason and call.node.op == "call_function":
            yield Remark("missed", "lift", call.name, value.reason)
    internal = (call for call, value in opaque if known.internal(value.target))
    if (first := next(internal, None)) is not None:
        reason = "no pass knows torch's internal operators; compile before torch.export"
        yield Remark("missed", "lift", first.name, reason)


def _assertions(graph: fx.Graph) -> Iterator[str]:
    """What a result asserts because a trace took one of several ways."""
    told: set[str] = set()
    for node in graph.nodes:
        message = str(node.args[1]) if len(node.args) > 1 else ""
        if message.startswith(known.HELD) and message not in told:
            told.add(message)
            yield message
