"""Compare a compiled model with the model that it came from. The one home of every tolerance."""

import copy
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.errors import VerificationError, first_line
from reparam.state import kept

EXACT = 1e-9
"""Largest relative difference of two expressions that are equal, evaluated in float64."""

ROUNDING = 1e-12
"""Largest relative difference of two float64 numbers that are equal but computed in two ways."""

RMSE_FACTORS = {torch.float64: 2.0, torch.float32: 2.0, torch.bfloat16: 1.5, torch.float16: 1.5}
"""By how much the error of the fused model may exceed that of the original, in each dtype."""

MAXIMUM_FACTOR = 4.0
"""The same for the largest single error."""

VARIANTS = 8
"""On how many inputs two models are run, at most, before they are called different."""

RUNTIME_FACTOR = 4.0
"""What RMSE_FACTORS is for another runtime's kernels, which sum in another order: ONNX Runtime's
matrix products of 192 terms are off 1.85 times as far as torch's, whole networks 1.0 to 1.3 times.
"""


@dataclass(frozen=True)
class Equivalence:
    """How far two models are from the original evaluated in float64.

    Attributes:
        rmse_model, rmse_fused: root mean square error of each.
        max_model, max_fused: largest error of each.
        rms, maximum: of the float64 outputs themselves.
        dtype: of the outputs.
        equivalent: whether the fused model is as good a rendering of the float64 function as the
            original is, rounding of its outputs allowed for.
    """

    rmse_model: float
    rmse_fused: float
    max_model: float
    max_fused: float
    rms: float
    maximum: float
    dtype: str
    equivalent: bool

    def __str__(self) -> str:
        """One line."""
        verdict = "equivalent" if self.equivalent else "DIFFERENT"
        return (
            f"{verdict}: error against float64 is {self.rmse_fused:.1e} fused and "
            f"{self.rmse_model:.1e} in the original, outputs are {self.rms:.1e} ({self.dtype}, RMS)"
        )

    def raise_if_different(self) -> None:
        """Raise unless the two are equivalent.

        Raises:
            VerificationError: with the figures.
        """
        if not self.equivalent:
            raise VerificationError(f"the compiled model computes something else; {self}")


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


def verify(model: nn.Module, fused: nn.Module, example_inputs: Any) -> Equivalence:
    """Run both models, and the original in float64, and compare.

    The measure is relative to what the original itself loses by its dtype: root mean square and
    largest error of the fused model may exceed those of the original by a small factor, and by
    half a unit of rounding of the outputs. Where that seems to be so, both are run on variants of
    the inputs, and judged by all together: in one run alone, few roundings may decide.

    Args:
        model: the original, in evaluation mode. It is not changed; a copy runs in float64.
        fused: the compiled model.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        VerificationError: if the outputs have different structures, shapes or dtypes, or if one
            of the two does not run on these inputs, or the model not in float64.
    """
    runs = [_run(model, fused, example_inputs)]
    figures = compare_runs(runs)
    for shift in range(1, VARIANTS) if not figures.equivalent else ():
        try:
            runs.append(_run(model, fused, varied(example_inputs, shift)))
        except VerificationError:
            break  # the model takes no such inputs
        figures = compare_runs(runs)
    return figures


def _run(model: nn.Module, fused: nn.Module, example_inputs: Any) -> Run:
    """Run both, and the original in float64.

    Raises:
        VerificationError: if one of them does not run, or if shapes or dtypes differ.
    """
    # A forward may write to its model, and the model is the user's.
    expected = _outputs("the model itself", copy.deepcopy(model), example_inputs)
    with torch.no_grad(), _as_it_was(fused):
        found = _outputs("the compiled model", fused, example_inputs)
    if [(t.shape, t.dtype) for t in expected] != [(t.shape, t.dtype) for t in found]:
        raise VerificationError(
            "the compiled model returns other shapes or dtypes: "
            f"{[tuple(t.shape) for t in found]} instead of {[tuple(t.shape) for t in expected]}"
        )
    return Run(expected, found, float64_outputs(model, example_inputs))


