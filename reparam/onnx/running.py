"""Run a file and what became of it on the same inputs, and compare."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import OnnxError, VerificationError, first_line
from reparam.export_graph import extra
from reparam.onnx.arrays import leaves, to_numpy, to_torch
from reparam.onnx.carried import OnnxOperator
from reparam.onnx.fatal import kills_the_runtime
from reparam.onnx.feeds import feeds, floating, varied
from reparam.onnx.reading import DTYPES, external, message, type_name
from reparam.onnx.translate import Program
from reparam.runs import DRAWS, Run, otherwise_rounded, rms_error
from reparam.verify import VARIANTS, Equivalence, judged, of_roundings

TRIED = 3
"""On how many sizes two files are compared, if the file takes as many."""

NUDGED = (1, 10, 11)
"""What ONNX calls float32, float16 and float64."""

RESIZING = ("Resize", "Upsample")
"""What takes numbers that tell sizes."""

LARGEST_WEIGHT = 2**27
"""Elements of a weight that is computed with in float64: larger ones are left where they lie."""


class _Runner:
    """A file, run by ONNX Runtime or, what that can't load, by ONNX's reference implementation."""

    def __init__(
        self,
        path: Path,
        weights: Mapping[str, Any] = MappingProxyType({}),
        reference: bool = False,
    ) -> None:
        """Load a file; `weights` stand in for those of their names, unless for the reference."""
        runtime = extra("onnxruntime")
        self.path = path
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.load_model_format", "ONNX")  # be it called .ort
        self.weights = [*map(runtime.OrtValue.ortvalue_from_numpy, weights.values())]
        for name, value in zip(weights, self.weights, strict=True):
            options.add_initializer(name, value)
        told = ""
        if not reference:
            try:
                self.session = runtime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
                self.outputs = [output.name for output in self.session.get_outputs()]
                self.reference = False
                return
            except Exception as error:
                told = f"ONNX Runtime: {first_line(error)}; "
        self.reference = True
        try:
            proto = extra("onnx").load(str(path), format="protobuf")
            self.session = extra("onnx.reference").ReferenceEvaluator(proto)
        except Exception as error:
            told += f"ONNX's reference: {first_line(error)}"
            raise OnnxError(f"nothing here runs {path.name}: {told}") from error
        self.outputs = list(self.session.output_names)

    def __call__(self, feed: Mapping[str, Any]) -> list[Any]:
        return list(self.session.run(None, dict(feed)))

    def otherwise(
        self, feed: Mapping[str, Any], rounded: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """The floating-point results of inputs and of the file's own weights, rounded otherwise."""
        given = {name: to_numpy(rounded(to_torch(x))) for name, x in feed.items()}
        if self.reference:
            return _floats(self(given))
        graph = message(self.path).graph
        to_array = extra("onnx.numpy_helper").to_array
        sizing = {name for n in graph.node if n.op_type in RESIZING for name in n.input[1:]}
        held = [t for t in graph.initializer if t.data_type in NUDGED and t.name not in sizing]
        inline = [t for t in held if t.dims and not external(t)]
        weights = {t.name: rounded(to_torch(to_array(t))) for t in inline}
        arrays = {name: to_numpy(weight) for name, weight in weights.items()}
        return _floats(_Runner(self.path, arrays)(given))


def _floats(results: list[Any]) -> list[Tensor]:
    return [to_torch(leaf) for leaf in leaves(results) if floating(leaf)]


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
        before = _Runner(source, reference=kills_the_runtime(program))
    except OnnxError as error:
        return None, (), str(error)
    after = _Runner(result, reference=before.reference)
    if after.reference and not before.reference:
        raise OnnxError("ONNX Runtime loads the file, but not what it was compiled to")
    weights = _rounded_to(result, program)
    runs: list[Run] = []
    fed: list[dict[str, Any]] = []
    reason = "no sizes, or no numbers of such types, were found that the file takes"
    for feed in feeds(program):
        try:
            expected = before(feed)
        except Exception as error:
            reason = first_line(error)
            continue
        runs += _runs(before, after, program, feed, expected, weights)
        fed.append(feed)
        if len(fed) == TRIED:
            break
    if not runs:
        return None, (), f"nothing here runs the file: {reason}"
    figures = judged(runs, other_runtime=True)
    if not figures.equivalent:
        for shift in range(1, VARIANTS):
            other = varied(fed[-1], shift)
            runs += _runs(before, after, program, other, before(other), weights)
        figures = judged(runs, other_runtime=True)
        errors = (
            _error_of_roundings(each, fed[-1], runs[len(fed) - 1]) for each in (before, after)
        )
        figures = replace(figures, equivalent=figures.equivalent or of_roundings(figures, errors))
    figures.raise_if_different()
    shapes = (" and ".join("×".join(map(str, x.shape)) for x in feed.values()) for feed in fed)
    return figures, tuple(dict.fromkeys(shapes)), None


