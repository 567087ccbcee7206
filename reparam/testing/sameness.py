"""Whether two answers of a pass are the same, and whether a graph or a model is as it was."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from reparam.capture import modules_of
from reparam.graph import Apply, Call, Expression
from reparam.known import hooked
from reparam.values import Value


def same_rewrite(a: Mapping[Call, Expression], b: Mapping[Call, Expression]) -> bool:
    """Whether two answers replace the same calls by the same expressions."""
    return a.keys() == b.keys() and all(same(a[call], b[call]) for call in a)


def same(a: Any, b: Any) -> bool:
    """Whether two parts of an answer are the same, numbers included."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and identical(a, b)
    if isinstance(a, Apply) and isinstance(b, Apply):
        alike = same(a.value, b.value) and same(a.inputs, b.inputs)
        return alike and same(dict(a.options), dict(b.options))
    if isinstance(a, Value) and isinstance(b, Value) and a is not b:
        if type(a) is not type(b):
            return False
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        first, second = cast("tuple[Any, ...]", a), cast("tuple[Any, ...]", b)
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(a, dict) and isinstance(b, dict):
        one, other = cast("dict[Any, Any]", a), cast("dict[Any, Any]", b)
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return a is b or bool(a == b)


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers; NaN is the same as NaN."""
    return a.is_meta or bool(torch.equal(a, b)) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def edges(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """What a graph computes and from what; compared to see whether it was edited."""
    return [(node, id(node.target), node.args, node.kwargs) for node in graph.nodes]


class State:
    """A model as it is at one time."""

    def __init__(self, model: nn.Module) -> None:
        """Copy all that a pass could change."""
        self._tensors = {name: tensor.clone() for name, tensor in _tensors(model).items()}
        self._modules = _modules(model)

    def changed(self, model: nn.Module) -> str | None:
        """What is no more as it was, if anything."""
        tensors = _tensors(model)
        if tensors.keys() != self._tensors.keys():
            return "the parameters that the model has"
        for name, tensor in tensors.items():
            if not same(tensor, self._tensors[name]):
                return name
        return None if _modules(model) == self._modules else "the modules of the model"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}


def _modules(model: nn.Module) -> list[tuple[Any, ...]]:
    return [
        (name, module, module.training, hooked(module), str(module))
        for name, module in modules_of(model)
    ]


def shared_memory(model: nn.Module, fused: nn.Module) -> str | None:
    """The name of a tensor of the result that lies in memory of the model, if any does."""
    own = {tensor.untyped_storage().data_ptr() for tensor in _tensors(model).values()} - {0}
    taken = (
        name
        for name, tensor in _tensors(fused).items()
        if tensor.untyped_storage().data_ptr() in own
    )
    return next(taken, None)
