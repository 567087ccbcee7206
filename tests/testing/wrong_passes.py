"""Passes that are wrong, each in one way, and one that is right."""

import itertools
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

import reparam
from reparam.algebra import batch_norm_affine, exact
from reparam.composition import compose
from reparam.values import BatchNorm, Conv, Sum


def norm_and_conv(call: reparam.Call) -> tuple[BatchNorm, reparam.Call, Conv] | None:
    if not isinstance(call.value, BatchNorm):
        return None
    (source,) = call.inputs
    return (call.value, source, source.value) if isinstance(source.value, Conv) else None


def folded(norm: BatchNorm, conv: Conv) -> Conv:
    return compose(batch_norm_affine(norm), exact(conv))


@reparam.rewrite
def fold_norm(call: reparam.Call) -> reparam.Replace | None:
    """As it should be."""
    if (match := norm_and_conv(call)) is None:
        return None
    norm, source, conv = match
    reparam.require(len(source.readers) == 1, "something else reads the convolution", source.name)
    return reparam.Replace(folded(norm, conv), *source.inputs)


@reparam.rewrite
def drop_epsilon(call: reparam.Call) -> reparam.Replace | None:
    if (match := norm_and_conv(call)) is None:
        return None
    norm, source, conv = match
    reparam.require(len(source.readers) == 1, "something else reads the convolution", source.name)
    return reparam.Replace(folded(replace(norm, eps=0.0), conv), *source.inputs)


@reparam.rewrite
def forget_readers(call: reparam.Call) -> reparam.Replace | None:
    """Puts the folded convolution where others read the convolution as it was."""
    if (match := norm_and_conv(call)) is None:
        return None
    norm, source, conv = match
    both = reparam.Apply(folded(norm, conv), source.inputs)
    return reparam.Replace({source: both, call: both})


@reparam.rewrite
def forget_groups(call: reparam.Call) -> reparam.Replace | None:
    """Right, but for grouped convolutions."""
    if (match := norm_and_conv(call)) is None:
        return None
    norm, source, conv = match
    reparam.require(len(source.readers) == 1, "something else reads the convolution", source.name)
    merged = folded(norm, conv)
    if conv.groups > 1:
        merged = replace(merged, weight=merged.weight.flip(0))
    return reparam.Replace(merged, *source.inputs)


@reparam.rewrite
def write_to_weights(call: reparam.Call) -> reparam.Replace | None:
    if isinstance(call.value, BatchNorm):
        call.value.mean.zero_()
    return None


@reparam.rewrite
def edit_graph(call: reparam.Call) -> reparam.Replace | None:
    if isinstance(call.value, BatchNorm):
        call.node.args = tuple(reversed(call.node.graph.find_nodes(op="placeholder")))[:1]
    return None


@reparam.rewrite
def fail(call: reparam.Call) -> reparam.Replace | None:
    if isinstance(call.value, Sum) and len(call.inputs) > 1:
        raise ZeroDivisionError("of all things")
    return None


class Forgetful:
    """Drops ε, but only every 50th time."""

    def __init__(self) -> None:
        self.asked = itertools.count(1)

    def __call__(self, call: reparam.Call) -> reparam.Replace | None:
        if (match := norm_and_conv(call)) is None:
            return None
        norm, source, conv = match
        if next(self.asked) % 50 == 0:
            norm = replace(norm, eps=norm.eps + 1)
        return reparam.Replace(folded(norm, conv), *source.inputs)


class Moody:
    """Answers every second time."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, call: reparam.Call) -> reparam.Replace | None:
        self.asked += norm_and_conv(call) is not None
        return fold_norm(call) if self.asked % 2 else None


@reparam.rewrite
def look_for_nothing(call: reparam.Call) -> reparam.Replace | None:
    return None


@reparam.rewrite
def grow(call: reparam.Call) -> reparam.Replace | None:
    """Right, but it makes the graph larger, for ever if it were let."""
    if not isinstance(call.value, BatchNorm):
        return None
    plain = reparam.Apply(call.value, call.inputs)
    return reparam.Replace(Sum((0.5, 0.5)), plain, plain)


def is_gelu(node: fx.Node) -> bool:
    return node.target is nn.functional.gelu


def approximate_gelu(graph_module: fx.GraphModule) -> fx.GraphModule:
    for node in filter(is_gelu, graph_module.graph.nodes):
        node.kwargs = {"approximate": "tanh"}
    return graph_module


def rename_relu(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A torch.fx pass that is right."""
    for node in graph_module.graph.nodes:
        if node.target is nn.functional.relu and not node.kwargs.get("inplace"):
            node.target, node.kwargs = torch.relu, {}
    return graph_module


def double_parameters(graph_module: fx.GraphModule) -> fx.GraphModule:
    return graph_module.double()


class Cloning(nn.Module):
    """Its result is a tensor of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def drop_clones(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Equal in every number, but what is written to a result is written to the input too."""
    for node in graph_module.graph.find_nodes(op="call_method", target="clone"):
        node.replace_all_uses_with(node.args[0])
        graph_module.graph.erase_node(node)
    return graph_module
