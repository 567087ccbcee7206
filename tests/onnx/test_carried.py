"""What the compiler has no rules for, and what is no part of the graph, is carried through."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reparam.onnx.reading import read
from reparam.onnx.translate import translated
from reparam.sizes import Size
from tests.onnx.files import IMAGE, Result, batch_norm, draw, model, node, statistics, value

X = draw(2, 4, 9, 8)
WEIGHTS = {"w": draw(4, 4, 3, 3), **statistics(4)}
CONV = node("Conv", "x w", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
FUSED = [CONV, batch_norm("a", "b")]


def standing(made: Result, op: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The one node of an operator, before and after."""
    (before,) = (each for each in made.before.graph.node if each.op_type == op)
    (after,) = (each for each in made.after.graph.node if each.op_type == op)
    return before, after


def test_nodes_keep_their_attributes_and_names(tmp_path: Path) -> None:
    told = node("HardSigmoid", "b", "y", alpha=0.3, beta=0.4)
    told.doc_string = "of a user's"
    told.metadata_props.add(key="layer", value="7")
    made = Result(tmp_path, model([*FUSED, told], WEIGHTS))
    before, after = standing(made, "HardSigmoid")
    after.input[0] = before.input[0]
    assert after == before
    made.same(x=X)


def test_an_operator_of_a_domain_of_its_own(tmp_path: Path) -> None:
    """Nothing here can run it; what is around it is fused, and the account says so."""
    own = helper.make_node("Blend", ["b", "x"], ["y"], "own", domain="acme.ops", factor=2.0)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme.ops", 3)]
    proto = helper.make_model(
        helper.make_graph(
            [*FUSED, own], "graph", [value("x", IMAGE)], [value("y", IMAGE)],
            [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()],
        ),
        opset_imports=opsets, ir_version=9,
    )  # fmt: skip
    made = Result(tmp_path, proto)
    assert made.operators == {"Conv": 1, "Blend": 1}
    assert made.made.equivalence is None
    assert "the whole was not run" in str(made.made.report)
    before, after = standing(made, "Blend")
    after.input[0] = before.input[0]
    assert after == before
    assert list(made.after.opset_import) == opsets


