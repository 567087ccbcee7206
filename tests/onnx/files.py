"""Small ONNX files, compiled and run beside what became of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
from onnx import helper, numpy_helper

import passes
from reparam import OnnxCompilation, compile_onnx

OPSET = 17
Array = np.ndarray[Any, Any]
Sizes = Sequence[int | str | None]
IMAGE: Sizes = ("n", 4, "h", "w")


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype(dtype)


def statistics(channels: int, dtype: Any = np.float32) -> dict[str, Array]:
    """The four tensors of a batch norm, none of which hides a mistake."""
    rng = np.random.default_rng(channels)
    return {
        "gamma": rng.normal(size=channels).astype(dtype),
        "beta": rng.normal(size=channels).astype(dtype),
        "mean": rng.normal(size=channels).astype(dtype),
        "variance": (rng.random(channels) + 0.5).astype(dtype),
    }


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are apart by blanks, and `-` is an input that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"{op}_{outputs}", **attributes)


def batch_norm(x: str, y: str) -> onnx.NodeProto:
    return node("BatchNormalization", f"{x} gamma beta mean variance", y)


def value(name: str, sizes: Sizes, kind: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, sizes)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Array],
    inputs: Mapping[str, Sizes] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = OPSET,
    kind: int = onnx.TensorProto.FLOAT,
    **more: Any,
) -> onnx.ModelProto:
    """A model whose outputs have whatever shape follows."""
    given = {"x": IMAGE} if inputs is None else inputs
    graph = helper.make_graph(
        nodes,
        "graph",
        [value(name, sizes, kind) for name, sizes in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = more.pop("opset_imports", [helper.make_opsetid("", opset)])
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)
    shaped = onnx.shape_inference.infer_shapes(made)
    known = {v.name: v for v in (*shaped.graph.value_info, *shaped.graph.output)}
    for output in made.graph.output:
        told = known[output.name].type
        complete = told.HasField("tensor_type") and told.tensor_type.HasField("shape")
        output.type.CopyFrom(told if complete else value(output.name, [None] * 4, kind).type)
    return made


def session(path: Path) -> Any:
    """What runs a file; ONNX's reference where ONNX Runtime does not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:
        return onnx.reference.ReferenceEvaluator(str(path))


class Result:
    """A compiled file beside the one that it was made from."""

    def __init__(self, folder: Path, proto: onnx.ModelProto, chosen: Any = passes.DEFAULT) -> None:
        self.source, self.target = folder / "source.onnx", folder / "fused.onnx"
        onnx.save(proto, self.source)
        self.before = proto
        self.made: OnnxCompilation = compile_onnx(self.source, self.target, passes=chosen)
        self.after = onnx.load(self.target)

    @property
    def operators(self) -> dict[str, int]:
        return dict(Counter(each.op_type for each in self.after.graph.node))

    def same(self, tolerance: float = 1e-5, **feed: Array) -> list[Array]:
        """Both give the same for these inputs; the results are those of the compiled file."""
        old, new = (session(path).run(None, feed) for path in (self.source, self.target))
        for expected, found in zip(old, new, strict=True):
            assert expected.dtype == found.dtype
            assert expected.shape == found.shape
            size = max(float(np.abs(expected.astype(np.float64)).max(initial=0)), 1e-3)
            error = np.abs(expected.astype(np.float64) - found.astype(np.float64))
            assert float(error.max(initial=0)) <= tolerance * size
        return new
