"""Compare a compiled model with the model that it came from. The one home of every tolerance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import VerificationError
from reparam.runs import Run, error_of_roundings, run, runs_on, varied
from reparam.training import check_layers

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

FLIPPED = 0.01
"""The share of integers that may differ, indices of a maximum say: of equals, roundings decide."""

UNLUCKY = 16.0
"""How many times what is allowed may pass for bad luck, where other inputs have less of it."""

FARTHER = 4.0
"""How many times as far off as either, its weights rounded otherwise, bad luck may be."""

FAR = 0.01
"""The share of its outputs that a float32 model does not lose by rounding (root mean square)."""

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
        excess: the errors of the fused model as a multiple of what is allowed.
        flipped: the share of integers and truths that differ, in the tensor in which most do. It is
            no part of the verdict where there are other results: of equal numbers, roundings decide
            which is the largest.
        compared: whether any output holds a finite number; without one there is nothing to judge.
    """

    rmse_model: float
    rmse_fused: float
    max_model: float
    max_fused: float
    rms: float
    maximum: float
    dtype: str
    equivalent: bool
    excess: float
    flipped: float = 0.0
    compared: bool = True

    def __str__(self) -> str:
        """One line."""
        if self.equivalent and not self.compared:
            return "not told apart: no floating-point output holds a finite number"
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


def verify(model: nn.Module, fused: nn.Module, example_inputs: Any) -> Equivalence:
    """Run both models, and the original in float64, and compare.

    The measure is relative to what the original itself loses by its dtype: root mean square and
    largest error of the fused model may exceed those of the original by a small factor, and by
    half a unit of rounding of the outputs. Where they are a little more than that, both are run on
    variants of the inputs, and the median decides: in a single run few roundings may. If it
    still is, the measure is what both make of weights that are rounded otherwise.

    Args:
        model: the original, in evaluation mode. It is not changed; a copy runs in float64.
        fused: the compiled model.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        TrainingModeError: if the model is in training mode, and has a layer to which it matters.
        VerificationError: if the outputs have different structures, shapes or dtypes, or if one
            of the two does not run on these inputs, or the model not in float64.
    """
    check_layers(model)
    runs = [run(model, fused, example_inputs)]
    first = judged(runs)
    if 1 < first.excess <= UNLUCKY or _otherwise(first):
        variants = (varied(example_inputs, shift) for shift in range(1, VARIANTS))
        runs += [run(model, fused, inputs) for inputs in variants if runs_on(model, inputs)]
    found = judged(runs)
    if all(_otherwise(judged([one])) for one in runs):
        raise VerificationError(
            "in float64, which results are held against, the model itself computes something else: "
            "it may look at its dtype; compile it without example_inputs, or with verify=False"
        )
    if found.dtype in ("float32", "float64") and unlucky(found, model, fused, example_inputs):
        return replace(found, equivalent=True)
    return found


def _otherwise(found: Equivalence) -> bool:
    """Whether the original is far from itself in float64, and the other model is not."""
    narrow = getattr(torch, found.dtype) in (torch.bfloat16, torch.float16)
    far = found.rmse_model > FAR * found.rms and not narrow
    return far and found.rmse_fused < FAR * found.rmse_model


def unlucky(found: Equivalence, model: nn.Module, fused: nn.Module, inputs: Any) -> bool:
    """Whether roundings may make such a difference.

    A folded bias is large where a batch norm's mean is, and sums that start from it are rounded
    more; a small model returns few numbers, among which roundings do not even out; and a norm of
    numbers that are nearly the same makes much of any: of numbers that are the same, they are all
    that is left, in float64 too. A wrong fold is off by far more.
    """
    dtype: torch.dtype = getattr(torch, found.dtype)
    return of_roundings(found, (error_of_roundings(each, inputs, dtype) for each in (model, fused)))


def of_roundings(found: Equivalence, errors: Iterable[float]) -> bool:
    """Whether a difference is no larger than what other roundings of the weights make.

    Args:
        found: the figures.
        errors: of both models with such weights; they are asked for only if it is near.
    """
    most = inf if found.dtype == "float64" else UNLUCKY
    return 1 < found.excess <= most and found.rmse_fused <= FARTHER * max(errors)


