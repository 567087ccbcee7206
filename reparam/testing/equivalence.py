"""Assertions about models: compiled and original are the same function."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.compiler import compile as compile_model
from reparam.errors import VerificationError
from reparam.pipelines import Pass
from reparam.report import report
from reparam.runs import float64_outputs, floats, own_outputs, runs_on, tensors
from reparam.testing.arguments import checked_inputs, checked_model, whole
from reparam.testing.failures import CheckFailed
from reparam.testing.sameness import State, shared_memory
from reparam.verify import FLIPPED, Equivalence, verify

DRAWS = 4
"""How often weights and inputs are rounded in other ways, to see how far off a model may be."""

FARTHER = 4.0
"""How many times as far off as the worst of these a compiled model of few numbers may be."""


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
        ReparamError: if something given is no model, or no inputs.
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
            mode = "; the model is in training mode" if model.training else ""
            raise CheckFailed(f"on {described(example)}: {error}{mode}") from error
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
    """In what a compiled model differs from its original beyond all bad luck, if it does.

    Small models return few numbers, among which unlucky roundings do not even out, and a norm of
    numbers that are nearly the same makes much of any; a wrong fold is off by far more. In float64
    there is no luck. Inputs that the model itself refuses are no evidence.
    """
    try:
        found = verify(model, fused, inputs)
    except VerificationError as error:
        return f"on {described(inputs)}: {error}" if runs_on(model, inputs) else None
    if found.equivalent or _unlucky(found, model, inputs):
        return f"on {described(inputs)}: {_flips(found)}" if found.flipped > FLIPPED else None
    return f"on {described(inputs)}: {found}"


def _flips(found: Equivalence) -> str:
    return f"{found.flipped:.0%} of the integers in a result differ"


def _unlucky(found: Equivalence, model: nn.Module, inputs: Any) -> bool:
    """Whether roundings may make such a difference."""
    dtype: torch.dtype = getattr(torch, found.dtype)
    if dtype == torch.float64 or not dtype.is_floating_point:
        return False
    return found.rmse_fused <= FARTHER * _own(model, inputs, dtype)


def _own(model: nn.Module, inputs: Any, dtype: torch.dtype) -> float:
    """The error of the model itself, with weights and inputs that are rounded in other ways.

    That is the largest of several, as a root mean square: a single one may have been lucky.
    """
    generator = torch.Generator().manual_seed(0)

    def rounded(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        share = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (tensor.double() * (1 + torch.finfo(dtype).eps * share)).to(tensor.dtype)

    exact, worst = float64_outputs(model, inputs), 0.0
    for _ in range(DRAWS):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for tensor in (*other.parameters(), *other.buffers()):
                tensor.copy_(rounded(tensor))
        found = floats(own_outputs(other, pytree.tree_map_only(Tensor, rounded, inputs)))
        errors = (a.double() - b for a, b in zip(found, exact, strict=True))
        worst = max(worst, *(float(error.square().mean().sqrt()) for error in errors))
    return worst


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
