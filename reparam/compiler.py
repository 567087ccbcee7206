"""The compiler's entry: compile, verify, report."""

import gc
import threading
import time
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import Any, cast

import torch
from torch import fx, nn

from reparam.account import Work, account
from reparam.block import Block, Options
from reparam.bound import Bound, Entry
from reparam.capture import checked
from reparam.driver import Listener, Verify
from reparam.errors import CaptureError, PassError, ReparamError
from reparam.interface import add_methods
from reparam.paths import prefixes
from reparam.pipelines import Pass, default_passes
from reparam.report import Remark, Report, attach, report
from reparam.rewrite import Rewrite
from reparam.verify import verify as verify_models
from reparam.wrappers import materialised, unwrapped

_one_at_a_time = threading.RLock()
"""Of several threads that compile: while torch.fx traces, it patches modules of all of them."""


def compile(  # noqa: A001 - the name that users of a compiler look for
    model: nn.Module,
    example_inputs: Any = None,
    *,
    passes: Sequence[Pass] | None = None,
    verify: Verify = True,
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
        verify: whether to check each rewrite in float64 before it is made, and the whole;
            "proof" to prove each over a finite field as well, which takes longer.
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
        CaptureError: if it is no module; if a parameter is sparse; if it has no such method, or no
            argument of a constant's name; if it can't be traced, and one of these was asked for;
            or if one of several entries writes to what another reads.
        PassError: if something among `passes` is no pass.
        VerificationError: if the whole result differs from the model.
    """
    chosen = checked_passes(passes)
    if verify not in (True, False, "proof"):
        raise ReparamError(f'verify is True, False or "proof", not {verify!r}')
    entries = checked_methods(methods)
    given = weakref.ref(checked(model))
    model = materialised(unwrapped(model))
    options = Options(chosen, verify, remarks or _ignore)
    with _one_at_a_time, _uncollected(), torch.inference_mode(False):  # nobody could train those
        fused = _compiled(model, options, example_inputs, constants, entries)
    _records[fused] = _Record(given, chosen, example_inputs, constants, methods)
    return fused


@dataclass(frozen=True)
class _Record:
    """How a model was compiled, without a hold on the model."""

    model: weakref.ref[nn.Module]
    passes: tuple[Pass, ...]
    example_inputs: Any
    constants: Mapping[str, Any] | None
    methods: Sequence[str] | Mapping[str, Any]


_records: weakref.WeakKeyDictionary[nn.Module, _Record] = weakref.WeakKeyDictionary()


def prove(fused: nn.Module) -> Report:
    """Prove each rewrite that made a compiled model, over a finite field.

    Where it was compiled with `verify="proof"`, its report has the proofs. Otherwise the compile is
    done once more, with them, from the model that it came from.

    Returns:
        The report with a proof for each rewrite, or the reason why it is checked in float64 only.

    Raises:
        ReparamError: if it was not compiled, if there is no record of how, or if it or the model
            was changed since.
    """
    told = report(fused)
    if told.verification.mode == "proof":
        return told
    record = _records.get(fused)
    model = None if record is None else record.model()
    if record is None or model is None:
        raise ReparamError(
            'there is no record of the model that it came from; compile it with verify="proof"'
        )
    again = compile(
        model,
        record.example_inputs,
        passes=record.passes,
        verify="proof",
        constants=record.constants,
        methods=record.methods,
    )
    state, other = fused.state_dict(), again.state_dict()
    same = state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)
    if not same:
        raise ReparamError(
            'it, or the model that it came from, was changed since; compile with verify="proof"'
        )
    return report(again)


def _compiled(
    model: nn.Module,
    options: Options,
    example_inputs: Any,
    constants: Mapping[str, Any] | None,
    methods: Mapping[str, Any],
) -> nn.Module:
    """Compile a model and its further methods, and verify them."""
    verify, begun = options.verify, time.perf_counter()
    block = Block(model, options, example_inputs, constants)
    fused = block.fused
    whole = None
    if verify and example_inputs is not None:
        reference = Bound(model, constants) if constants else model
        whole = _verified(reference, fused, example_inputs)
    added: dict[str, fx.GraphModule] = {}
    compiled: dict[str, Block] = {"forward": block}
    for method, example in methods.items():
        if not callable(getattr(model, method, None)):
            raise CaptureError(f"{type(model).__name__} has no method {method!r} to compile")
        entry = Block(model, options, example, method=method)
        if verify and example is not None:
            _verified(Entry(model, method), entry.fused, example)
        compiled[method] = entry
        _require_state_apart(compiled)
        added[method] = cast("fx.GraphModule", entry.fused)
    if isinstance(fused, fx.GraphModule):
        add_methods(fused, added)
    work = Work(
        block.remarks, block.before, block.after, block.unchecked, block.seconds_proving, block.axes
    )
    attach(fused, account(work, verify, whole, time.perf_counter() - begun))
    return fused


def _require_state_apart(entries: Mapping[str, Block]) -> None:
    """Refuse entries of which one writes to what another reads.

    Raises:
        CaptureError: naming it. Each would have a tensor of its own.
    """
    for (one, writer), (other, reader) in permutations(entries.items(), 2):
        for path in writer.writes:
            if not reader.reads.isdisjoint(prefixes(path)):
                raise CaptureError(
                    f"{one} writes to {path!r}, which {other} reads: compiled, each would have "
                    "its own"
                )


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


def checked_passes(passes: Any) -> tuple[Pass, ...]:
    """The passes as a tuple.

    Raises:
        PassError: if something is no pass.
    """
    if passes is None:
        return default_passes()
    if isinstance(passes, Rewrite | str):
        name = passes if isinstance(passes, str) else passes.name
        raise PassError(f"passes is a tuple of passes; write passes=({name},)")
    if not isinstance(passes, Iterable):
        raise PassError(f"passes is a tuple of passes, not {type(passes).__name__}")
    chosen = tuple(cast("Iterable[Any]", passes))
    for one in chosen:
        if not callable(one):
            raise PassError(
                f"{one!r} is no pass; use reparam.rewrite, or a function of a GraphModule"
            )
    return chosen


def checked_methods(methods: Any) -> Mapping[str, Any]:
    """The example inputs of further methods by their names; None for those that have none.

    Raises:
        CaptureError: if something is no name.
    """
    if isinstance(methods, str):
        raise CaptureError(f"methods is a tuple of names; write methods=({methods!r},)")
    if not isinstance(methods, Iterable):
        raise CaptureError(f"methods is a tuple of names, not {type(methods).__name__}")
    names = tuple(cast("Iterable[Any]", methods))
    for name in names:
        if not isinstance(name, str):
            raise CaptureError(f"methods is a tuple of names, and {name!r} is none")
    given = isinstance(methods, Mapping)
    return cast("Mapping[str, Any]", methods) if given else dict.fromkeys(names)


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