def test_functions_of_the_file(tmp_path: Path) -> None:
    function = helper.make_function(
        "acme", "Twice", ["u"], ["v"], [node("Add", "u u", "v")], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("Twice", ["b"], ["y"], "call", domain="acme")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    made = Result(
        tmp_path, model([*FUSED, call], WEIGHTS, functions=[function], opset_imports=opsets)
    )
    assert made.operators == {"Conv": 1, "Twice": 1}
    assert list(made.after.functions) == [function]
    made.same(x=X)


def test_subgraphs_read_what_is_around_them(tmp_path: Path) -> None:
    """Both the result of a fold and a weight that a fold leaves without another reader."""
    then = helper.make_graph([node("Mul", "b gamma4", "t")], "then", [], [value("t", IMAGE)])
    other = helper.make_graph([node("Neg", "b", "e")], "else", [], [value("e", IMAGE)])
    nodes = [
        *FUSED,
        node("ReduceSum", "x", "s", keepdims=0),
        node("Greater", "s zero", "p"),
        helper.make_node("If", ["p"], ["y"], "branch", then_branch=then, else_branch=other),
    ]
    weights = WEIGHTS | {"zero": np.array(0, np.float32), "gamma4": draw(4, 1, 1)}
    made = Result(tmp_path, model(nodes, weights))
    assert "BatchNormalization" not in made.operators
    made.same(x=np.abs(X))
    made.same(x=-np.abs(X))


def test_loops(tmp_path: Path) -> None:
    body = helper.make_graph(
        [node("Add", "carried b", "next"), node("Identity", "going", "goes")],
        "body",
        [value("i", (), TensorProto.INT64), value("going", (), TensorProto.BOOL),
         value("carried", IMAGE)],
        [value("goes", (), TensorProto.BOOL), value("next", IMAGE)],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["times", "", "b"], ["y"], "loop", body=body)
    made = Result(tmp_path, model([*FUSED, loop], WEIGHTS | {"times": np.array(3)}))
    assert made.operators == {"Conv": 1, "Loop": 1}
    made.same(x=X)


def test_quantization_stays(tmp_path: Path) -> None:
    """A fold through the rounding would be another network."""
    weights = WEIGHTS | {"s": np.array(0.02, np.float32), "z": np.array(3, np.uint8)}
    nodes = [
        CONV,
        node("QuantizeLinear", "a s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        batch_norm("d", "y"),
    ]
    made = Result(tmp_path, model(nodes, weights))
    assert made.operators["QuantizeLinear"] == made.operators["DequantizeLinear"] == 1
    made.same(x=X)


def test_what_is_said_about_the_file(tmp_path: Path) -> None:
    proto = model([*FUSED, node("Relu", "b", "y")], WEIGHTS, doc_string="a detector")
    proto.producer_name, proto.producer_version, proto.domain = "pytorch", "2.13", "acme"
    proto.model_version = 7
    proto.graph.doc_string = "its graph"
    proto.metadata_props.add(key="labels", value="cat, dog")
    proto.graph.input[0].doc_string = "an image"
    made = Result(tmp_path, proto).after
    told = [
        "producer_name", "producer_version", "domain", "model_version", "doc_string",
        "metadata_props", "opset_import", "ir_version",
    ]  # fmt: skip
    for name in told:
        assert getattr(made, name) == getattr(proto, name)
    for name in ("doc_string", "name", "input", "output"):
        assert getattr(made.graph, name) == getattr(proto.graph, name)


def test_names_that_are_taken(tmp_path: Path) -> None:
    """Whatever a new node would be called, something in the file is called so."""
    nodes = [
        CONV,
        helper.make_node("BatchNormalization", ["a", *list(statistics(4))], ["c"], "norm"),
        node("Relu", "c", "norm_output"),
        node("Abs", "norm_output", "norm.weight"),
        helper.make_node("Neg", ["norm.weight"], ["y"], "norm.bias"),
    ]
    made = Result(tmp_path, model(nodes, WEIGHTS))
    assert made.operators == {"Conv": 1, "Relu": 1, "Abs": 1, "Neg": 1}
    made.same(x=X)


def test_random_numbers_are_drawn_when_the_file_runs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], "draw", shape=[4, 1, 1]),
        *FUSED,
        node("Mul", "b r", "y"),
    ]
    made = Result(tmp_path, model(nodes, WEIGHTS))
    assert made.operators == {"RandomNormal": 1, "Conv": 1, "Mul": 1}


def test_integers_stay_integers(tmp_path: Path) -> None:
    """Torch's quotient of integers is no integer, and ONNX's is."""
    weights = {"two": np.array(2), "five": np.array([5, 7, 9])}
    nodes = [node("Add", "x five", "a"), node("Div", "a two", "y")]
    made = Result(tmp_path, model(nodes, weights, {"x": (3,)}, kind=TensorProto.INT64))
    assert made.operators == {"Add": 1, "Div": 1}
    made.same(x=np.array([-7, 0, 4]))


def test_constants_that_versions_differ_on_are_left(tmp_path: Path) -> None:
    """Before version 13, a softmax runs over all axes from one on."""
    nodes = [
        node("Softmax", "p", "q"),
        node("ReduceMean", "q", "r", axes=[2], keepdims=1),
        *FUSED,
        node("Mul", "b r", "y"),
    ]
    made = Result(tmp_path, model(nodes, {"p": draw(1, 4, 6, 1), **WEIGHTS}, opset=12))
    made.same(x=X)


