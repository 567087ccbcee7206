"""The compiler's entry: capture, lift, rewrite, lower, verify, report."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, cast

from torch import fx, nn

from reparam.bound import Bound, copy_before_writes
from reparam.capture import Capture, capture, keep_hooks
from reparam.driver import Driver, Listener
from reparam.effects import fenced
from reparam.errors import PassError, ReparamError
from reparam.foreign import FxPass, run_foreign
from reparam.graph import ValueGraph
from reparam.lift import lift_graph
from reparam.lower import lower
from reparam.pipelines import Pass, default_passes
from reparam.report import Remark, Report, Verification, attach, count
from reparam.rewrite import Rewrite
from reparam.values import Opaque
from reparam.verify import verify as verify_models


def compile(  # noqa: A001 - the name that users of a compiler look for
    model: nn.Module,
    example_inputs: Any = None,
    *,
    passes: Sequence[Pass] | None = None,
    verify: bool = True,
    remarks: Listener | None = None,
    constants: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """Fuse what can be fused exactly, and return a new model that computes the same function.

    Args:
        model: any module in evaluation mode. It is not changed, and the result shares no storage
            with it.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments. With
            them, the result as a whole is compared with the model.
        passes: rewrites (`reparam.rewrite`) and plain torch.fx passes, in order;
            `default_passes()` if None.
        verify: whether to check each rewrite in float64 before it is made, and the whole.
        remarks: called with each `Remark` as it is made.
        constants: arguments of the forward that never change, by name: tensors, or plain values.
            What depends on nothing else is computed once, and tensors are no inputs of the result.

    Returns:
        A graph module of torch's own modules and functions; `reparam.report` tells what was done.

    Raises:
        TrainingModeError: if the model is in training mode.
        CaptureError: if its forward can't be traced, or has no argument of a constant's name.
        PassError: if something among `passes` is no pass.
        VerificationError: if the whole result differs from the model.
    """
    if isinstance(passes, Rewrite):
        raise PassError(f"passes is a tuple of passes; write passes=({passes.name},)")
    chosen = default_passes() if passes is None else tuple(passes)
    for one in chosen:
        if not callable(one):
            raise PassError(
                f"{one!r} is no pass; use reparam.rewrite, or a function of a GraphModule"
            )
    if verify not in (True, False):
        raise ReparamError(f"verify is True or False, not {verify!r}")
    told = remarks or _ignore
    original = captured = capture(model, example_inputs, constants)
    if constants:
        copy_before_writes(captured.graph, fenced(captured))
    values = lift_graph(captured, example_inputs)
    found = _left_whole(original, values)
    for remark in found:
        told(remark)
    unchecked = 0
    for _, group in groupby(chosen, lambda one: isinstance(one, Rewrite)):
        members = tuple(group)
        rewrites = tuple(one for one in members if isinstance(one, Rewrite))
        if rewrites:
            driver = Driver(values, rewrites, verify, told)
            found += driver.run()
            unchecked += driver.unchecked
        for foreign in members[len(rewrites) :]:
            captured, values, remark = run_foreign(
                cast("FxPass", foreign), captured, values, example_inputs, verify
            )
            found.append(remark)
            told(remark)
    fused = lower(values, captured)
    keep_hooks(model, fused)
    whole = None
    if verify and example_inputs is not None:
        reference = Bound(model, constants) if constants else model
        equivalence = verify_models(reference, fused, example_inputs)
        equivalence.raise_if_different()
        whole = str(equivalence)
    attach(fused, _report(model, original, fused, found, verify, unchecked, whole))
    return fused


def _ignore(_: Remark) -> None:
    """Nobody listens."""


def _left_whole(captured: Capture, values: ValueGraph) -> list[Remark]:
    """A remark for each call that is of a known kind, or could be, but stays opaque."""
    untraced = [
        Remark("missed", "capture", path, f"it can't be traced and stays as it is: {reason}")
        for path, reason in captured.untraced.items()
    ]
    opaque = [
        Remark("missed", "lift", call.name, call.value.reason)
        for call in values.calls()
        if isinstance(call.value, Opaque) and call.value.reason and call.node.op == "call_function"
    ]
    return untraced + opaque


def _report(
    model: nn.Module,
    captured: Capture,
    fused: fx.GraphModule,
    remarks: list[Remark],
    verified: bool,
    unchecked: int,
    whole: str | None,
) -> Report:
    by_kind = {
        kind: tuple(remark for remark in remarks if remark.kind == kind)
        for kind in ("applied", "missed", "analysis")
    }
    errors = [remark.error for remark in by_kind["applied"] if remark.error is not None]
    mode = "float64" if verified and not unchecked else "unverified"
    return Report(
        **by_kind,
        before=count(model, captured.graph),
        after=count(fused, fused.graph),
        verification=Verification(mode, len(errors), max(errors, default=0.0), whole),
    )
