"""Check what one pass, or a pipeline, does to one model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from reparam.capture import modules_of
from reparam.compiler import compile as compile_model
from reparam.errors import ReparamError, VerificationError, first_line
from reparam.pipelines import Pass
from reparam.report import Report, report
from reparam.rewrite import Rewrite
from reparam.runs import own_outputs
from reparam.testing.arguments import checked_inputs, checked_model, checked_pass
from reparam.testing.equivalence import described, difference, require_compared
from reparam.testing.failures import CheckFailed, went_wrong
from reparam.testing.sameness import State, same, shared_memory
from reparam.testing.watch import Watch


@dataclass(frozen=True)
class Outcome:
    """What a pass did to a model, all of it right.

    Attributes:
        applied: how many rewrites it made.
        equal: how many of its answers were equal in float64, those counted too that the driver
            then did not make; of a torch.fx pass none, which is compared as a whole.
        proven: how many of these were proven over a finite field as well.
        refused: why the driver did not make others, and how many for each reason.
    """

    applied: int
    equal: int
    proven: int
    refused: Counter[str] = field(default_factory=Counter[str])


def check_model(
    rule: Pass,
    model: nn.Module,
    *inputs: Any,
    given: bool = False,
    prove: bool = True,
) -> Outcome:
    """Hold a pass to all that a pass promises, on one model.

    Each of its rewrites is equal in float64, borders included, and over a finite field; it changes
    neither the model nor the graph; asked twice, it answers the same. The compiled model as a whole
    computes the same in the same dtype and shares no memory with the original; and a second compile
    does nothing more, or a third, where the first wrote one value as several calls.

    Args:
        rule: the pass.
        model: in evaluation mode.
        inputs: one example or several, of other sizes; each a tensor, a tuple of positional or a
            mapping of keyword arguments. The model may refuse all but the first.
        given: whether to compile with the first as an example input.
        prove: whether to prove each rewrite over a finite field too.

    Returns:
        What it did.

    Raises:
        CheckFailed: if anything of this does not hold, the model refuses the first example, or it
            returns no finite number that could be compared.
        PassError: if it is no pass.
        ReparamError: if something given is no model, or no inputs.
    """
    checked_pass(rule)
    checked_model("model", model)
    first = checked_inputs(inputs)[0]
    try:
        own_outputs(model, first)
    except VerificationError as error:
        raise CheckFailed(f"on {described(first)}: {error}") from error
    outcome = outcome_on(rule, model, inputs, given=given, prove=prove)
    require_compared(model, inputs)
    return outcome


def outcome_on(
    rule: Pass, model: nn.Module, examples: Sequence[Any], *, given: bool, prove: bool = True
) -> Outcome:
    """The same, of a pass, a model and examples that are known to be some.

    Raises:
        CheckFailed: if anything of that does not hold.
    """
    example = examples[0] if given else None
    state = State(model)
    watch = Watch(rule, prove=prove) if isinstance(rule, Rewrite) else None
    fused, account = _compiled(watch.rewrite if watch else rule, model, example)
    name = name_of(rule)
    if watch is not None:
        if watch.broken is not None:
            raise watch.broken
        watch.unchanged()
        _require(watch.finding is None, watch.finding or "")
    failed = [r.message for r in account.missed if r.rule == name and went_wrong(r)]
    _require(not failed, f"{name}: {', '.join(failed)}")
    changed = state.changed(model)
    _require(changed is None, f"{name} changes the model it is run on: {changed}")
    applied = len(account.applied)
    if watch is None:  # of a torch.fx pass, whether the graph is another than without it
        applied = int(_code(_compiled(_leave, model, example)[0]) != _code(fused))
    for each in examples if applied else examples[:1]:
        found = difference(model, fused, each)
        _require(found is None, f"{name}, the whole model {found}")
    taken = shared_memory(model, fused, examples[0])  # runs it: whether it does is known by now
    _require(taken is None, f"{name}: {taken}")
    if applied:
        _require_done(rule, fused, example)
    refused = Counter(r.message for r in account.missed if r.rule == name)
    equal, proven = (watch.equal, watch.proven) if watch else (0, 0)
    return Outcome(applied, equal, proven, refused)


def name_of(rule: Pass) -> str:
    """What remarks call a pass."""
    named: Any = rule
    own = named.name if isinstance(rule, Rewrite) else getattr(named, "__name__", None)
    return str(own or type(named).__name__)


def _compiled(rule: Pass, model: nn.Module, example: Any) -> tuple[nn.Module, Report]:
    """Compile with one pass, which nothing checks but we.

    Raises:
        CheckFailed: if that ends in an error.
    """
    try:
        fused = compile_model(model, example, passes=(rule,), verify=False)
    except ReparamError:
        raise
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        finding = f"{name_of(rule)}: the compile fails with {told}"
        raise CheckFailed(finding) from error
    return fused, report(fused)


def _leave(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The torch.fx pass that does nothing."""
    return graph_module


def _code(model: nn.Module) -> tuple[str, list[str]]:
    """What a compiled model does, and what its layers are."""
    layers = [f"{name}: {layer}" for name, layer in modules_of(model) if name]
    return str(getattr(model, "code", "")), layers


def _require_done(rule: Pass, fused: nn.Module, example: Any) -> None:
    """A second compile does nothing more, or a third.

    A second may, of a rewrite, where the first wrote one value as several calls, a padding by a
    constant say, of which one can be folded by itself.

    Raises:
        CheckFailed: if it does.
    """
    again, account = _compiled(rule, fused, example)
    which, name = "second", name_of(rule)
    if isinstance(rule, Rewrite) and account.applied:
        which, fused = "third", again
        again, account = _compiled(rule, fused, example)
    before, first = _code(fused), {k: t.clone() for k, t in fused.state_dict().items()}
    if isinstance(rule, Rewrite):
        more = [str(remark) for remark in account.applied]
        _require(not more, f"{name} is not idempotent: a {which} compile does more, {more[:1]}")
    elif _code(again) != before:
        raise CheckFailed(f"{name} is not idempotent: a second compile changes the graph")
    same_state = same(first, dict(again.state_dict()))
    _require(same_state, f"{name} is not idempotent: a {which} compile changes weights")


def _require(condition: bool, finding: str) -> None:
    if not condition:
        raise CheckFailed(finding)
