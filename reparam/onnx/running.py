"""Run a file and what became of it on the same inputs, and compare."""

import itertools
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import OnnxError, VerificationError, first_line
from reparam.export_graph import extra
from reparam.facts import TensorFacts
from reparam.onnx.arrays import to_numpy, to_torch
from reparam.onnx.carried import OnnxOperator
from reparam.onnx.translate import Program
from reparam.runs import Run
from reparam.sizes import Size
from reparam.verify import VARIANTS, Equivalence, judged

SPATIAL = (64, 33, 96, 17, 224, 32, 256)
"""Sizes to try for open axes of images; those that the file itself does not take are left out."""

BATCHES = (2, 1, 3)
TRIED = 3
"""On how many sizes two files are compared, if the file takes as many."""

ATTEMPTS = 40
"""How many sizes are tried until the file takes some."""

LARGEST = 2**24
"""Elements of an input at most."""


class _Runner:
    """A file, run by ONNX Runtime or, what that can't load, by ONNX's reference implementation."""

    def __init__(self, path: Path) -> None:
        runtime = extra("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.reference = False
        try:
            self.session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            self.outputs = [output.name for output in self.session.get_outputs()]
        except Exception as error:
            self.reference = True
            try:
                self.session = extra("onnx.reference").ReferenceEvaluator(str(path))
            except Exception as other:
                told = f"ONNX Runtime: {first_line(error)}; ONNX's reference: {first_line(other)}"
                raise OnnxError(f"nothing here runs {path.name}: {told}") from other
            self.outputs = list(self.session.output_names)

    def __call__(self, feed: Mapping[str, Any]) -> list[Any]:
        return list(self.session.run(None, dict(feed)))


def compared(
    source: Path, result: Path, program: Program
) -> tuple[Equivalence | None, tuple[str, ...], str | None]:
    """Run two files on random inputs of several sizes.

    Args:
        source: the file that was compiled.
        result: the new one.
        program: the translation of the first, which is run in float64.

    Returns:
        The worst figures, and the shapes that they were run on; and why, if nothing was run.

    Raises:
        OnnxError: if the new file is not valid, or does not run where the old one does.
        VerificationError: if it computes something else.
    """
    try:
        extra("onnx").checker.check_model(str(result))
    except Exception as error:
        raise OnnxError(f"onnx.checker refuses the compiled file: {first_line(error)}") from error
    calls = [node.target for node in program.capture.graph.nodes]
    if any(isinstance(call, OnnxOperator) and call.random for call in calls):
        return None, (), "its results are random"
    try:
        before = _Runner(source)
    except OnnxError as error:
        return None, (), str(error)
    after = _Runner(result)
    if after.reference and not before.reference:
        raise OnnxError("ONNX Runtime loads the file, but not what it was compiled to")
    runs: list[Run] = []
    fed: list[dict[str, Any]] = []
    reason = "no sizes were found that the file takes"
    for feed in itertools.islice(_feeds(program), ATTEMPTS):
        try:
            expected = before(feed)
        except Exception as error:
            reason = first_line(error)
            continue
        runs += _runs(before, after, program, feed, expected)
        fed.append(feed)
        if len(fed) == TRIED:
            break
    if not runs:
        return None, (), f"nothing here runs the file: {reason}"
    figures = judged(runs, other_runtime=True)
    if not figures.equivalent:
        for shift in range(1, VARIANTS):
            other = _varied(fed[-1], shift)
            runs += _runs(before, after, program, other, before(other))
        figures = judged(runs, other_runtime=True)
    figures.raise_if_different()
    shapes = (" and ".join("×".join(map(str, x.shape)) for x in feed.values()) for feed in fed)
    return figures, tuple(dict.fromkeys(shapes)), None


def _runs(
    before: _Runner, after: _Runner, program: Program, feed: Mapping[str, Any], expected: list[Any]
) -> list[Run]:
    """One run of both, and of the first in float64.

    Raises:
        OnnxError: if the second does not run.
        VerificationError: if a result is of another shape or type.
    """
    try:
        found = after(feed)
    except Exception as error:
        raise OnnxError(f"the compiled file does not run: {first_line(error)}") from error
    for name, old, new in zip(before.outputs, expected, found, strict=True):
        if getattr(old, "shape", None) != getattr(new, "shape", None) or (
            getattr(old, "dtype", None) != getattr(new, "dtype", None)
        ):
            raise VerificationError(f"{name} has another shape or type in the compiled file")
    floats = [i for i, y in enumerate(expected) if _floating(y)]
    exact = _exact(program, feed)
    plain = [to_torch(expected[i]) for i in floats]
    if exact is not None and not all(map(_near, plain, (exact[i] for i in floats))):
        exact = None  # it is another function in float64, and no reference
    if exact is None:  # what it makes of inputs that were rounded otherwise tells how exact it is
        exact = [to_torch(array) for array in before(_nudged(feed))]
    wide = [exact[i].double() for i in floats]
    flips = [
        float((old != new).mean())
        for i, (old, new) in enumerate(zip(expected, found, strict=True))
        if i not in floats and hasattr(old, "mean") and old.size
    ]
    return [Run(plain, [to_torch(found[i]) for i in floats], wide, max(flips, default=None))]


def _near(plain: Tensor, exact: Tensor) -> bool:
    """Whether a result is what it would be without roundings, or nearly."""
    if plain.shape != exact.shape:
        return False
    apart = plain.double() - exact.double()
    finite = apart.isfinite()
    error, size = (t[finite].square().mean().sqrt() for t in (apart, exact.double()))
    return bool(error <= torch.finfo(plain.dtype).eps ** 0.5 * size) or not bool(finite.any())


def _floating(array: Any) -> bool:
    return str(getattr(array, "dtype", "")) in ("bfloat16", "float16", "float32", "float64")


def _exact(program: Program, feed: Mapping[str, Any]) -> list[Tensor] | None:
    """The file's results in float64; None where something in it is not known to torch."""
    capture = program.capture

    class Exact(fx.Interpreter):
        def fetch_attr(self, target: str) -> Any:
            return _wide(capture.attribute(target))

    names = {maker: name for name, maker in program.makers.items()}
    placeholders = [node for node in capture.graph.nodes if node.op == "placeholder"]
    try:
        given = [_wide(to_torch(feed[names[node]])) for node in placeholders]
        module = fx.GraphModule({}, fx.Graph())
        with torch.no_grad():
            return list(Exact(module, graph=capture.graph).run(*given))
    except Exception:
        return None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _feeds(program: Program) -> Iterator[dict[str, Any]]:
    """Random inputs of several sizes; axes that the file fixes are as it says."""
    held = {tensor.name for tensor in program.file.proto.graph.initializer}
    inputs = [v.name for v in program.file.proto.graph.input if v.name not in held]
    facts = {name: program.told.learned.get(program.makers[name]) for name in inputs}
    if any(each is None for each in facts.values()):
        return
    seed = torch.Generator().manual_seed(0)
    for size, batch in zip(itertools.cycle(SPATIAL), itertools.cycle(BATCHES), strict=False):
        for wide in (0, 1):
            sizes = {name: _shape(each, batch, size, wide) for name, each in facts.items() if each}
            if all(prod(shape) <= LARGEST for shape in sizes.values()):
                yield {
                    name: _drawn(sizes[name], each.dtype, seed)
                    for name, each in facts.items()
                    if each
                }


def _shape(facts: TensorFacts, batch: int, size: int, wide: int) -> tuple[int, ...]:
    """Sizes of an input; the open axes of an image differ, if it is to be wide."""

    def number(axis: int, told: Size) -> int:
        if told.known:
            return told.factor
        return batch if axis == 0 else size + (32 * wide if axis == len(facts.axes) - 1 else 0)

    return tuple(number(axis, told) for axis, told in enumerate(facts.axes))


def _drawn(shape: tuple[int, ...], dtype: torch.dtype | None, seed: torch.Generator) -> Any:
    if dtype is not None and dtype.is_floating_point:
        return to_numpy(torch.randn(shape, generator=seed, dtype=torch.float64).to(dtype))
    return to_numpy(torch.randint(0, 2, shape, generator=seed).to(dtype))


def _nudged(feed: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of which every number is another one, as near as can be."""
    numpy = extra("numpy")
    return {
        name: numpy.nextafter(x, numpy.asarray(numpy.inf, x.dtype)) if _floating(x) else x
        for name, x in feed.items()
    }


def _varied(feed: Mapping[str, Any], shift: int) -> dict[str, Any]:
    numpy = extra("numpy")
    return {
        name: numpy.roll(x, shift, -1) * (-1 if shift % 2 else 1) if _floating(x) else x
        for name, x in feed.items()
    }
