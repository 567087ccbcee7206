"""Splits, sizes and axes of one, between layers that become one."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.onnx.files import Result, batch_norm, draw, model, node, statistics, value

X = draw(2, 4, 9, 8)
WEIGHTS = {"w": draw(8, 4, 3, 3), **statistics(8), "k": draw(4, 1, 1)}
CONV = node("Conv", "x w", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
ITEMS = {f"i{i}": np.array(i) for i in range(3)}


@pytest.mark.parametrize("items", ["d e", "e d"])
def test_a_scale_of_one_piece(tmp_path: Path, items: str) -> None:
    """It becomes one of some rows of the layer; the split of what that makes is another one."""
    first, second = items.split()
    nodes = [
        CONV,
        node("Split", "c s", "d e", axis=1),
        node("Mul", f"{first} k", "f"),
        node("Relu", second, "g"),
        node("Mul", "f g", "y"),
    ]
    made = Result(tmp_path, model(nodes, WEIGHTS | {"s": np.array([4, 4])}))
    assert made.operators == {"Conv": 1, "Split": 1, "Relu": 1, "Mul": 1}
    made.same(x=X)


@pytest.mark.parametrize("lengths", [[3, 5], [5, 3], 5, 4, [4, 4, 0]])
def test_a_split_into_a_sequence(tmp_path: Path, lengths: Any) -> None:
    """Lengths one by one, or one for all but the last."""
    nodes = [
        CONV,
        batch_norm("c", "b"),
        onnx.helper.make_node("Constant", [], ["i1"], value_int=1),
        node("SplitToSequence", "b s", "q", axis=-3),
        node("SequenceAt", "q i0", "d"),
        node("SequenceAt", "q i1", "e"),
        node("Relu", "d", "f"),
        node("Concat", "f e", "y", axis=1),
    ]
    weights = WEIGHTS | {"s": np.array(lengths), "i0": ITEMS["i0"]}
    made = Result(tmp_path, model(nodes, weights))
    assert made.operators == {"Conv": 1, "Split": 1, "Relu": 1, "Concat": 1}
    assert {each.name for each in made.after.graph.node if each.op_type == "Split"} == {
        "SplitToSequence_q"
    }
    made.same(x=X)


def test_what_follows_from_a_split_into_a_sequence(tmp_path: Path) -> None:
    nodes = [
        CONV,
        node("SplitToSequence", "c s", "q", axis=1),
        node("SequenceAt", "q i0", "d"),
        node("SequenceAt", "q i1", "e"),
        node("Mul", "e k", "f"),
        node("Sub", "d f", "y"),
    ]
    made = Result(tmp_path, model(nodes, WEIGHTS | {"s": np.array(4), **ITEMS}))
    assert made.operators == {"Conv": 1, "Split": 1, "Sub": 1}
    made.same(x=X)


@pytest.mark.parametrize(
    "reader",
    [
        node("SequenceAt", "q i0", "z"),
        node("SequenceAt", "q p", "z"),
        node("SequenceLength", "q", "z"),
        node("ConcatFromSequence", "q", "z", axis=1),
        node("SequenceInsert", "q x", "z"),
    ],
)
def test_a_sequence_that_is_read_otherwise_stays(tmp_path: Path, reader: Any) -> None:
    """Twice the same item, an item that is told by an input, or all of them."""
    nodes = [
        CONV,
        batch_norm("c", "b"),
        node("SplitToSequence", "b s", "q", axis=1),
        node("SequenceAt", "q i0", "d"),
        reader,
        node("SequenceAt", "z i0", "y") if reader.op_type == "SequenceInsert" else
        node("Identity", "z", "y"),
    ]  # fmt: skip
    inputs: dict[str, Any] = {"x": ("n", 4, "h", "w")}
    proto = model(nodes, WEIGHTS | {"s": np.array([4, 4]), **ITEMS}, inputs, ("d", "y"))
    proto.graph.input.append(value("p", (), onnx.TensorProto.INT64))
    made = Result(tmp_path, proto)
    assert "BatchNormalization" not in made.operators
    assert made.operators["SplitToSequence"] == 1
    made.same(x=X, p=np.array(1))


def test_items_that_if_reads(tmp_path: Path) -> None:
    """What a subgraph reads of a sequence is no item of it."""
    then = onnx.helper.make_graph(
        [node("SequenceAt", "q i1", "t")], "then", [], [value("t", [None] * 4)]
    )
    other = onnx.helper.make_graph([node("Neg", "d", "u")], "else", [], [value("u", [None] * 4)])
    nodes = [
        CONV,
        batch_norm("c", "b"),
        node("SplitToSequence", "b s", "q", axis=1),
        node("SequenceAt", "q i0", "d"),
        onnx.helper.make_node("If", ["p"], ["y"], then_branch=then, else_branch=other),
    ]
    proto = model(nodes, WEIGHTS | {"s": np.array([4, 4]), **ITEMS})
    proto.graph.input.append(value("p", (), onnx.TensorProto.BOOL))
    made = Result(tmp_path, proto)
    assert made.operators == {"Conv": 1, "SplitToSequence": 1, "SequenceAt": 1, "If": 1}
    for which in (True, False):
        made.same(x=X, p=np.array(which))


@pytest.mark.parametrize("bounds", [(0, 2), (2, 6), (-3, 2**63 - 1)])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_a_scale_of_some_channels_of_tokens(
    tmp_path: Path, bounds: tuple[int, int], step: int, bias: bool
) -> None:
    """As of the queries of an attention; here the last axis is no row of pixels."""
    slices = ("s", bounds[0]), ("e", bounds[1]), ("a", -1), ("t", step)
    weights: dict[str, Any] = {name: np.array([number]) for name, number in slices}
    weights |= {"v": draw(4, 6), "b": draw(6), "k": np.array(0.3, np.float32)}
    nodes = [
        node("MatMul", "x v", "m"),
        *([node("Add", "m b", "l")] if bias else []),
        node("Slice", f"{'l' if bias else 'm'} s e a t", "p"),
        node("Mul", "p k", "y"),
    ]
    made = Result(tmp_path, model(nodes, weights, {"x": ("n", "t", 4)}))
    if step == 1:
        assert "Mul" not in made.operators
    made.same(x=draw(2, 5, 4))


@pytest.mark.parametrize("sizes", [(2, 5, 4), ("n", 5, 4)])
def test_a_norm_of_tokens(tmp_path: Path, sizes: tuple[int | str, ...]) -> None:
    """Between the two, tokens of all images stand in one row, as in LeViT."""
    nodes = [
        node("MatMul", "x v", "a"),
        node("Flatten", "a", "f", axis=2),
        batch_norm("f", "b"),
        node("Shape", "a", "s"),
        node("Reshape", "b s", "y"),
    ]
    weights = {"v": draw(4, 6), **statistics(6)}
    made = Result(tmp_path, model(nodes, weights, {"x": sizes}))
    assert "BatchNormalization" not in made.operators
    if sizes[0] == 2:
        assert made.operators == {"MatMul": 1, "Add": 1}
    made.same(x=draw(2, 5, 4))


@pytest.mark.parametrize("ends", [{}, {"start": 1}, {"start": -3, "end": -1}])
def test_sizes_that_the_file_fixes(tmp_path: Path, ends: dict[str, int]) -> None:
    nodes = [CONV, batch_norm("c", "b"), node("Shape", "b", "s", **ends),
             node("Cast", "s", "t", to=1), node("ReduceSum", "t", "u", keepdims=0),
             node("Mul", "b u", "y")]  # fmt: skip
    made = Result(tmp_path, model(nodes, WEIGHTS, {"x": (2, 4, 9, 8)}))
    assert "Shape" not in made.operators
    assert "BatchNormalization" not in made.operators
    made.same(x=X)


def test_sizes_that_an_output_only_claims(tmp_path: Path) -> None:
    """No runtime holds a file to the shape that it declares of an output."""
    nodes = [CONV, batch_norm("c", "y"), node("Shape", "y", "z")]
    proto = model(nodes, WEIGHTS, outputs=("y", "z"))
    for size, told in zip(
        proto.graph.output[0].type.tensor_type.shape.dim, (1, 8, 5, 5), strict=True
    ):
        size.dim_value = told
    made = Result(tmp_path, proto)
    assert made.operators == {"Conv": 1, "Shape": 1}
    made.same(x=X)


@pytest.mark.parametrize("axes", [[0], [-1], [1, 3], [-1, 0, 5]])
@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("sizes", [(2, 4, 9, 8), ("n", 4, "h", "w")])
def test_axes_of_one(
    tmp_path: Path, axes: list[int], opset: int, sizes: tuple[int | str, ...]
) -> None:
    given: dict[str, Any] = {"axes": axes} if opset < 13 else {}
    inner = "" if given else " a"
    nodes = [
        CONV,
        node("Unsqueeze", f"c{inner}", "d", **given),
        node("Squeeze", f"d{inner}", "e", **given),
        batch_norm("e", "y"),
    ]
    weights = WEIGHTS | ({} if given else {"a": np.array(axes)})
    made = Result(tmp_path, model(nodes, weights, {"x": sizes}, opset=opset))
    assert made.operators == {"Conv": 1}
    made.same(x=X)


@pytest.mark.parametrize("axes", [None, [2, 3], [-1, -2]])
def test_axes_of_one_that_stay_away(tmp_path: Path, axes: list[int] | None) -> None:
    """Without axes, all of one go; of which there are others where the batch is one."""
    nodes = [
        CONV,
        node("GlobalAveragePool", "c", "p"),
        node("Squeeze", "p" if axes is None else "p a", "d"),
        batch_norm("d", "y"),
    ]
    weights = WEIGHTS | ({} if axes is None else {"a": np.array(axes)})
    made = Result(tmp_path, model(nodes, weights, {"x": (2, 4, 9, 8)}))
    assert made.operators == {"Conv": 1, "GlobalAveragePool": 1, "Squeeze": 1}
    made.same(x=X)


def test_a_squeeze_by_axes_that_are_an_input(tmp_path: Path) -> None:
    nodes = [CONV, batch_norm("c", "b"), node("GlobalAveragePool", "b", "p"),
             node("Squeeze", "p a", "y")]  # fmt: skip
    proto = model(nodes, WEIGHTS)
    proto.graph.input.append(value("a", [2], onnx.TensorProto.INT64))
    made = Result(tmp_path, proto)
    assert made.operators == {"Conv": 1, "GlobalAveragePool": 1, "Squeeze": 1}
    made.same(x=X, a=np.array([2, 3]))


def test_sizes_that_hang_on_what_a_caller_may_override(tmp_path: Path) -> None:
    nodes = [CONV, batch_norm("c", "b"), node("Slice", "b s e", "r"), node("Shape", "r", "y")]
    proto = model(nodes, WEIGHTS | {"s": np.array([0]), "e": np.array([1])}, {"x": (2, 4, 9, 8)})
    proto.graph.output[0].CopyFrom(value("y", [4], onnx.TensorProto.INT64))
    proto.graph.input.append(value("e", (1,), onnx.TensorProto.INT64))
    made = Result(tmp_path, proto)
    assert made.same(x=X, e=np.array([2]))[0].tolist() == [2, 8, 9, 8]
    assert made.same(x=X)[0].tolist() == [1, 8, 9, 8]


def test_sizes_in_tables(tmp_path: Path) -> None:
    """ONNX's own inference takes the rows of a table of sizes for its numbers."""
    nodes = [
        CONV,
        batch_norm("c", "b"),
        node("Shape", "b", "sizes"),
        node("Unsqueeze", "sizes zero", "row"),
        node("Concat", "row row", "table", axis=0),
        node("Gather", "table one", "again", axis=0),
        node("Expand", "k again", "r"),
        node("Shape", "r", "z"),
        node("ConstantOfShape", "z", "q"),
        node("Add", "b q", "y"),
    ]
    weights = WEIGHTS | {"zero": np.array([0]), "one": np.array(1), "k": draw(1)}
    made = Result(tmp_path, model(nodes, weights))
    assert made.operators["Conv"] == 1
    assert "BatchNormalization" not in made.operators
    made.same(x=X)


