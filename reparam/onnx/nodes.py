"""Write values as ONNX nodes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.algebra import border_bias
from reparam.devices import CPU
from reparam.errors import OnnxError
from reparam.export_graph import extra
from reparam.functions import Sides
from reparam.graph import Call
from reparam.onnx.reading import DTYPES
from reparam.operators import AvgPool, Cat, ConvTranspose, Norm, Pad, Slice
from reparam.values import BatchNorm, Constant, Conv, Layout, Sum

LAST = 2**63 - 1
"""The end of an axis, for `Slice`."""

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}

ONNX_TYPES = {dtype: name for name, dtype in DTYPES.items()}


class Draft:
    """New nodes and initializers of a graph, under names that are free in it.

    Attributes:
        opset: the version of the standard operators.
        convolves: whether the graph had convolutions before.
        nodes: all nodes, in order.
        initializers: the new ones.
    """

    def __init__(self, opset: int, taken: set[str], convolves: bool = True) -> None:
        self.opset = opset
        self.convolves = convolves
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._taken = taken
        self._constants: dict[tuple[Any, ...], str] = {}

    def fresh(self, name: str) -> str:
        """The name, with a number behind it if it is taken."""
        found, number = name, 1
        while found in self._taken:
            found, number = f"{name}_{number}", number + 1
        self._taken.add(found)
        return found

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node of one result, and return the name of that."""
        surgeon = extra("onnx_graphsurgeon")
        output = self.fresh(f"{name}_output")
        node = surgeon.Node(
            op,
            self.fresh(name),
            attributes,
            [surgeon.Variable(each) for each in inputs],
            [surgeon.Variable(output)],
        )
        exporter = extra("onnx_graphsurgeon.exporters.onnx_exporter").OnnxExporter
        self.nodes.append(exporter.export_node(node))
        return output

    def hold(self, name: str, content: Tensor, dtype: torch.dtype | None) -> str:
        """Add an initializer, in the dtype of the graph."""
        tensor = tensor_of(self.fresh(name), content.detach().to(dtype or content.dtype))
        self.initializers.append(tensor)
        return tensor.name

    def integers(self, numbers: Sequence[int], name: str) -> str:
        """An initializer of integers; those that are alike are one."""
        key = tuple(numbers)
        if key not in self._constants:
            self._constants[key] = self.hold(
                name, torch.tensor(key, dtype=torch.int64, device=CPU), None
            )
        return self._constants[key]


def tensor_of(name: str, content: Tensor) -> Any:
    """A `TensorProto` of a tensor."""
    onnx = extra("onnx")
    tensor = onnx.TensorProto()
    tensor.name = name
    tensor.data_type = onnx.TensorProto.DataType.Value(ONNX_TYPES[content.dtype])
    tensor.dims.extend(content.shape)
    tensor.raw_data = content.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return tensor


