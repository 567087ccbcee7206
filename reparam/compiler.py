"""The compiler's entry: compile, verify, report."""

import gc
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import fx, nn

from reparam.block import Block, Options
from reparam.bound import Bound, Entry
from reparam.capture import checked
from reparam.driver import Listener
from reparam.errors import CaptureError, PassError, ReparamError
from reparam.interface import add_methods
from reparam.pipelines import Pass, default_passes
from reparam.report import Remark, Report, Verification, attach
from reparam.rewrite import Rewrite
from reparam.verify import verify as verify_models
from reparam.wrappers import materialised, unwrapped


def compile(  # noqa: A001 - the name that users of a compiler look for
    model: nn.Module,
    example_inputs: Any = None,
    *,
    passes: Sequence[Pass] | None = None,
    verify: bool = True,
    remarks: Listener | None = None,
    constants: Mapping[str, Any] | None = None,
    methods: Sequence[str] | Mapping[str, Any] = (),
) -> nn.Module:
    """Fuse what can be fused exactly, and return a new model that computes the same function.

    Args:
        model: any module in evaluation mode. It is not changed, and the result shares no storage
            with it. Of DataParallel, DistributedDataParallel, torch.compile and what averages
            weights, the model inside is compiled.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments. With
            them, the result as a whole is compared with the model, and a forward that branches
            on sizes can be traced; the result asserts that its inputs take the same branches.
        passes: rewrites (`reparam.rewrite`) and plain torch.fx passes, in order;
            `default_passes()` if None.
        verify: whether to check each rewrite in float64 before it is made, and the whole.
        remarks: called with each `Remark` as it is made.
        constants: arguments of the forward that never change, by name: tensors, or plain values.
            What depends on nothing else is computed once, and tensors are no inputs of the result.
        methods: further methods to compile, such as "forward_features"; or a mapping of their
            names to example inputs. Calling another method of the result says it was not compiled.

    Returns:
        A graph module of torch's own modules and functions; `reparam.report` tells what was done.
        A model whose own forward can't be traced comes back as a copy, its parts compiled.

    Raises:
        TrainingModeError: if the model is in training mode.
        CaptureError: if it is no module; if it has no such method, or no argument of a constant's
            name; or if it can't be traced, and one of these was asked for.
        PassError: if something among `passes` is no pass.
        VerificationError: if the whole result differs from the model.
    """
    chosen = _checked_passes(passes)
    if verify not in (True, False):
        raise ReparamError(f"verify is True or False, not {verify!r}")
    model = materialised(unwrapped(checked(model)))
    options = Options(chosen, verify, remarks or _ignore)
    with _uncollected():
        return _compiled(model, options, example_inputs, constants, methods)


def _compiled(
    model: nn.Module,
    options: Options,
    example_inputs: Any,
    constants: Mapping[str, Any] | None,
    methods: Sequence[str] | Mapping[str, Any],
) -> nn.Module:
    """Compile a model and its further methods, and verify them."""
    verify = options.verify
    block = Block(model, options, example_inputs, constants)
    fused = block.fused
    whole = None
    if verify and example_inputs is not None:
        reference = Bound(model, constants) if constants else model
        whole = _verified(reference, fused, example_inputs)
    entries = methods if isinstance(methods, Mapping) else dict.fromkeys(methods)
    added: dict[str, fx.GraphModule] = {}
    for method, example in entries.items():
        if not callable(getattr(model, method, None)):
            raise CaptureError(f"{type(model).__name__} has no method {method!r} to compile")
        entry = Block(model, options, example, method=method)
        if verify and example is not None:
            _verified(Entry(model, method), entry.fused, example)
        added[method] = cast("fx.GraphModule", entry.fused)
    if isinstance(fused, fx.GraphModule):
        add_methods(fused, added)
    attach(fused, _report(block, verify, whole))
    return fused


@contextmanager
def _uncollected() -> Generator[None]:
    """Do without the search for cycles, which would go through the growing graphs again and again.

    The few that a compile leaves hold no weights, and are found by the next search.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _checked_passes(passes: Any) -> tuple[Pass, ...]:
    """The passes as a tuple.

    Raises:
        PassError: if something is no pass.
    """
    if passes is None:
        return default_passes()
    if isinstance(passes, Rewrite):
        raise PassError(f"passes is a tuple of passes; write passes=({passes.name},)")
    if not isinstance(passes, Iterable):
        raise PassError(f"passes is a tuple of passes, not {type(passes).__name__}")
    chosen = tuple(cast("Iterable[Any]", passes))
    for one in chosen:
        if not callable(one):
            raise PassError(
                f"{one!r} is no pass; use reparam.rewrite, or a function of a GraphModule"
            )
    return chosen


def _ignore(_: Remark) -> None:
    """Nobody listens."""


def _verified(model: nn.Module, fused: nn.Module, example_inputs: Any) -> str:
    """What a comparison of the whole says.

    Raises:
        VerificationError: if the two are not equivalent.
    """
    equivalence = verify_models(model, fused, example_inputs)
    equivalence.raise_if_different()
    return str(equivalence)


def _report(block: Block, verified: bool, whole: str | None) -> Report:
    by_kind = {
        kind: tuple(remark for remark in block.remarks if remark.kind == kind)
        for kind in ("applied", "missed", "analysis")
    }
    errors = [remark.error for remark in by_kind["applied"] if remark.error is not None]
    mode = "float64" if verified and not block.unchecked else "unverified"
    return Report(
        **by_kind,
        before=block.before,
        after=block.after,
        verification=Verification(mode, len(errors), max(errors, default=0.0), whole),
    )
