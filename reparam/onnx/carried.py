"""Nodes that are carried through as they are."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from reparam.export_graph import extra
from reparam.known import PureFunction
from reparam.onnx.arrays import to_numpy, to_torch
from reparam.onnx.graphs import subgraphs

STANDARD = (None, "", "ai.onnx")
"""The names of ONNX's own domain."""

RANDOM = {
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip
"""Operators that give something else each time."""

EVALUATED = {
    "Add", "And", "Cast", "CastLike", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div",
    "Equal", "Expand", "Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul",
    "Neg", "Not", "Or", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Squeeze",
    "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""What sizes and constants are computed with, and is the same in every version and runtime."""


@dataclass(frozen=True, eq=False)
class OnnxOperator(PureFunction):
    """A node that is carried through: a function of the tensors that it reads.

    Attributes:
        proto: the `NodeProto`.
        reads: names of the tensors that it is applied to, its subgraphs' among them.
        model: the file's, for its versions of operators.
    """

    proto: Any
    reads: tuple[str, ...]
    model: Any = field(repr=False)

    @property
    def __name__(self) -> str:
        """The name of the operator."""
        return str(self.proto.op_type)

    def __call__(self, *inputs: Tensor) -> Any:
        """Apply it, by ONNX's reference implementation.

        Raises:
            ValueError: if it is not known to give the same each time.
        """
        if self.random or any(each.domain not in STANDARD for each in self._within(self.proto)):
            raise ValueError(f"{self.proto.op_type} is unknown, or gives something else each time")
        onnx: Any = extra("onnx")
        names = list(dict.fromkeys(self.reads))
        graph = onnx.helper.make_graph(
            [self.proto],
            "node",
            [onnx.helper.make_empty_tensor_value_info(name) for name in names],
            [onnx.helper.make_empty_tensor_value_info(n) for n in self.proto.output if n],
        )
        model = onnx.helper.make_model(
            graph, opset_imports=self.model.opset_import, functions=self.model.functions
        )
        evaluator = extra("onnx.reference").ReferenceEvaluator(model)
        feed = {name: to_numpy(x) for name, x in zip(self.reads, inputs, strict=True)}
        found = [to_torch(array) for array in evaluator.run(None, feed)]
        return found[0] if len(found) == 1 else tuple(found)

    @property
    def foldable(self) -> bool:
        """Whether it may be computed once for all, of constants."""
        return self.proto.domain in STANDARD and self.proto.op_type in EVALUATED

    @property
    def random(self) -> bool:
        """Whether it may give something else each time."""
        return any(
            each.domain in STANDARD and each.op_type in RANDOM for each in self._within(self.proto)
        )

    def _within(self, node: Any) -> Iterator[Any]:
        """The operators that a node runs: itself, or those of a function; its subgraphs' too."""
        body = next((f for f in self.model.functions if _is(node, f)), None)
        inner = [each for graph in subgraphs(node) for each in graph.node]
        if body is None:
            yield node
        for each in (*inner, *(body.node if body is not None else ())):
            yield from self._within(each)


def _is(node: Any, function: Any) -> bool:
    """Whether a node calls a function of the file."""
    return (node.domain, node.op_type) == (function.domain, function.name)
