"""Random inputs of several sizes to run an ONNX file on."""

import itertools
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch

from reparam.devices import CPU
from reparam.export_graph import extra
from reparam.facts import TensorFacts
from reparam.onnx.arrays import to_numpy
from reparam.onnx.translate import Program
from reparam.sizes import Size

SPATIAL = (64, 33, 96, 17, 224, 32, 256)
"""Sizes to try for open axes of images; those that the file itself does not take are left out."""

BATCHES = (2, 1, 3)

ATTEMPTS = 20
"""How many sizes are tried, each for square images and for wide ones."""

LARGEST = 2**24
"""Elements of an input at most."""


def feeds(program: Program) -> Iterator[dict[str, Any]]:
    """Random inputs of several sizes; axes that the file fixes are as it says."""
    held = {tensor.name for tensor in program.file.proto.graph.initializer}
    inputs = [v.name for v in program.file.proto.graph.input if v.name not in held]
    facts = {name: program.told.learned.get(program.makers[name]) for name in inputs}
    if any(each is None for each in facts.values()):
        return
    seed = torch.Generator().manual_seed(0)
    turns = zip(range(ATTEMPTS), itertools.cycle(SPATIAL), itertools.cycle(BATCHES), strict=False)
    for _, size, batch in turns:
        for wide in (0, 1):
            sizes = _shapes(facts, batch, size, wide)
            if all(prod(shape) <= LARGEST for shape in sizes.values()):
                yield {
                    name: _drawn(sizes[name], each.dtype, seed)
                    for name, each in facts.items()
                    if each
                }


def _shapes(
    facts: Mapping[str, TensorFacts | None], batch: int, size: int, wide: int
) -> dict[str, tuple[int, ...]]:
    """Sizes of the inputs; the open axes of an image differ, if it is to be wide.

    Axes that the file gives one name have one size, the batch's only where all of them are first.
    """
    known = {name: each.axes for name, each in facts.items() if each}
    numbers: dict[Size, int] = {}
    for axes in known.values():
        for axis, told in enumerate(axes[1:], 1):
            numbers.setdefault(told, size + (32 * wide if axis == len(axes) - 1 else 0))

    def number(told: Size) -> int:
        return told.factor if told.known else numbers.get(told, batch)

    return {name: tuple(map(number, axes)) for name, axes in known.items()}


def _drawn(shape: tuple[int, ...], dtype: torch.dtype | None, seed: torch.Generator) -> Any:
    if dtype is not None and dtype.is_floating_point:
        return to_numpy(
            torch.randn(shape, generator=seed, dtype=torch.float64, device=CPU).to(dtype)
        )
    return to_numpy(torch.randint(0, 2, shape, generator=seed, device=CPU).to(dtype))


def varied(feed: Mapping[str, Any], shift: int) -> dict[str, Any]:
    """The same numbers at other places, rolled along their last axes, and of the other sign."""
    numpy = extra("numpy")
    return {
        name: numpy.roll(x, shift, -1) * (-1 if shift % 2 else 1) if floating(x) else x
        for name, x in feed.items()
    }


def floating(array: Any) -> bool:
    """Whether it is an array of floating-point numbers."""
    return str(getattr(array, "dtype", "")) in ("bfloat16", "float16", "float32", "float64")