class _Layer:
    """The nodes of one call."""

    def __init__(self, draft: Draft, call: Call) -> None:
        self.draft = draft
        self.name = call.name
        self.dtype = None if call.shape is None else call.shape.dtype
        self.rank = _rank(call)

    def add(self, op: str, *inputs: str, suffix: str = "", **attributes: Any) -> str:
        return self.draft.add(op, inputs, self.name + suffix, **attributes)

    def hold(self, what: str, content: Tensor) -> str:
        return self.draft.hold(f"{self.name}.{what}", content, self.dtype)

    def conv(self, conv: Conv, x: str, layer: bool) -> str:
        if conv.affine and not layer:
            return self.affine(conv, x)
        bias, sides = conv.bias, conv.padding
        if conv.border is not None:
            # Padded with zeros, after the constant was taken off; the bias makes up for it.
            spread = conv.border.reshape(-1, *(1,) * conv.n)
            x = self.add("Sub", x, self.hold("border", spread), suffix="_border")
            bias = border_bias(conv)
        if conv.n == 0:
            return self.linear(conv, bias, x)
        if conv.padding_mode != "zeros" or conv.cropped:
            x = self.pad(x, sides, conv.padding_mode, None)
            sides = ((0, 0),) * conv.n
        inputs = [x, self.hold("weight", conv.weight)]
        inputs += [] if bias is None else [self.hold("bias", bias)]
        return self.add(
            "Conv", *inputs,
            kernel_shape=list(conv.kernel), strides=list(conv.stride), group=conv.groups,
            dilations=list(conv.dilation), pads=_pads(sides),
        )  # fmt: skip

    def linear(self, conv: Conv, bias: Tensor | None, x: str) -> str:
        if conv.groups != 1:
            raise OnnxError(f"{self.name}: a linear layer of several groups can't be written")
        shift = [] if bias is None else [self.hold("bias", bias)]
        if self.rank == 2:
            weight = self.hold("weight", conv.weight)
            return self.add("Gemm", x, weight, *shift, transB=1)
        product = self.add("MatMul", x, self.hold("weight", conv.weight.t()))
        return product if bias is None else self.add("Add", product, *shift, suffix="_bias")

    def affine(self, conv: Conv, x: str) -> str:
        spread = (-1, *(1,) * conv.n)
        if not bool((conv.weight == 1).all()) or conv.bias is None:
            x = self.add("Mul", x, self.hold("scale", conv.weight.reshape(spread)))
        if conv.bias is not None:
            shift = self.hold("shift", conv.bias.reshape(spread))
            x = self.add("Add", x, shift, suffix="_shift")
        return x

    def sum(self, coefficients: tuple[float, ...], inputs: Sequence[str]) -> str:
        total: str | None = None
        pairs = sorted(zip(coefficients, inputs, strict=True), key=lambda pair: pair[0] == -1)
        for coefficient, x in pairs:
            if total is not None and coefficient == -1:
                total = self.add("Sub", total, x)
                continue
            term = x if coefficient == 1 else self.times(coefficient, x)
            total = term if total is None else self.add("Add", total, term)
        assert total is not None, "a sum has at least one operand"
        return total

    def times(self, factor: float, x: str) -> str:
        held = self.hold("factor", torch.tensor(factor, dtype=torch.float64, device=CPU))
        return self.add("Mul", x, held, suffix="_factor")

    def batch_norm(self, norm: BatchNorm, x: str) -> str:
        gamma = torch.ones_like(norm.mean) if norm.weight is None else norm.weight
        beta = torch.zeros_like(norm.mean) if norm.bias is None else norm.bias
        held = {"weight": gamma, "bias": beta, "mean": norm.mean, "variance": norm.variance}
        inputs = [self.hold(what, content) for what, content in held.items()]
        return self.add("BatchNormalization", x, *inputs, epsilon=float(norm.eps))

    def pad(self, x: str, sides: Sides, mode: str, border: str | None) -> str:
        if self.rank is None:
            raise OnnxError(f"{self.name}: a padding of a tensor of unknown rank can't be written")
        whole = ((0, 0),) * (self.rank - len(sides)) + tuple(sides)
        inputs = [x, self.draft.integers(_pads(whole), f"{self.name}.pads")]
        inputs += [] if border is None else [border]
        if mode == "circular" and self.draft.opset < 19:
            raise OnnxError(f"{self.name}: a circular padding takes opset 19")
        return self.add("Pad", *inputs, suffix="_pad", mode=PAD_MODES[mode])

    def padded(self, value: Pad, x: str) -> str:
        border = value.border
        if border is None or border.numel() == 1:
            constant = None if border is None else self.hold("border", border.reshape(()))
            return self.pad(x, value.padding, value.padding_mode, constant)
        # To take it off before and add it behind would round what is not at the border.
        constant = self.hold("border", border.reshape(-1, *(1,) * value.n))
        sizes = self.add("Shape", x, suffix="_sizes")
        inside = self.add("Expand", constant, sizes, suffix="_inside")
        rim = self.add("Sub", constant, self.pad(inside, value.padding, "zeros", None))
        return self.add("Add", self.pad(x, value.padding, "zeros", None), rim)

    def slice(self, value: Slice, x: str) -> str:
        ends = [-cut if cut else LAST for cut in value.cut]
        given = (value.start, ends, range(-value.n, 0), value.stride)
        names = ("starts", "ends", "axes", "steps")
        inputs = [
            self.draft.integers([*numbers], f"{self.name}.{what}")
            for what, numbers in zip(names, given, strict=True)
        ]
        return self.add("Slice", x, *inputs)

    def pool(self, value: AvgPool, x: str) -> str:
        if value.ceil_mode or value.divisor is not None:
            raise OnnxError(f"{self.name}: an average pooling of this kind can't be written")
        sides = [(side, side) for side in value.padding]
        return self.add(
            "AveragePool", x, kernel_shape=list(value.kernel), strides=list(value.stride),
            pads=_pads(sides), count_include_pad=int(value.count_include_pad),
        )  # fmt: skip

    def transposed(self, value: ConvTranspose, x: str) -> str:
        inputs = [x, self.hold("weight", value.weight)]
        inputs += [] if value.bias is None else [self.hold("bias", value.bias)]
        return self.add(
            "ConvTranspose", *inputs, kernel_shape=list(value.weight.shape[2:]),
            strides=list(value.stride), dilations=list(value.dilation), group=value.groups,
            pads=_pads([(side, side) for side in value.padding]),
            output_padding=list(value.output_padding),
        )  # fmt: skip

    def norm(self, value: Norm, x: str) -> str:
        if value.kind != "layer":
            raise OnnxError(f"{self.name}: a {value.kind} norm can't be written")
        gamma = torch.ones(value.channels, device=CPU) if value.weight is None else value.weight
        inputs = [x, self.hold("weight", gamma)]
        inputs += [] if value.bias is None else [self.hold("bias", value.bias)]
        eps = 1e-5 if value.eps is None else value.eps
        return self.add("LayerNormalization", *inputs, axis=-1, epsilon=float(eps))


