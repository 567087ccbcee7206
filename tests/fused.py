"""What tests ask of a compiled model."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from reparam.report import count


def operators(fused: fx.GraphModule) -> Counter[str]:
    """How often each operator runs, by the name of its module, function or method.

    What only asserts how many axes an input has is none.
    """
    return Counter(count(fused, fused.graph, fused.get_submodule).operators)


def storages(model: nn.Module) -> set[int]:
    """The addresses of all parameters and buffers, also of those that no state_dict holds."""
    tensors: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state_dicts have the same keys in order, and bit-identical tensors."""
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
