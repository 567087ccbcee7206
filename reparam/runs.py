"""Run models on example inputs, without a trace in either: as they are, in float64, on variants."""

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.errors import VerificationError, first_line
from reparam.state import kept


@dataclass(frozen=True)
class Run:
    """The floating-point outputs of one run, one after the other.

    Attributes:
        expected: what the original returns.
        found: what should be the same.
        exact: the original's in float64.
    """

    expected: list[Tensor]
    found: list[Tensor]
    exact: list[Tensor]


def split_inputs(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from a tensor, a tuple or list of them, or a mapping."""
    if isinstance(example_inputs, Mapping):
        return (), dict(cast("Mapping[str, Any]", example_inputs))
    if isinstance(example_inputs, tuple | list):
        return tuple(cast("tuple[Any, ...]", example_inputs)), {}
    return (example_inputs,), {}


def run(model: nn.Module, fused: nn.Module, example_inputs: Any) -> Run:
    """Run both, and the original in float64.

    Raises:
        VerificationError: if one of them does not run, or if shapes or dtypes differ.
    """
    # A forward may write to its model, and the model is the user's.
    outputs = _outputs("the model itself", copy.deepcopy(model), example_inputs)
    with torch.no_grad(), _as_it_was(fused):
        compiled = _clone(_outputs("the compiled model", fused, example_inputs))
    if pytree.tree_structure(outputs) != pytree.tree_structure(compiled):
        raise VerificationError("the compiled model returns another structure of outputs")
    expected, found = _floats(outputs), _floats(compiled)
    if [(t.shape, t.dtype) for t in expected] != [(t.shape, t.dtype) for t in found]:
        raise VerificationError(
            "the compiled model returns other shapes or dtypes: "
            f"{[tuple(t.shape) for t in found]} instead of {[tuple(t.shape) for t in expected]}"
        )
    return Run(expected, found, float64_outputs(model, example_inputs))


def _outputs(name: str, model: nn.Module, example_inputs: Any) -> Any:
    args, kwargs = split_inputs(example_inputs)
    try:
        with torch.no_grad():
            return model(*_clone(args), **_clone(kwargs))
    except Exception as error:
        raise VerificationError(
            f"{name} does not run on these inputs: {first_line(error)}"
        ) from error


def runs_on(model: nn.Module, inputs: Any) -> bool:
    """Whether a model takes inputs; it may reject variants of what it was given."""
    try:
        _outputs("the model itself", copy.deepcopy(model), inputs)
    except VerificationError:
        return False
    return True


def varied(inputs: Any, shift: int) -> Any:
    """Inputs with the same numbers at other places: rolled along their last axes."""
    return _map(inputs, lambda t: t.roll(shift, -1) if t.ndim else t)


@contextmanager
def _as_it_was(fused: nn.Module) -> Generator[None]:
    """Put back what a forward writes to the attributes, parameters and buffers of its modules."""
    held = (*fused.parameters(), *fused.buffers())
    tensors = [(tensor, tensor.detach().clone()) for tensor in held]
    try:
        with kept(fused):
            yield
    finally:
        for tensor, content in tensors:
            tensor.copy_(content)


def float64_outputs(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """The floating-point outputs, one after the other, of a copy of the model in float64."""
    args, kwargs = split_inputs(example_inputs)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of what integers become
    try:
        with torch.no_grad(), _InFloat64():
            return _floats(copy.deepcopy(model).double()(*_double(args), **_double(kwargs)))
    except Exception as error:
        raise VerificationError(
            f"the model itself does not run in float64, which results are held against: "
            f"{first_line(error)}; compile it without example_inputs, or with verify=False"
        ) from error
    finally:
        torch.set_default_dtype(before)


class _InFloat64(TorchDispatchMode):
    """Casts to float64 whatever a forward casts to a floating-point dtype that it names."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if isinstance(options.get("dtype"), torch.dtype) and options["dtype"].is_floating_point:
            options["dtype"] = torch.float64
        return func(*args, **options)


def _floats(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _clone(inputs: Any) -> Any:
    return _map(inputs, Tensor.clone)


def _double(inputs: Any) -> Any:
    return _map(inputs, lambda t: t.double() if t.is_floating_point() else t.clone())


def _map(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map_only(Tensor, function, inputs)
