"""Rows 49 and 50: passes of a user's own that fail, never end, or are wrong."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import passes
import reparam
from reparam import Call, Replace, rewrite
from reparam.algebra import widen_groups
from reparam.values import BatchNorm, Conv, Layout
from tests.bad_inputs.outcomes import IMAGE, compiled, conv_norm, norms, same, trained
from tests.passes.alone import Net

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


@rewrite
def raises(call: Call) -> Replace | None:
    raise ZeroDivisionError("a mistake\nwith details")


@rewrite
def exhausts_the_stack(call: Call) -> Replace | None:
    return exhausts_the_stack(call)


@rewrite
def returns_nonsense(call: Call) -> Any:
    return 3 if isinstance(call.value, Conv) else None


@rewrite
def widens_forever(call: Call) -> Replace | None:
    """Neither smaller nor done: it would be asked again about what it made."""
    if not isinstance(call.value, Conv):
        return None
    return Replace(widen_groups(call.value, 1), *call.inputs)


@rewrite
def replaces_by_itself(call: Call) -> Replace | None:
    return Replace(call.value, *call.inputs) if isinstance(call.value, Conv) else None


@rewrite
def rearranges_forever(call: Call) -> Replace | None:
    """There and back again."""
    if not isinstance(call.value, Layout):
        return None
    turned = Layout(torch.transpose, kind="permute", pure=True)
    return Replace(turned, call, 2, 3)


@rewrite
def reads_its_reader(call: Call) -> Replace | None:
    if not (isinstance(call.value, Conv) and call.readers):
        return None
    return Replace(call.value, call.readers[0])


RAISING: tuple[Any, ...] = (raises, exhausts_the_stack, returns_nonsense)
ENDLESS: tuple[Any, ...] = (
    widens_forever,
    replaces_by_itself,
    rearranges_forever,
    reads_its_reader,
)


def network() -> nn.Module:
    """With a convolution, a batch norm and a transposition for each of the passes."""
    conv, norm = conv_norm()
    forward = lambda m, x: m.norm(m.conv(x)).transpose(2, 3).relu()  # noqa: E731
    return trained(Net(forward, conv=conv, norm=norm))


def assert_rolled_back(wrong: Any, name: str, verify: bool = True) -> reparam.Report:
    """A remark names the pass; the others do their work, as if it were not there."""
    model = network()
    alone = compiled(model, passes=(wrong,), verify=verify)
    same(model, alone)
    assert norms(alone) == ["norm"]
    report = reparam.report(alone)
    assert report.applied == ()
    assert name in {remark.rule for remark in report.missed}
    assert all("\n" not in remark.message for remark in report.missed)
    for chosen in ((wrong, *passes.DEFAULT), (*passes.DEFAULT, wrong)):
        fused = compiled(model, passes=chosen, verify=verify)
        same(model, fused)
        assert norms(fused) == []
        assert fused.code == compiled(model).code
    return report


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("faulty", RAISING, ids=lambda one: one.name)
def test_row_49_a_pass_raises(faulty: Any, verify: bool) -> None:
    report = assert_rolled_back(faulty, faulty.name, verify)
    assert "the pass failed with" in report.missed[0].message


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("endless", ENDLESS[:2], ids=lambda one: one.name)
def test_row_49_a_pass_never_ends(endless: Any, verify: bool) -> None:
    assert_rolled_back(endless, endless.name, verify)


@pytest.mark.parametrize("endless", ENDLESS[2:], ids=lambda one: one.name)
def test_row_49_a_pass_goes_round(endless: Any) -> None:
    model = network()
    fused = compiled(model, passes=(endless,))
    same(model, fused)
    assert endless.name in {remark.rule for remark in reparam.report(fused).missed}


def fx_raises(graph_module: fx.GraphModule) -> fx.GraphModule:
    raise KeyError("no such node")


def fx_breaks(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Leaves a reader of what is gone."""
    graph = graph_module.graph
    conv, norm = (node for node in graph.nodes if node.op == "call_module")
    norm.append(graph.node_copy(conv, lambda _: norm))
    conv.prepend(norm)
    return graph_module