def write(draft: Draft, call: Call, inputs: Sequence[str]) -> str:
    """Add the nodes of a call to a draft.

    Args:
        draft: the graph.
        call: what is computed.
        inputs: names of the tensors that it is applied to.

    Returns:
        The name of its result.

    Raises:
        OnnxError: if there are no such operators in ONNX.
    """
    layer, value = _Layer(draft, call), call.value
    match value:
        case Conv():
            convolves = call.traits.convolution and (value.n > 0 or value.groups == 1)
            # ONNX Runtime has no Conv of float64, so a file that it runs may not get its first.
            convolves &= draft.convolves or layer.dtype != torch.float64 or not value.n
            return layer.conv(value, inputs[0], convolves)
        case Sum(coefficients):
            return layer.sum(coefficients, inputs)
        case Cat(n):
            return layer.add("Concat", *inputs, axis=-n - 1)
        case Constant(content) if isinstance(content, Tensor):
            return layer.hold("value", content)
        case BatchNorm():
            return layer.batch_norm(value, inputs[0])
        case Pad():
            return layer.padded(value, inputs[0])
        case Slice():
            return layer.slice(value, inputs[0])
        case AvgPool():
            return layer.pool(value, inputs[0])
        case ConvTranspose():
            return layer.transposed(value, inputs[0])
        case Norm():
            return layer.norm(value, inputs[0])
        case Layout(target) if target is torch.flatten and call.node.args[1:] == (1,):
            return layer.add("Flatten", inputs[0], axis=1)
        case Layout() if sizes := sizes_of(call):
            return layer.add("Reshape", inputs[0], draft.integers(sizes, f"{call.name}.sizes"))
        case _:
            raise OnnxError(f"{call.name}: {value.__name__} can't be written as one of ONNX's")


def sizes_of(call: Call) -> tuple[int, ...]:
    """The sizes in numbers that a tensor is reshaped to; none of anything else."""
    if not isinstance(call.value, Layout) or call.value.target is not torch.reshape:
        return ()
    sizes = call.node.args[1]
    found: tuple[Any, ...] = tuple(sizes) if isinstance(sizes, list | tuple) else ()
    return found if all(type(size) is int and size for size in found) else ()


def _rank(call: Call) -> int | None:
    """The number of axes of a result."""
    return len(call.shape.axes) if call.shape is not None and call.shape.exact else None


def _pads(sides: Sequence[tuple[int, int]]) -> list[int]:
    """Paddings in the order in which ONNX takes them."""
    return [before for before, _ in sides] + [after for _, after in sides]
