"""What is learned of a tensor from the calls that read it, where its maker does not tell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from reparam import known
from reparam.facts import TensorFacts
from reparam.graph import Call
from reparam.sizes import Size, SymbolTable
from reparam.values import BatchNorm, Conv, Opaque
from reparam.verify import split_inputs


@dataclass(frozen=True)
class Learned:
    """Facts of tensors that are known from what reads them.

    Attributes:
        facts: by the call that makes the tensor.
        premises: the assertions that facts rest on, with that call.
    """

    facts: dict[fx.Node, TensorFacts]
    premises: dict[fx.Node, fx.Node]


def given_facts(
    graph: fx.Graph, example_inputs: Any, symbols: SymbolTable
) -> dict[fx.Node, TensorFacts]:
    """What example inputs tell of a graph's inputs: dtypes and numbers of axes, not sizes."""
    args, kwargs = split_inputs(() if example_inputs is None else example_inputs)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    named = {node: kwargs[node.target] for node in placeholders if node.target in kwargs}
    return {
        node: TensorFacts(tuple(symbols.fresh() for _ in given.shape), True, given.dtype)
        for node, given in [*zip(placeholders, args, strict=False), *named.items()]
        if isinstance(given, torch.Tensor)
    }


def refined(
    have: TensorFacts,
    n: int,
    channels: int | None,
    dtype: torch.dtype | None,
    exact: bool,
    fresh: Callable[[], Size],
) -> TensorFacts:
    """Facts with what a reader adds: channels before n spatial axes, a dtype, a batch axis."""
    axes = have.axes
    if channels is not None and len(axes) > n and not axes[-n - 1].known:
        axes = (*axes[: len(axes) - n - 1], Size(channels), *axes[len(axes) - n :])
    if exact and not have.exact and len(axes) == n + 1:
        axes = (fresh(), *axes)
    return TensorFacts(axes, have.exact or len(axes) > len(have.axes), have.dtype or dtype)


def keeps_axes(call: Call) -> bool:
    """Whether the result has as many axes as the first input."""
    value = call.value
    if isinstance(value, Conv | BatchNorm):
        return True
    return isinstance(value, Opaque) and known.kind(value.target) == "pointwise"
