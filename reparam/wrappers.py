"""The model inside of wrappers, with weights in the place of what computes them."""

import copy
from collections import OrderedDict
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

from reparam import known
from reparam.state import tensors_of

WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
}
"""Where wrappers keep the model, by the names of their classes: most are costly to import."""

EMPTIED: tuple[Any, ...] = (OrderedDict, set)
"""What a module keeps hooks and the like in, of which most have none."""

CONTAINERS: tuple[Any, ...] = (*EMPTIED, dict, list)

PLAIN: tuple[Any, ...] = (bool, int, float, str, type(None))
"""What can't be changed, and need not be copied."""

LIBRARIES = ("torch.", "timm.")

PRUNE: Any = prune

REMOVERS: dict[str, Any] = {
    "WeightNorm": remove_weight_norm,
    "SpectralNorm": remove_spectral_norm,
}
"""How torch removes its older hooks that compute a weight, by their classes."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of wrappers that add nothing to what it computes."""
    while True:
        kind = type(model)
        name = WRAPPERS.get(kind.__name__)
        if name is None or not kind.__module__.startswith(LIBRARIES) or known.hooked(model):
            return model
        model = getattr(model, name)


def materialised(model: nn.Module) -> nn.Module:
    """The model, or a copy of it with plain weights where torch computes them in every call.

    That is what torch's parametrizations and prunings do, weight and spectral norm in their older
    form included.
    """
    if not any(_parametrized(m) or _hooks(m) for m in model.modules()):
        return model
    copied = duplicate(model)
    for module in copied.modules():
        for hook in _hooks(module):
            remove: Any = REMOVERS.get(type(hook).__name__)
            if remove is not None:
                remove(module, hook.name)
            else:
                PRUNE.remove(module, hook._tensor_name)
        if _parametrized(module):
            _materialise(module)
    return copied


def duplicate(content: Any, parts: dict[Any, Any] | None = None) -> Any:
    """A deep copy of a module, with what torch computed and left in it as plain tensors.

    Args:
        content: what is copied.
        parts: what takes the place of parts, by their identity; copies are added to it.
    """
    memo: dict[Any, Any] = {} if parts is None else parts
    is_module = isinstance(content, nn.Module)
    if is_module and id(content) not in memo and (twin := _twin(content)) is not None:
        memo[id(content)] = twin
        return twin
    for module in content.modules() if is_module else ():
        for value in vars(module).values():
            if type(value) in EMPTIED and not value:  # which `copy.deepcopy` would pickle
                memo[id(value)] = type(value)()
            elif isinstance(value, ModuleType):  # of Python's, which nobody copies
                memo[id(value)] = value
        for tensor in tensors_of(module):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(content, memo)


def _twin(layer: nn.Module) -> nn.Module | None:
    """A copy of a layer of torch's that holds nothing but numbers and words: most activations.

    To copy these one by one, as `copy.deepcopy` does, takes much longer.
    """
    kind = type(layer)
    if not kind.__module__.startswith("torch.nn.modules."):
        return None
    twin = kind.__new__(kind)
    for name, value in vars(layer).items():
        if type(value) in PLAIN:
            vars(twin)[name] = value
        elif type(value) in CONTAINERS and not value:
            vars(twin)[name] = value.copy()
        else:
            return None
    return twin


def _parametrized(module: Any) -> bool:
    """What torch's own function says, which takes long to say no."""
    return "parametrizations" in module._modules and parametrize.is_parametrized(module)


def _materialise(module: Any) -> None:
    """Hold what the parametrizations give as parameters.

    torch's own removal takes the properties out of a class that the copy shares with the original.
    """
    names = list(module.parametrizations)
    weights = {name: getattr(module, name).detach().clone() for name in names}
    trained = {
        name: any(p.requires_grad for p in module.parametrizations[name].parameters())
        for name in names
    }
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=trained[name]))


def _hooks(module: Any) -> list[Any]:
    """Torch's own hooks that compute a weight before each call."""
    if not module._forward_pre_hooks:
        return []
    hooks = module._forward_pre_hooks.values()
    own = [hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils.")]
    pruning = prune.BasePruningMethod
    return [one for one in own if type(one).__name__ in REMOVERS or isinstance(one, pruning)]