def _runs(
    before: _Runner,
    after: _Runner,
    program: Program,
    feed: Mapping[str, Any],
    expected: list[Any],
    weights: torch.dtype | None,
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
        if [*map(_kind, leaves(old))] != [*map(_kind, leaves(new))]:
            raise VerificationError(f"{name} has another shape or type in the compiled file")
    expected, found = leaves(expected), leaves(found)
    floats = [i for i, y in enumerate(expected) if floating(y)]
    exact = _exact(program, feed)
    plain = [to_torch(expected[i]) for i in floats]
    if exact is not None and (
        len(exact) != len(expected)
        or not all(_near(y, exact[i], weights) for y, i in zip(plain, floats, strict=True))
    ):
        exact = None  # it is another function in float64, and no reference
    if exact is not None:
        wide = [exact[i].double() for i in floats]
    else:  # what it makes of numbers that were rounded otherwise tells how exact it is
        rounded = otherwise_rounded(_coarser(plain, weights))
        wide = [y.double() for y in _otherwise(before, feed, rounded, plain)]
    flips = [
        float((old != new).mean())
        for i, (old, new) in enumerate(zip(expected, found, strict=True))
        if i not in floats and hasattr(old, "mean") and old.size
    ]
    changed = max(flips, default=None)
    return [Run(plain, [to_torch(found[i]) for i in floats], wide, changed, weights)]


def _kind(leaf: Any) -> tuple[Any, Any]:
    return getattr(leaf, "shape", None), getattr(leaf, "dtype", None)


def _coarser(plain: list[Tensor], weights: torch.dtype | None) -> torch.dtype:
    """Of the dtypes of a result and of new weights, the one that rounds more."""
    own = plain[0].dtype if plain else torch.float32
    return max(own, weights or own, key=lambda dtype: torch.finfo(dtype).eps)


def _rounded_to(result: Path, program: Program) -> torch.dtype | None:
    """The dtype, of those that a file's new weights were rounded to, that rounds most.

    A file may take and return float32 and have weights of float16 in between.
    """
    made = message(result).graph.initializer
    new = [DTYPES.get(type_name(tensor)) for tensor in made if tensor.name not in program.makers]
    floats = [dtype for dtype in new if dtype is not None and dtype.is_floating_point]
    return max(floats, key=lambda dtype: torch.finfo(dtype).eps, default=None)


def _error_of_roundings(runner: _Runner, feed: Mapping[str, Any], known: Run) -> float:
    """The error of a file, with weights and inputs that are rounded in other ways."""
    rounded, worst = otherwise_rounded(_coarser(known.expected, known.weights)), 0.0
    for _ in range(DRAWS):
        found = _otherwise(runner, feed, rounded, known.expected)
        worst = max(worst, rms_error(found, known.exact))
    return worst


def _otherwise(
    runner: _Runner,
    feed: Mapping[str, Any],
    rounded: Callable[[Tensor], Tensor],
    plain: list[Tensor],
) -> list[Tensor]:
    """The floating-point results after other roundings, or `plain` ones if it does not run so."""
    try:
        found = runner.otherwise(feed, rounded)
    except Exception:
        return plain
    alike = [y.shape for y in found] == [y.shape for y in plain]
    return found if alike else plain  # a size may hang on a number that was rounded


def _near(plain: Tensor, exact: Tensor, weights: torch.dtype | None) -> bool:
    """Whether a result is what it would be without roundings, or nearly."""
    if plain.shape != exact.shape:
        return False
    apart = plain.double() - exact.double()
    finite = apart.isfinite()
    error, size = (t[finite].square().mean().sqrt() for t in (apart, exact.double()))
    eps = torch.finfo(_coarser([plain], weights)).eps
    return bool(error <= eps**0.5 * size) or not bool(finite.any())


def _exact(program: Program, feed: Mapping[str, Any]) -> list[Tensor] | None:
    """The tensors in the results in float64; None where something is not known to torch."""
    capture = program.capture

    class Exact(fx.Interpreter):
        def fetch_attr(self, target: str) -> Any:
            content = capture.attribute(target)
            return _wide(content) if content.numel() <= LARGEST_WEIGHT else content

        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)  # rows of a large table, say, which was left as it is
            rows = isinstance(n.target, OnnxOperator) and isinstance(result, Tensor)
            return _wide(result) if rows else result

        def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target == "to" and args[1].is_floating_point and args[0].numel() <= LARGEST_WEIGHT:
                return args[0].double()  # a cast rounds nothing here
            return super().call_method(target, args, kwargs)

    names = {maker: name for name, maker in program.makers.items()}
    placeholders = [node for node in capture.graph.nodes if node.op == "placeholder"]
    try:
        given = [_wide(to_torch(feed[names[node]])) for node in placeholders]
        module = fx.GraphModule({}, fx.Graph())
        with torch.no_grad():
            found = leaves(Exact(module, graph=capture.graph).run(*given))
        return found if all(isinstance(y, Tensor) for y in found) else None
    except Exception:
        return None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
