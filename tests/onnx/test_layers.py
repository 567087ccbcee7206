"""Layers of a file, with every attribute that changes what they compute."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from reparam import OnnxError
from tests.onnx.files import IMAGE, Array, Result, batch_norm, draw, model, node, statistics

X = draw(2, 4, 9, 8)
TOKENS = ("n", 4)
CONV: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_norm_behind_a_convolution(
    tmp_path: Path, kernel: int, groups: int, bias: bool, dtype: Any
) -> None:
    weights = {"w": draw(8, 4 // groups, kernel, kernel, dtype=dtype), **statistics(8, dtype)}
    weights |= {"b": draw(8, dtype=dtype)} if bias else {}
    conv = node("Conv", "x w b" if bias else "x w", "c", group=groups, strides=[2, 1])
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    made = Result(tmp_path, model([conv, batch_norm("c", "y")], weights, kind=kind))
    assert made.operators == {"Conv": 1}
    made.same(x=X.astype(dtype))


def test_parallel_branches_and_an_identity(tmp_path: Path) -> None:
    weights = {"w": draw(4, 4, 3, 3), "v": draw(4, 4, 1, 1), **statistics(4)}
    nodes = [
        node("Conv", "x w", "a", **CONV),
        node("Conv", "x v", "b"),
        batch_norm("a", "c"),
        batch_norm("x", "d"),
        node("Add", "c b", "e"),
        node("Add", "e d", "f"),
        node("Relu", "f", "y"),
    ]
    made = Result(tmp_path, model(nodes, weights))
    assert made.operators == {"Conv": 1, "Relu": 1}
    made.same(x=X)
    assert made.made.report.applied
    assert str(made.made.report)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 2.0, 0.0])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (1,), (), None])
def test_gemm(
    tmp_path: Path, alpha: float, beta: float, transposed: int, shape: tuple[int, ...] | None
) -> None:
    weights = {"w": draw(6, 4) if transposed else draw(4, 6), **statistics(6)}
    weights |= {} if shape is None else {"b": np.asarray(draw(*shape, seed=1), np.float32)}
    given = "x w" if shape is None else "x w b"
    gemm = node("Gemm", given, "c", alpha=alpha, beta=beta, transB=transposed)
    made = Result(tmp_path, model([gemm, batch_norm("c", "y")], weights, {"x": TOKENS}))
    assert made.operators == {"Gemm": 1}
    made.same(x=draw(5, 4))


@pytest.mark.parametrize("shape", [(5, 6), (5, 1)])
def test_gemm_with_a_bias_for_each_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = {"w": draw(4, 6), "b": draw(*shape), **statistics(6)}
    nodes = [node("Gemm", "x w b", "c"), batch_norm("c", "y")]
    made = Result(tmp_path, model(nodes, weights, {"x": (5, 4)}))
    made.same(x=draw(5, 4))


def test_gemm_of_a_transposed_input_stays(tmp_path: Path) -> None:
    weights = {"w": draw(4, 6), **statistics(6)}
    nodes = [node("Gemm", "x w", "c", transA=1), batch_norm("c", "y")]
    made = Result(tmp_path, model(nodes, weights, {"x": (4, "n")}))
    assert made.operators["Gemm"] == 1
    made.same(x=draw(4, 5))


def test_product_with_a_constant_behind_a_norm(tmp_path: Path) -> None:
    weights = {"w": draw(4, 6), "g": draw(4, seed=1), "s": draw(4, seed=2), "b": draw(6)}
    nodes = [
        node("LayerNormalization", "x g s", "c", axis=-1, epsilon=1e-3),
        node("MatMul", "c w", "d"),
        node("Add", "d b", "y"),
    ]
    made = Result(tmp_path, model(nodes, weights, {"x": ("n", "t", 4)}))
    made.same(x=draw(2, 5, 4))
    assert made.operators["MatMul"] == 1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_transposed_convolution(tmp_path: Path, groups: int, more: int, bias: bool) -> None:
    weights = {"w": draw(4, 6 // groups, 3, 3), **statistics(6), **({"b": draw(6)} if bias else {})}
    conv = node(
        "ConvTranspose", "x w b" if bias else "x w", "c", group=groups, strides=[2, 2],
        pads=[1, 1, 1, 1], output_padding=[more, more],
    )  # fmt: skip
    made = Result(tmp_path, model([conv, batch_norm("c", "y")], weights))
    assert made.operators == {"ConvTranspose": 1}
    made.same(x=X)


@pytest.mark.parametrize("pads", [[1, 1, 0, 0], [2, 1, 1, 1], [0, 0, 1, 1], [0, 1, 2, 0]])
@pytest.mark.parametrize("more", [0, 1])
def test_transposed_convolution_with_unequal_pads(
    tmp_path: Path, pads: list[int], more: int
) -> None:
    """Torch pads both sides alike: what is cut off less at the end is padding of the output."""
    weights = {"w": draw(4, 6, 3, 3), **statistics(6), "b": draw(6)}
    conv = node(
        "ConvTranspose", "x w b", "c", strides=[2, 3], pads=pads, output_padding=[more, more]
    )
    made = Result(tmp_path, model([conv, batch_norm("c", "y")], weights))
    made.same(x=X)
    if all(0 <= more + pads[i] - pads[i + 2] <= 1 + i for i in (0, 1)):
        assert made.operators == {"ConvTranspose": 1}
    else:
        assert made.operators == {"ConvTranspose": 1, "BatchNormalization": 1}
        assert "BatchNormalization_y" in str(made.made.report)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_automatic_padding(tmp_path: Path, auto_pad: str, stride: int) -> None:
    weights = {"w": draw(8, 4, 3, 3), **statistics(8)}
    conv = node("Conv", "x w", "c", auto_pad=auto_pad, strides=[stride, stride])
    made = Result(tmp_path, model([conv, batch_norm("c", "y")], weights))
    made.same(x=X)
    made.same(x=draw(1, 4, 6, 7))


def test_padding_of_one_side(tmp_path: Path) -> None:
    weights = {"w": draw(8, 4, 3, 3), "v": draw(8, 8, 1, 1), **statistics(8)}
    conv = node("Conv", "x w", "c", pads=[0, 1, 2, 1])
    made = Result(tmp_path, model([conv, batch_norm("c", "d"), node("Conv", "d v", "y")], weights))
    assert made.operators["Conv"] == 1
    made.same(x=X)


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_average_pooling(tmp_path: Path, counted: int, ceil_mode: int) -> None:
    weights = {"w": draw(8, 4, 1, 1), **statistics(8)}
    pool = node(
        "AveragePool", "c", "d", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2],
        count_include_pad=counted, ceil_mode=ceil_mode,
    )  # fmt: skip
    made = Result(tmp_path, model([node("Conv", "x w", "c"), pool, batch_norm("d", "y")], weights))
    made.same(x=X)
    made.same(x=draw(1, 4, 8, 6))


def test_an_output_that_a_batch_norm_makes(tmp_path: Path) -> None:
    """It keeps its name; what it is made of is an output as well, and stays."""
    weights = {"w": draw(8, 4, 3, 3), **statistics(8)}
    nodes = [node("Conv", "x w", "c", **CONV), batch_norm("c", "y"), node("Relu", "y", "z")]
    made = Result(tmp_path, model(nodes, weights, outputs=("y", "z")))
    assert made.operators == {"Conv": 1, "Relu": 1}
    assert [output.name for output in made.after.graph.output] == ["y", "z"]
    made.same(x=X)
    both = Result(tmp_path, model(nodes, weights, outputs=("y", "z", "c")))
    both.same(x=X)


def test_a_batch_norm_in_training_mode_stays(tmp_path: Path) -> None:
    weights = {"w": draw(8, 4, 3, 3), **statistics(8)}
    norm = node("BatchNormalization", "c gamma beta mean variance", "y m v", training_mode=1)
    made = Result(tmp_path, model([node("Conv", "x w", "c", **CONV), norm], weights))
    assert made.operators == {"Conv": 1, "BatchNormalization": 1}


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 8, 1, 1), (8, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("behind", [False, True])
def test_arithmetic_with_a_constant(
    tmp_path: Path, op: str, shape: tuple[int, ...], behind: bool
) -> None:
    weights = {"w": draw(8, 4, 3, 3), "k": np.asarray(draw(*shape, seed=3), np.float32)}
    nodes = [node("Conv", "x w", "c", **CONV), node(op, "c k" if behind else "k c", "y")]
    made = Result(tmp_path, model(nodes, weights))
    if op != "Div" or behind:
        assert made.operators == {"Conv": 1}
    made.same(1e-4, x=X)


def test_what_a_dropout_and_an_identity_return(tmp_path: Path) -> None:
    weights: dict[str, Array] = {"w": draw(8, 4, 3, 3), "r": np.array(0.5, np.float32)}
    weights |= {"t": np.array(False), **statistics(8)}
    nodes = [
        node("Conv", "x w", "a", **CONV),
        node("Identity", "a", "b"),
        node("Dropout", "b r t", "c"),
        batch_norm("c", "y"),
    ]
    made = Result(tmp_path, model(nodes, weights))
    assert made.operators == {"Conv": 1}
    made.same(x=X)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pads(tmp_path: Path, mode: str) -> None:
    weights = {"w": draw(8, 4, 3, 3), **statistics(8)}
    weights["p"] = np.array([0, 0, 1, 1, 0, 0, 1, 2], np.int64)
    nodes = [
        node("Pad", "x p", "a", mode=mode), node("Conv", "a w", "b"), batch_norm("b", "y"),
    ]  # fmt: skip
    made = Result(tmp_path, model(nodes, weights))
    assert made.operators.get("BatchNormalization") is None
    made.same(x=X)


@pytest.mark.parametrize("half", [0.5, 2.0])
def test_a_gelu_that_is_written_as_five_nodes(tmp_path: Path, half: float) -> None:
    """Runtimes know all five together, so the last is not folded into the next layer."""
    numbers = {"r": np.sqrt(np.float32(2)), "o": np.float32(1), "h": np.float32(half)}
    nodes = [
        node("Conv", "x w", "c", **CONV),
        batch_norm("c", "b"),
        node("Div", "b r", "d"),
        node("Erf", "d", "e"),
        node("Add", "e o", "f"),
        node("Mul", "b f", "g"),
        node("Mul", "g h", "i"),
        node("Conv", "i v", "y"),
    ]
    weights = {"w": draw(8, 4, 3, 3), "v": draw(4, 8, 1, 1), **statistics(8)}
    made = Result(tmp_path, model(nodes, weights | {k: np.array(v) for k, v in numbers.items()}))
    assert made.operators == {
        "Conv": 2,
        "Div": 1,
        "Erf": 1,
        "Add": 1,
        "Mul": 2 if half == 0.5 else 1,
    }
    made.same(x=X)


def test_a_scale_per_channel_behind_a_concatenation(tmp_path: Path) -> None:
    weights = {"w": draw(8, 4, 1, 1), "v": draw(4, 4, 1, 1), **statistics(12)}
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "x v", "b"),
        node("Concat", "a b", "c", axis=1),
        batch_norm("c", "y"),
    ]
    made = Result(tmp_path, model(nodes, weights))
    assert made.operators == {"Conv": 1}
    made.same(x=X)


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 17, 18, 21, 23])
def test_opsets(tmp_path: Path, opset: int) -> None:
    """Sizes, splits and reductions are attributes in some, and inputs in others."""
    weights = {"w": draw(8, 4, 3, 3), **statistics(8)}
    split = {} if opset >= 13 else {"split": [4, 4]}
    weights |= {"s": np.array([4, 4], np.int64)} if opset >= 13 else {}
    mean: dict[str, Any] = {} if opset >= 18 else {"axes": [2, 3]}
    weights |= {"a": np.array([2, 3], np.int64)} if opset >= 18 else {}
    nodes = [
        node("Conv", "x w", "b", **CONV),
        batch_norm("b", "c"),
        node("Split", "c s" if opset >= 13 else "c", "d e", axis=1, **split),
        node("Mul", "d e", "f"),
        node("ReduceMean", "f a" if opset >= 18 else "f", "y", **mean),
    ]
    made = Result(tmp_path, model(nodes, weights, opset=opset))
    assert made.operators == {"Conv": 1, "Split": 1, "Mul": 1, "ReduceMean": 1}
    assert made.made.opset == opset
    made.same(x=X)


@pytest.mark.parametrize("opset", [7, 10, 99])
def test_other_opsets_are_refused(tmp_path: Path, opset: int) -> None:
    weights = {"w": draw(8, 4, 3, 3)}
    made = model([node("Conv", "x w", "y")], weights)
    made.opset_import[0].version = opset
    with pytest.raises(OnnxError, match="version"):
        Result(tmp_path, made)
    assert not (tmp_path / "fused.onnx").exists()


def test_sizes_that_are_read_are_no_obstacle(tmp_path: Path) -> None:
    """A shape of a tensor between a layer and its batch norm is that of the folded layer too."""
    weights = {"w": draw(8, 4, 3, 3), **statistics(8), "one": np.array([1], np.int64)}
    nodes = [
        node("Conv", "x w", "a", **CONV),
        batch_norm("a", "b"),
        node("Shape", "a", "s"),
        node("Expand", "b s", "y"),
    ]
    made = Result(tmp_path, model(nodes, weights))
    assert "BatchNormalization" not in made.operators
    made.same(x=X)


def test_what_is_fixed_by_the_file(tmp_path: Path) -> None:
    weights = {"w": draw(8, 4, 3, 3), **statistics(8)}
    nodes = [node("Conv", "x w", "a", **CONV), batch_norm("a", "y")]
    made = Result(tmp_path, model(nodes, weights, {"x": (1, 4, 8, 8)}))
    assert made.made.checked == ("1×4×8×8",)
    assert made.made.equivalence is not None
    assert made.made.equivalence.equivalent


def test_a_batch_norm_that_older_files_tell_to_train(tmp_path: Path) -> None:
    """Before version 14 it trains if it has five results, be they read or not."""
    weights = {"w": draw(4, 4, 3, 3), **statistics(4)}
    norm = node("BatchNormalization", "c gamma beta mean variance", "y m v sm sv")
    made = Result(tmp_path, model([node("Conv", "x w", "c", **CONV), norm], weights, opset=11))
    assert made.operators == {"Conv": 1, "BatchNormalization": 1}


def test_bounds_that_stand_for_the_ends(tmp_path: Path) -> None:
    weights = {"w": draw(4, 4, 3, 3), **statistics(4), "a": np.array([3])}
    weights |= {"s": np.array([-(2**63)]), "e": np.array([2**63 - 1])}
    nodes = [node("Slice", "x s e a", "d"), node("Conv", "d w", "c"), batch_norm("c", "y")]
    made = Result(tmp_path, model(nodes, weights))
    assert made.operators.get("BatchNormalization") is None
    made.same(x=X)


def test_pieces_of_nothing(tmp_path: Path) -> None:
    weights = {"w": draw(4, 4, 3, 3), **statistics(4)}
    nodes = [
        node("Conv", "x w", "c"), batch_norm("c", "y"), node("Split", "e", "a q", axis=0),
    ]  # fmt: skip
    inputs = {"x": IMAGE, "e": (0, 3)}
    made = Result(tmp_path, model(nodes, weights, inputs, ("y", "a", "q"), opset=13))
    assert made.operators == {"Conv": 1, "Split": 1}


def test_files_of_the_oldest_kind(tmp_path: Path) -> None:
    """Whose initializers all are inputs, so that constants are nodes."""
    weights = {"w": draw(4, 4, 3, 3), **statistics(4)}
    constants = [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in weights.items()
    ]
    nodes = [*constants, node("Conv", "x w", "c", **CONV), batch_norm("c", "y")]
    proto = model(nodes, {}, opset=11)
    proto.ir_version = 3
    made = Result(tmp_path, proto)
    assert made.operators == {"Conv": 1}
    made.same(x=X)


@pytest.mark.parametrize(
    ("terms", "outputs"),
    [("x m c", ("y", "c")), ("x m c c", ("y", "c")), ("c m x", ("y", "c")), ("x x x", ("y", "c"))],
)
def test_a_sum_of_several_of_which_some_are_gone(
    tmp_path: Path, terms: str, outputs: tuple[str, ...]
) -> None:
    """It is several sums for the passes; one of them alone may be rewritten."""
    nodes = [
        node("Mul", "x s", "m"),
        node("Conv", "x w", "k", **CONV),
        node("Add", "k m", "c"),
        node("Sum", terms, "y"),
    ]
    weights = {"s": draw(4, 1, 1), "w": draw(4, 4, 3, 3)}
    made = Result(tmp_path, model(nodes, weights, outputs=outputs))
    assert made.made.report.applied
    made.same(x=draw(2, 4, 5, 5))
