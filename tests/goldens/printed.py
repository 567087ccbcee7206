"""A graph in print: one line a node, hyper-parameters but no weights."""

from typing import Any

import torch
from torch import Tensor, fx, nn


def printed(model: fx.GraphModule) -> str:
    """The graph of a model: name, what is called with its hyper-parameters, arguments."""
    return "".join(f"{_line(model, node)}\n" for node in model.graph.nodes)


def _line(model: fx.GraphModule, node: fx.Node) -> str:
    arguments = ", ".join(
        [*map(str, node.args), *(f"{name}={value}" for name, value in node.kwargs.items())]
    )
    match node.op:
        case "placeholder":
            return f"{node.name} = input"
        case "output":
            return f"return {arguments}"
        case "get_attr":
            shape = tuple(_attribute(model, str(node.target)).shape)
            return f"{node.name} = {node.target} {shape}"
        case "call_module":
            module = model.get_submodule(str(node.target))
            return f"{node.name} = {node.target}: {_layer(module)} ({arguments})"
        case _:
            target: Any = node.target
            return f"{node.name} = {getattr(target, '__name__', target)} ({arguments})"


def _layer(module: nn.Module) -> str:
    """The class of a layer and what its call depends on, weights aside."""
    kind = type(module).__name__
    if isinstance(module, nn.modules.conv._ConvNd):
        bias = "bias" if module.bias is not None else "no bias"
        kernel, stride, padding = (
            "x".join(map(str, sizes)) if isinstance(sizes, tuple) else sizes
            for sizes in (module.kernel_size, module.stride, module.padding)
        )
        channels = f"{module.in_channels}->{module.out_channels}"
        return f"{kind} {channels} {kernel} s{stride} p{padding} g{module.groups} {bias}"
    if isinstance(module, nn.Linear):
        bias = "bias" if module.bias is not None else "no bias"
        return f"{kind} {module.in_features}->{module.out_features} {bias}"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return f"{kind} {module.num_features}"
    return kind


def _attribute(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    content = getattr(model.get_submodule(owner), name)
    assert isinstance(content, torch.Tensor)
    return content