def judged(runs: Sequence[Run], *, other_runtime: bool = False) -> Equivalence:
    """The figures of the run in the middle; of the worst, if that is off beyond all bad luck.

    Raises:
        VerificationError: if there is nothing to compare.
    """
    shares = [run.flipped for run in runs if run.flipped is not None]
    if shares and not runs[0].expected:  # integers alone
        return Equivalence(0, 0, 0, 0, 0, 0, "int64", min(shares) <= FLIPPED, 0, min(shares))
    figures = [
        compare_outputs(
            run.expected, run.found, run.exact, run.weights, other_runtime=other_runtime
        )
        for run in runs
    ]
    figures.sort(key=lambda one: one.excess)
    told = figures[-1] if figures[-1].excess > UNLUCKY else figures[len(figures) // 2]
    return replace(told, flipped=min(shares, default=0.0))


def compare_outputs(
    expected: list[Tensor],
    found: list[Tensor],
    exact: list[Tensor],
    weights: torch.dtype | None = None,
    *,
    other_runtime: bool = False,
) -> Equivalence:
    """Judge outputs by those of the original, as `verify` does; the figures are of the worst.

    Args:
        expected: what the original returns, floating-point tensors.
        found: what should be the same.
        exact: the original's in float64.
        weights: a dtype that weights of `found` were rounded to, where that is not the outputs'.
        other_runtime: whether `found` comes from other kernels than `expected`.

    Raises:
        VerificationError: if there is nothing to compare, or nothing to compare with.
    """
    worst: Equivalence | None = None
    for y_model, y_fused, y in zip(expected, found, exact, strict=True):
        if y.shape != y_model.shape:
            raise VerificationError(
                "in float64, which results are held against, the model returns other sizes"
            )
        figures = _figures(y_model, y_fused, y, weights, other_runtime)
        if worst is None or _badness(figures) > _badness(worst):
            worst = figures
    if worst is None:
        raise VerificationError("the model returns no floating-point tensor to compare")
    return worst


def _badness(figures: Equivalence) -> tuple[bool, bool, float]:
    """By what the figures of the worst output are told; those that say nothing come last."""
    return not figures.equivalent, figures.compared, figures.rmse_fused


def _figures(
    y_model: Tensor, y_fused: Tensor, y: Tensor, weights: torch.dtype | None, other_runtime: bool
) -> Equivalence:
    """The figures of one output, over its finite elements; the others must be the same ones."""
    dtype = y_fused.dtype
    unit = max(torch.finfo(each).eps for each in (dtype, weights or dtype)) / 2
    factor = RUNTIME_FACTOR if other_runtime else RMSE_FACTORS[dtype]
    finite = torch.isfinite(y_model) & torch.isfinite(y_fused)
    same = torch.allclose(y_model[~finite], y_fused[~finite], equal_nan=True)
    kept = finite & torch.isfinite(y)
    rmse_model, max_model = _magnitudes((y_model.double() - y)[kept])
    rmse_fused, max_fused = _magnitudes((y_fused.double() - y)[kept])
    rms, maximum = _magnitudes(y[kept])
    allowed = (factor * rmse_model + unit * rms, MAXIMUM_FACTOR * max_model + unit * maximum)
    if dtype == torch.float64 and not other_runtime:
        # A float64 model has no error against itself; one may compute in less and return float64.
        allowed = (
            max(EXACT * rms, factor * rmse_model),
            max(EXACT * maximum, MAXIMUM_FACTOR * max_model),
        )
    excess = max(map(_ratio, (rmse_fused, max_fused), allowed)) if same else inf
    name = str(dtype).removeprefix("torch.")
    return Equivalence(
        rmse_model, rmse_fused, max_model, max_fused, rms, maximum, name, excess <= 1, excess,
        compared=bool(kept.any()),
    )  # fmt: skip


def _ratio(error: float, allowed: float) -> float:
    """The error in units of what is allowed; no error is never too much."""
    return error / allowed if allowed > 0 else inf if error > 0 else 0.0


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
