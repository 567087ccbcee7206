"""A plain torch.fx pass in the pipeline: write hard-swish for a runtime that has no such operator.

    python examples/custom_fx_pass.py

A pass of this kind gets a `torch.fx.GraphModule` and returns one. It may do what our rewrites may
not, such as make the graph larger; the whole graph is compared before and after it.
"""

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import reparam


def decompose_hardswish(graph_module: fx.GraphModule) -> fx.GraphModule:
    """hardswish(x) = x · relu6(x + 3) / 6."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_hardswish(graph_module, node):
            continue
        x = node.args[0]
        with graph.inserting_before(node):
            shifted = graph.call_function(operator.add, (x, 3.0))
            gate = graph.call_function(functional.relu6, (shifted,))
            product = graph.call_function(operator.mul, (x, gate))
            result = graph.call_function(operator.truediv, (product, 6.0))
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    return graph_module


def approximate_gelu(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Replace GELU by its tanh approximation, which is another function."""
    for module in graph_module.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
    return graph_module


def is_hardswish(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a hard-swish, as a module or function."""
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), nn.Hardswish)
    return node.target is functional.hardswish


class Mobile(nn.Module):
    """Convolution, batch norm and hard-swish, then a linear layer, GELU and another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.head = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 10)."""
        return self.head(self.stem(x).mean((2, 3)))


def main() -> None:
    """Compile with each pass behind the default ones."""
    torch.manual_seed(0)
    model = Mobile()
    model(torch.randn(8, 3, 32, 32))  # gives the batch norm statistics
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    passes: tuple[Callable[[fx.GraphModule], fx.GraphModule], ...] = (
        decompose_hardswish,
        approximate_gelu,
    )
    for mine in passes:
        fused = reparam.compile(model, images, passes=(*reparam.default_passes(), mine))
        report = reparam.report(fused)
        print(f"{mine.__name__}:")
        print("  " + ", ".join(f"{n} {name}" for name, n in report.after.operators.items()))
        for remark in (*report.applied, *report.missed):
            print(f"  {remark.kind:8} {remark}")
        print(f"  {reparam.verify(model, fused, images)}")


if __name__ == "__main__":
    main()
