"""What a forward does, while it is traced, to tensors that no proxy stands for."""

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Guarded(TorchDispatchMode):
    """Refuses random numbers, which a trace would freeze, and writes to the model itself."""

    def __init__(self, root: nn.Module) -> None:
        """Stand by while a module is traced."""
        cast("Any", super()).__init__()
        self._root = root

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on tensors that no proxy stands for."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise TraceError(f"it draws random numbers ({func})")
        written = _written(func, args, kwargs or {}) if func._schema.is_mutable else []
        if any(_place(tensor) in self._places for tensor in written):
            raise TraceError(f"it writes to a parameter or buffer ({func})")
        return func(*args, **(kwargs or {}))

    @functools.cached_property
    def _places(self) -> set[int]:
        """Where the tensors lie that a trace stands for; a forward may reach them otherwise."""
        return {_place(t) for t in (*self._root.parameters(), *self._root.buffers())} - {0}


def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operator writes to."""
    arguments = function._schema.arguments
    given = dict(zip((each.name for each in arguments), args, strict=False)) | kwargs
    outs = [a.name for a in arguments if a.alias_info and a.alias_info.is_write]
    leaves = pytree.tree_leaves([given.get(name) for name in outs])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    """Where a tensor lies; 0 where it has no memory."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, or of another kind without storage
        return 0