def fx_deletes_a_module(graph_module: fx.GraphModule) -> fx.GraphModule:
    del graph_module.conv
    return graph_module


def fx_returns_nothing(graph_module: fx.GraphModule) -> Any:
    return None


def fx_drops_the_norm(graph_module: fx.GraphModule) -> fx.GraphModule:
    for node in list(graph_module.graph.nodes):
        if node.target == "norm":
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()
    return graph_module


def fx_writes_to_weights(graph_module: fx.GraphModule) -> fx.GraphModule:
    """And then fails, so that only what it was given shows it."""
    with torch.no_grad():
        for parameter in graph_module.parameters():
            parameter.zero_()
    raise ValueError("too late")


FX = (
    fx_raises, fx_breaks, fx_deletes_a_module, fx_returns_nothing, fx_drops_the_norm,
    fx_writes_to_weights,
)  # fmt: skip


@pytest.mark.parametrize("faulty", FX, ids=lambda one: one.__name__)
@pytest.mark.parametrize("given", [None, IMAGE], ids=["drawn", "given"])
def test_row_49_a_torch_fx_pass(faulty: Any, given: Tensor | None) -> None:
    model = network()
    fused = compiled(model, given, passes=(faulty,))
    same(model, fused)
    assert norms(fused) == ["norm"]
    (missed,) = (r for r in reparam.report(fused).missed if r.rule == faulty.__name__)
    assert "rolled back" in missed.message
    assert "\n" not in missed.message
    assert norms(compiled(model, given, passes=(faulty, *passes.DEFAULT))) == []


@pytest.mark.parametrize("thing", [3, "fold_batchnorm", None, {"passes": ()}], ids=str)
def test_row_49_no_pass_at_all(thing: Any) -> None:
    with pytest.raises(reparam.PassError, match="is no pass"):
        compiled(network(), passes=(thing,))


@pytest.mark.parametrize("one", [passes.fold_batchnorm, "fold_batchnorm"], ids=["pass", "name"])
def test_row_49_one_pass_that_is_no_tuple(one: Any) -> None:
    with pytest.raises(reparam.PassError, match=r"write passes=\(fold_batchnorm,\)"):
        compiled(network(), passes=one)


@rewrite
def drops_the_norm(call: Call) -> Replace | None:
    if not isinstance(call.value, BatchNorm):
        return None
    (source,) = call.inputs
    return Replace(source.value, *source.inputs) if isinstance(source.value, Conv) else None


@rewrite
def doubles_the_weight(call: Call) -> Replace | None:
    value = call.value
    if not (isinstance(value, BatchNorm) and isinstance(call.inputs[0].value, Conv)):
        return None
    inner = call.inputs[0].value
    twice = Conv(inner.weight * 2, inner.bias, padding=inner.padding)
    return Replace(twice, *call.inputs[0].inputs)


@rewrite
def loses_a_channel(call: Call) -> Replace | None:
    if not (isinstance(call.value, BatchNorm) and isinstance(call.inputs[0].value, Conv)):
        return None
    inner = call.inputs[0].value
    return Replace(Conv(inner.weight[1:], padding=inner.padding), *call.inputs[0].inputs)


@rewrite
def forgets_the_padding(call: Call) -> Replace | None:
    if not (isinstance(call.value, BatchNorm) and isinstance(call.inputs[0].value, Conv)):
        return None
    inner = call.inputs[0].value
    return Replace(Conv(inner.weight, inner.bias), *call.inputs[0].inputs)


WRONG: tuple[Any, ...] = (drops_the_norm, doubles_the_weight, loses_a_channel, forgets_the_padding)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda one: one.name)
def test_row_50_a_wrong_pass(wrong: Any) -> None:
    report = assert_rolled_back(wrong, wrong.name)
    assert "its replacement" in report.missed[0].message


def test_row_50_a_wrong_pass_between_right_ones() -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))
    fused = compiled(model, passes=(*WRONG, *FX, *passes.DEFAULT, *RAISING))
    same(model, fused)
    assert norms(fused) == []
    named = {remark.rule for remark in reparam.report(fused).missed}
    assert {wrong.name for wrong in (*WRONG, *RAISING)} <= named
