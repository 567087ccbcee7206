"""Whether two answers of a pass are the same, and whether a graph or a model is as it was."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reparam.capture import modules_of
from reparam.graph import Apply, Call, Expression
from reparam.known import hooked
from reparam.runs import split_inputs
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
    """Every tensor that a module of the model holds, saved or not, by its path."""
    held: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    for path, module in modules_of(model):
        own = dict(vars(module))
        own |= module.named_parameters(recurse=False, remove_duplicate=False)
        own |= module.named_buffers(recurse=False, remove_duplicate=False)
        held |= {f"{path}.{name}".lstrip("."): value for name, value in own.items()}
    return {name: value.detach() for name, value in held.items() if isinstance(value, Tensor)}


def _modules(model: nn.Module) -> list[tuple[Any, ...]]:
    return [
        (name, module, module.training, hooked(module), str(module))
        for name, module in modules_of(model)
    ]


def shared_memory(model: nn.Module, fused: nn.Module, inputs: Any) -> str | None:
    """What of the compiled model lies in memory that it must not, if anything does.

    No tensor of its own lies in memory of the model. A result is a tensor of its own where the
    model's is: not an input, nor a weight, nor another result. Inputs that the model itself
    refuses are no evidence.
    """
    own = {_memory(tensor) for tensor in _tensors(model).values()} - {0}
    for name, tensor in _tensors(fused).items():
        if _memory(tensor) in own:
            return f"{name} of the result lies in memory of the model"
    try:
        before = _shared(model, inputs)
    except Exception:  # whatever a model raises at inputs that it refuses
        return None
    for number, other in sorted(_shared(fused, inputs) - before):
        return f"output {number} of the result lies in memory of {other}"
    return None


def _shared(model: nn.Module, inputs: Any) -> set[tuple[int, str]]:
    """Of a run, which outputs lie in memory of what else."""
    model = copy.deepcopy(model)  # a forward may write to it
    args, kwargs = split_inputs(pytree.tree_map_only(Tensor, Tensor.clone, inputs))
    with torch.no_grad():
        outputs = _leaves(model(*args, **kwargs))
    owners = {_memory(tensor): "a weight" for tensor in _tensors(model).values()}
    owners |= {_memory(t): f"input {number}" for number, t in enumerate(_leaves((args, kwargs)))}
    shared: set[tuple[int, str]] = set()
    for number, memory in enumerate(map(_memory, outputs)):
        if memory:
            other = owners.setdefault(memory, f"output {number}")
            if other != f"output {number}":
                shared.add((number, other))
    return shared


def _leaves(structure: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(structure) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    """Where a tensor lies; 0 for one without memory."""
    return tensor.untyped_storage().data_ptr()