@pytest.mark.parametrize("opset", [13, 21])
def test_quantized_weights_stay_quantized(tmp_path: Path, opset: int) -> None:
    weights = WEIGHTS | {"s": np.array(0.02, np.float32)}
    nodes = [
        node("QuantizeLinear", "w s", "q"),
        node("DequantizeLinear", "q s", "v"),
        node("Conv", "x v", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        batch_norm("a", "y"),
    ]
    made = Result(tmp_path, model(nodes, weights, opset=opset))
    assert made.operators["QuantizeLinear"] == made.operators["DequantizeLinear"] == 1
    made.same(x=X)


def test_types_that_torch_does_not_know(tmp_path: Path) -> None:
    nodes = [
        *FUSED,
        node("Relu", "b", "y"),
        node("Cast", "k", "u", to=TensorProto.UINT16),
        node("Identity", "u", "z"),
    ]
    weights = WEIGHTS | {"k": np.array([1, 2, 3])}
    made = Result(tmp_path, model(nodes, weights, outputs=("y", "z"), opset=21))
    assert "BatchNormalization" not in made.operators
    made.same(x=X)


def test_what_trains_the_file(tmp_path: Path) -> None:
    proto = model([*FUSED, node("Relu", "b", "y")], WEIGHTS)
    told = proto.training_info.add()
    told.update_binding.add(key="w", value="stepped")
    made = Result(tmp_path, proto)
    assert "w" in {tensor.name for tensor in made.after.graph.initializer}


def test_inputs_and_outputs_that_are_left_out(tmp_path: Path) -> None:
    drop = helper.make_node("Dropout", ["a"], ["d", ""], "drop")
    nodes = [CONV, drop, batch_norm("d", "b"), node("Clip", "b - top", "y")]
    made = Result(tmp_path, model(nodes, WEIGHTS | {"top": np.array(1, np.float32)}, opset=13))
    assert made.operators == {"Conv": 1, "Clip": 1}
    made.same(x=X)


@pytest.mark.parametrize("kind", ["uint32", "string"])
def test_a_constant_node_of_numbers_that_torch_lacks(tmp_path: Path, kind: str) -> None:
    content = numpy_helper.from_array(
        np.array(["2"], object) if kind == "string" else np.array([2], kind), "two"
    )
    nodes = [
        helper.make_node("Constant", [], ["k"], "constant", value=content),
        *FUSED,
        node("Cast", "k", "number", to=TensorProto.FLOAT),
        node("Mul", "b number", "y"),
    ]
    made = Result(tmp_path, model(nodes, WEIGHTS))
    assert made.operators == {"Constant": 1, "Conv": 1, "Cast": 1, "Mul": 1}
    before, after = standing(made, "Constant")
    assert after == before
    made.same(x=X)


def test_an_output_that_is_listed_twice(tmp_path: Path) -> None:
    made = Result(tmp_path, model(FUSED, WEIGHTS, outputs=("b", "b")))
    assert made.operators == {"Conv": 1}
    assert [each.name for each in made.after.graph.output] == ["b", "b"]
    made.same(x=X)


@pytest.mark.parametrize("claimed", [[1, 12], [3, 4], [1, 3, 4]])
def test_sizes_that_subgraphs_claim_tell_nothing(tmp_path: Path, claimed: list[int]) -> None:
    """Neither those of what they return, nor those of what they compute on the way."""
    then, other = (
        helper.make_graph(
            [node("Relu", "x", f"{name}_inner"), node("Identity", f"{name}_inner", name)],
            name, [], [value(name, claimed)], value_info=[value(f"{name}_inner", claimed)],
        )
        for name in ("then", "other")
    )  # fmt: skip
    branch = helper.make_node("If", ["p"], ["i"], then_branch=then, else_branch=other)
    proto = model([node("Relu", "x", "y")], {}, {"x": ("n", 12)})
    proto.graph.node.append(branch)
    proto.graph.input.append(value("p", [], TensorProto.BOOL))
    proto.graph.output.append(value("i", ["n", 12]))
    onnx.save(proto, tmp_path / "old.onnx")
    program = translated(read(tmp_path / "old.onnx"))
    batch, columns = program.told.learned[program.makers["i"]].axes
    assert not batch.known
    assert columns == Size(12)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm"])
def test_a_layer_tells_what_an_unknown_operator_makes(tmp_path: Path, kind: str) -> None:
    """Its input has the type of its weight, and as many axes; so what is behind is fused."""
    matrix = kind == "Gemm"
    layer = node(kind, "g w", "a") if matrix else node(kind, "g w", "a", strides=[2, 2])
    weights = {"w": draw(4, 4) if matrix else draw(4, 4, 3, 3), **statistics(4)}
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
        layer, batch_norm("a", "b"), node("Relu", "b", "y"),
    ]  # fmt: skip
    image = ("n", 4) if matrix else IMAGE
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = model(nodes, weights, {"x": image}, opset_imports=domains)
    made = Result(tmp_path, proto)
    assert made.operators == {"Gelu": 1, kind: 1, "Relu": 1}
    made.same(x=draw(3, 4) if matrix else X)