def _outputs(name: str, model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """The floating-point outputs, one after the other."""
    args, kwargs = split_inputs(example_inputs)
    try:
        with torch.no_grad():
            return _floats(model(*_clone(args), **_clone(kwargs)))
    except Exception as error:
        raise VerificationError(
            f"{name} does not run on these inputs: {first_line(error)}"
        ) from error


def varied(inputs: Any, shift: int) -> Any:
    """Inputs with the same numbers at other places: rolled along their last axes."""
    return _map(inputs, lambda t: t.roll(shift, -1) if t.ndim else t)


@contextmanager
def _as_it_was(fused: nn.Module) -> Generator[None]:
    """Put back what a forward writes to the attributes and buffers of its modules."""
    buffers = [(buffer, buffer.clone()) for buffer in fused.buffers()]
    try:
        with kept(fused):
            yield
    finally:
        for buffer, content in buffers:
            buffer.copy_(content)


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


def compare_runs(runs: Sequence[Run], *, other_runtime: bool = False) -> Equivalence:
    """Judge several runs as one.

    Raises:
        VerificationError: if there is nothing to compare.
    """

    def joined(outputs: Iterable[list[Tensor]]) -> list[Tensor]:
        return [torch.cat([t.flatten() for t in ts]) for ts in zip(*outputs, strict=True)]

    return compare_outputs(
        joined(run.expected for run in runs),
        joined(run.found for run in runs),
        joined(run.exact for run in runs),
        other_runtime=other_runtime,
    )


def compare_outputs(
    expected: list[Tensor], found: list[Tensor], exact: list[Tensor], *, other_runtime: bool = False
) -> Equivalence:
    """Judge outputs by those of the original, as `verify` does; the figures are of the worst.

    Args:
        expected: what the original returns, floating-point tensors.
        found: what should be the same.
        exact: the original's in float64.
        other_runtime: whether `found` comes from other kernels than `expected`.

    Raises:
        VerificationError: if there is nothing to compare.
    """
    worst: Equivalence | None = None
    for y_model, y_fused, y in zip(expected, found, exact, strict=True):
        figures = _figures(y_model, y_fused, y, other_runtime)
        if worst is None or (not figures.equivalent, figures.rmse_fused) > (
            not worst.equivalent,
            worst.rmse_fused,
        ):
            worst = figures
    if worst is None:
        raise VerificationError("the model returns no floating-point tensor to compare")
    return worst


def _figures(y_model: Tensor, y_fused: Tensor, y: Tensor, other_runtime: bool) -> Equivalence:
    """The figures of one output, over its finite elements; the others must be the same ones."""
    dtype = y_fused.dtype
    unit = torch.finfo(dtype).eps / 2
    factor = RUNTIME_FACTOR if other_runtime else RMSE_FACTORS[dtype]
    finite = torch.isfinite(y_model)
    same = torch.equal(finite, torch.isfinite(y_fused))
    kept = finite & torch.isfinite(y_fused) & torch.isfinite(y)
    rmse_model, max_model = _magnitudes((y_model.double() - y)[kept])
    rmse_fused, max_fused = _magnitudes((y_fused.double() - y)[kept])
    rms, maximum = _magnitudes(y[kept])
    equivalent = (
        same
        and rmse_fused <= factor * rmse_model + unit * rms
        and max_fused <= MAXIMUM_FACTOR * max_model + unit * maximum
    )
    if dtype == torch.float64 and not other_runtime:
        # A float64 model has no error against itself; one may compute in less and return float64.
        equivalent = (
            same
            and rmse_fused <= max(EXACT * rms, factor * rmse_model)
            and max_fused <= max(EXACT * maximum, MAXIMUM_FACTOR * max_model)
        )
    name = str(dtype).removeprefix("torch.")
    return Equivalence(rmse_model, rmse_fused, max_model, max_fused, rms, maximum, name, equivalent)


def _magnitudes(values: Tensor) -> tuple[float, float]:
    """Root mean square and largest magnitude."""
    if values.numel() == 0:
        return 0.0, 0.0
    return float(values.square().mean().sqrt()), float(values.abs().max())


def relative_difference(old: Tensor, new: Tensor) -> float:
    """The largest difference of two float64 results, relative to the largest magnitude."""
    if old.shape != new.shape:
        return float("inf")
    if old.numel() == 0:
        return 0.0
    difference = float((old - new).detach().abs().max())
    scale = float(old.detach().abs().max())
    return difference / scale if scale > 0 else difference


def _floats(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _clone(inputs: Any) -> Any:
    return _map(inputs, Tensor.clone)


def _double(inputs: Any) -> Any:
    return _map(inputs, lambda t: t.double() if t.is_floating_point() else t.clone())


def _map(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map_only(Tensor, function, inputs)
