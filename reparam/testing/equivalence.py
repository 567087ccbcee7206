"""Assertions about models: compiled and original are the same function."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from reparam.compiler import compile as compile_model
from reparam.errors import VerificationError
from reparam.pipelines import Pass
from reparam.report import report
from reparam.runs import own_outputs, runs_on, tensors
from reparam.testing.arguments import checked_inputs, checked_model, whole
from reparam.testing.failures import CheckFailed
from reparam.testing.sameness import State, shared_memory
from reparam.verify import FLIPPED, Equivalence, unlucky, verify


def assert_equivalent(model: nn.Module, fused: nn.Module, *inputs: Any) -> None:
    """Assert that two models compute the same function, as `reparam.verify` judges it.

    Args:
        model: the original, in evaluation mode.
        fused: what should be the same.
        inputs: one example or several, of other sizes say; each a tensor, a tuple of positional
            or a mapping of keyword arguments.

    Raises:
        CheckFailed: if they differ on one of the inputs, or one of them does not run; or if
            nothing was compared, for want of inputs, or of finite numbers in the results.
        ReparamError: if something given is no model, or no inputs, or if the original is in a
            training mode that makes a difference.
    """
    checked_model("model", model)
    checked_model("fused", fused)
    for example in checked_inputs(inputs):
        try:
            found = verify(model, fused, example)
            found.raise_if_different()
            if found.flipped > FLIPPED:
                raise VerificationError(_flips(found))
        except VerificationError as error:
            raise CheckFailed(f"on {described(example)}: {error}") from error
    require_compared(model, inputs)


def require_compared(model: nn.Module, inputs: Sequence[Any]) -> None:
    """See to it that a comparison says something: that the model returns numbers.

    Raises:
        CheckFailed: if it returns no finite number on any of the inputs.
    """
    for example in inputs:
        try:
            returned = tensors(own_outputs(model, example))
        except VerificationError:
            continue  # of other sizes it may refuse some
        if any(bool(y.isfinite().any()) for y in returned):
            return
    raise CheckFailed(
        f"nothing was compared: on {described(inputs[0])}, the model returns no finite number"
    )


def difference(model: nn.Module, fused: nn.Module, inputs: Any) -> str | None:
    """In what a compiled model differs from its original, if it does.

    Inputs that the model itself refuses are no evidence.
    """
    try:
        found = verify(model, fused, inputs)
    except VerificationError as error:
        return f"on {described(inputs)}: {error}" if runs_on(model, inputs) else None
    if found.equivalent or unlucky(found, model, fused, inputs):
        return f"on {described(inputs)}: {_flips(found)}" if found.flipped > FLIPPED else None
    return f"on {described(inputs)}: {found}"


def _flips(found: Equivalence) -> str:
    return f"{found.flipped:.0%} of the integers in a result differ"


def described(inputs: Any) -> str:
    """The sizes of inputs, for a message."""
    return " and ".join(str(tuple(each.shape)) for each in tensors(inputs)) or "no tensors"


def assert_compiles(
    model: nn.Module,
    *inputs: Any,
    passes: Sequence[Pass] | None = None,
    given: bool = True,
    at_least: int = 0,
) -> nn.Module:
    """Compile a model, and assert that the result is the same function and the model as it was.

    Args:
        model: in evaluation mode.
        inputs: one example or several, of other sizes, as for `assert_equivalent`.
        passes: as for `reparam.compile`.
        given: whether to compile with the first as an example input.
        at_least: how many rewrites have to be made.

    Returns:
        The result.

    Raises:
        CheckFailed: if anything of this does not hold, or nothing was compared.
        ReparamError: if the model is none or in training mode, or another argument is not right.
    """
    checked_model("model", model)
    checked_inputs(inputs)
    whole("at_least", at_least, 0)
    state = State(model)
    example = inputs[0] if given else None
    try:
        fused = compile_model(model, example, passes=passes)
    except VerificationError as error:
        raise CheckFailed(str(error)) from error
    assert_equivalent(model, fused, *inputs)
    if (changed := state.changed(model)) is not None:
        raise CheckFailed(f"the compile changes the model that it is given: {changed}")
    if (taken := shared_memory(model, fused, inputs[0])) is not None:
        raise CheckFailed(taken)
    done = report(fused)
    if len(done.applied) < at_least:
        missed = "".join(f"\n  {remark}" for remark in done.missed)
        raise CheckFailed(f"{len(done.applied)} rewrites were made, not {at_least}{missed}")
    return fused
