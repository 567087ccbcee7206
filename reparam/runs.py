"""Run models on example inputs, without a trace in either: as they are, in float64, on variants."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.devices import CPU, seed
from reparam.errors import VerificationError, first_line
from reparam.known import TORCH
from reparam.state import kept
from reparam.wrappers import duplicate

DRAWS = 4
"""How often weights and inputs are rounded in other ways, to see how far off a model may be."""


@dataclass(frozen=True)
class Run:
    """The floating-point outputs of one run, one after the other.

    Attributes:
        expected: what the original returns.
        found: what should be the same.
        exact: the original's in float64.
        flipped: the share of integers that differ; None if there are none.
        weights: a dtype that weights of `found` were rounded to, if it is known.
    """

    expected: list[Tensor]
    found: list[Tensor]
    exact: list[Tensor]
    flipped: float | None = None
    weights: torch.dtype | None = None


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
    outputs = own_outputs(model, example_inputs)
    _require_known(outputs)
    with torch.no_grad(), _as_it_was(fused):
        returned = _outputs("the compiled model", fused, example_inputs)
        compiled = _clone(returned)
    if _structure(outputs) != _structure(returned):
        raise VerificationError("the compiled model returns another structure of outputs")
    was, now = _shapes(outputs), _shapes(compiled)
    if was != now:
        alike = [shape for shape, _ in now] == [shape for shape, _ in was]
        told = [[dtype if alike else tuple(shape) for shape, dtype in each] for each in (now, was)]
        raise VerificationError(
            f"the compiled model returns other shapes or dtypes: {told[0]} instead of {told[1]}"
        )
    flipped = _flipped(outputs, compiled)
    exact = float64_outputs(model, example_inputs)
    return Run(floats(outputs), floats(compiled), exact, flipped)


def _require_known(output: Any) -> None:
    """Refuse a result in which nothing is known to be a tensor.

    Raises:
        VerificationError: naming the type of what may hold some.
    """
    others = [x for x in _leaves(output) if hasattr(x, "__dict__") and not isinstance(x, Enum)]
    if others and not tensors(output):
        raise VerificationError(
            f"the model returns a {type(others[0]).__name__}, in which no tensor can be found to "
            "compare; return a dict, a tuple or a dataclass, or compile with verify=False"
        )


def _structure(output: Any) -> list[Any]:
    """The nesting of a result, and the types of what is in it."""
    kinds: list[Any] = [
        Tensor if isinstance(leaf, Tensor) else type(leaf) for leaf in _leaves(output)
    ]
    return [pytree.tree_structure(output), kinds]


def _flipped(outputs: Any, compiled: Any) -> float | None:
    """The share of integers and truths that differ, in the tensor in which most do; if any are.

    Raises:
        VerificationError: if numbers or texts that are no tensors differ, sizes say.
    """
    share: float | None = None
    for old, new in zip(_leaves(outputs), _leaves(compiled), strict=True):
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            if not _floating(old):
                apart = float((old != new).double().mean()) if old.numel() else 0.0
                share = max(share or 0.0, apart)
        elif isinstance(old, int | str) and old != new:
            raise VerificationError(f"the compiled model returns {new!r} instead of {old!r}")
    return share


def _floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def own_outputs(model: nn.Module, inputs: Any) -> Any:
    """What a copy of a model returns: a forward may write to its model, and that is the user's.

    Raises:
        VerificationError: if it does not take these inputs.
    """
    return _outputs("the model itself", _copied(model), inputs)


def _copied(model: nn.Module) -> nn.Module:
    """A copy of a model.

    Raises:
        VerificationError: if it can't be copied.
    """
    try:
        return duplicate(model)
    except Exception as error:
        raise VerificationError(
            f"the model can't be copied, to be run beside the result: {first_line(error)}; "
            "compile it without example_inputs, or with verify=False"
        ) from error


def _outputs(name: str, model: nn.Module, example_inputs: Any) -> Any:
    args, kwargs = split_inputs(example_inputs)
    try:
        with torch.no_grad(), _alike():
            return model(*_clone(args), **_clone(kwargs))
    except Exception as error:
        raise VerificationError(
            f"{name} does not run on these inputs: {first_line(error)}"
        ) from error


@contextmanager
def _alike() -> Generator[None]:
    """Let every model draw the same random numbers, and nobody else notice."""
    with TORCH.random.fork_rng(list(range(torch.cuda.device_count()))):
        seed(0)
        yield


def runs_on(model: nn.Module, inputs: Any) -> bool:
    """Whether a model takes inputs; it may reject variants of what it was given."""
    try:
        own_outputs(model, inputs)
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
    wide = _copied(model)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of what integers become
    try:
        with torch.no_grad(), _InFloat64(), _alike():
            for tensor in (*wide.parameters(), *wide.buffers()):
                tensor.data = _widened(tensor)  # complex ones too, which double() leaves
            return floats(wide(*_double(args), **_double(kwargs)))
    except Exception as error:
        raise VerificationError(
            f"the model itself does not run in float64, which results are held against: "
            f"{first_line(error)}; compile it without example_inputs, or with verify=False"
        ) from error
    finally:
        torch.set_default_dtype(before)


def error_of_roundings(model: nn.Module, inputs: Any, dtype: torch.dtype) -> float:
    """The error of a model, with weights and inputs that are rounded in other ways.

    That is the largest of several, as a root mean square: a single one may have been lucky.
    """
    rounded = otherwise_rounded(dtype)
    exact, worst = float64_outputs(model, inputs), 0.0
    for _ in range(DRAWS):
        other = _copied(model)
        with torch.no_grad():
            for tensor in (*other.parameters(), *other.buffers()):
                tensor.copy_(rounded(tensor))
        worst = max(worst, rms_error(floats(own_outputs(other, _map(inputs, rounded))), exact))
    return worst


def otherwise_rounded(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A function that moves each floating-point number by a random part of a dtype's precision."""
    generator = torch.Generator().manual_seed(0)

    def rounded(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        share = torch.rand(tensor.shape, generator=generator, dtype=torch.float64, device=CPU)
        nudge = 1 + torch.finfo(dtype).eps * (share * 2 - 1).to(tensor.device)
        return (tensor.double() * nudge).to(tensor.dtype)

    return rounded


def rms_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest root mean square by which any result is off, where both are finite."""
    errors = ((a.double() - b).abs() for a, b in zip(found, exact, strict=True))
    finite = (error[error.isfinite()] for error in errors)
    return max((float(e.square().mean().sqrt()) for e in finite if e.numel()), default=0.0)


class _InFloat64(TorchDispatchMode):
    """Casts to float64 whatever a forward casts to a floating-point dtype that it names."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if isinstance(options.get("dtype"), torch.dtype) and options["dtype"].is_floating_point:
            options["dtype"] = torch.float64
        return func(*args, **options)


def floats(output: Any) -> list[Tensor]:
    """The floating-point tensors; complex ones as pairs of real numbers."""
    leaves = [leaf for leaf in tensors(output) if _floating(leaf)]
    return [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in leaves]


def _shapes(output: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [(leaf.shape, leaf.dtype) for leaf in tensors(output)]


def tensors(output: Any) -> list[Tensor]:
    """The tensors in a result or among inputs, one after the other."""
    return [leaf for leaf in _leaves(output) if isinstance(leaf, Tensor)]


def _leaves(output: Any) -> list[Any]:
    """What a result holds, one after the other; what a dataclass holds, too."""
    leaves: list[Any] = []
    for leaf in pytree.tree_leaves(output):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            leaves += _leaves([getattr(leaf, each.name) for each in fields(leaf)])
        else:
            leaves.append(leaf)
    return leaves


def _clone(inputs: Any) -> Any:
    return _map(inputs, Tensor.clone)


def _double(inputs: Any) -> Any:
    return _map(inputs, _widened)


def _widened(tensor: Tensor) -> Tensor:
    """A copy, as exact as can be."""
    if not _floating(tensor):
        return tensor.clone()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64, copy=True)


def _map(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map_only(Tensor, function, inputs)