def test_a_sequence_without_the_axis_that_was_split(tmp_path: Path) -> None:
    nodes = [
        CONV,
        node("SplitToSequence", "c one", "q", axis=1, keepdims=0),
        node("SequenceAt", "q first", "y"),
    ]
    made = Result(tmp_path, model(nodes, WEIGHTS | {"one": np.array(1), "first": np.array(0)}))
    made.same(x=X)
    assert "SplitToSequence" in made.operators


def test_a_scale_of_some_columns_of_an_image_of_tokens(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x m", "a"),
        node("Slice", "a start end axis", "q"),
        node("Mul", "q third", "r"),
        node("Slice", "a end far axis", "v"),
        node("Concat", "r v", "y", axis=-1),
    ]
    weights = {
        "m": draw(8, 6),
        "third": np.array(0.3, np.float32),
        **{name: np.array([n]) for name, n in (("start", 0), ("end", 2), ("far", 9), ("axis", -1))},
    }
    made = Result(tmp_path, model(nodes, weights, {"x": ("n", 5, 7, 8)}))
    assert "Mul" not in made.operators
    made.same(x=draw(2, 5, 7, 8))


@pytest.mark.parametrize(
    ("first", "second", "numbers", "sizes"),
    [
        (node("Reshape", "x s", "a"), node("Squeeze", "a u", "b"), ([2, 1, 12], [1]), (2, 3, 4)),
        (node("Reshape", "x s", "a"), node("Squeeze", "a", "b"), ([2, 1, 12], [1]), (2, 3, 4)),
        (node("Reshape", "x s", "a"), node("Unsqueeze", "a u", "b"), ([2, 12], [1]), (2, 3, 4)),
        (node("Unsqueeze", "x s", "a"), node("Unsqueeze", "a u", "b"), ([1], [3]), (2, 3)),
        (node("Transpose", "x", "a", perm=[1, 0, 2]), node("Squeeze", "a u", "b"), ([1], [0]),
         (2, 1, 4)),
        (node("Transpose", "x", "a", perm=[1, 0, 2]), node("Unsqueeze", "a u", "b"), ([1], [1]),
         (2, 1, 4)),
    ],
)  # fmt: skip
def test_axes_of_one_are_counted_in_the_tensor_that_they_were_told_of(
    tmp_path: Path, first: Any, second: Any, numbers: tuple[list[int], list[int]], sizes: Any
) -> None:
    """Without the layout before it, a squeeze has an input of other axes, so it is a reshape."""
    weights = {"s": np.array(numbers[0]), "u": np.array(numbers[1])}
    made = Result(tmp_path, model([first, second, node("Relu", "b", "y")], weights, {"x": sizes}))
    assert made.operators == {"Reshape": 1, "Relu": 1}
    made.same(x=draw(*sizes))


def test_an_axis_of_one_behind_a_flatten(tmp_path: Path) -> None:
    """What channel attention has: a convolution along the means of the channels."""
    nodes = [
        node("GlobalAveragePool", "x", "g"),
        node("Flatten", "g", "f"),
        node("Unsqueeze", "f one", "u"),
        node("Conv", "u w", "c", pads=[1, 1]),
        node("Relu", "c", "y"),
    ]
    weights = {"one": np.array([1]), "w": draw(1, 1, 3)}
    made = Result(tmp_path, model(nodes, weights, {"x": (2, 5, 4, 4)}))
    assert made.operators == {"GlobalAveragePool": 1, "Reshape": 1, "Conv": 1, "Relu": 1}
    made.same(x=draw(2, 5, 4, 4))
