"""What a compiled model keeps of the model's own interface: hooks, attributes, methods."""

import copy
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from reparam import known
from reparam.capture import modules_of
from reparam.paths import module_at

PRESERVED = "_user_preserved_attributes"
"""What a graph module calls the attributes that its copies keep."""

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)
"""Where a module keeps its hooks, and how each wants to be called."""


def keep_interface(model: nn.Module, fused: nn.Module) -> None:
    """Give a graph module the model's hooks and plain attributes, and words for its methods.

    Hooks of the model's parts stay where they are. Calling a method that was not compiled says so.
    """
    keep_hooks(model, fused)
    for name, value in _attributes(model):
        if not hasattr(fused, name):
            preserve(fused, name, value)
    for name in _methods(type(model)):
        if not hasattr(fused, name):
            preserve(fused, name, _not_compiled(type(model).__name__, name))


def keep_hooks(model: Any, fused: Any) -> None:
    """Give a compiled model the hooks of the model itself."""
    for name in HOOKS:
        hooks = getattr(model, name)
        if hooks:
            getattr(fused, name).update(hooks)
            preserve(fused, name, getattr(fused, name))
    if model._is_full_backward_hook is not None:
        preserve(fused, "_is_full_backward_hook", model._is_full_backward_hook)


def preserve(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute that copies of a graph module keep, and pickles but for hooks."""
    vars(module)[name] = value
    if isinstance(module, fx.GraphModule):
        module.meta.setdefault(PRESERVED, {})[name] = value


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Copies of what a model has set on itself, where no weights are part of it."""
    for name, value in vars(model).items():
        if name.startswith("_") or name == "training":
            continue
        if any(isinstance(leaf, Tensor | nn.Module) for leaf in pytree.tree_leaves(value)):
            continue
        try:
            yield name, copy.deepcopy(value)
        except Exception:
            continue


def _methods(kind: type[nn.Module]) -> Iterator[str]:
    """The public methods that a class of a user's has beyond those of every module."""
    for name, _ in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_") and not hasattr(nn.Module, name):
            yield name


def _not_compiled(model: str, method: str) -> Callable[..., Any]:
    """What takes a method's place; plain torch, so that it loads where this library is not.

    It is a method itself: a copy of a graph module takes modules that it is given for parts.
    """
    graph = fx.Graph()
    given = graph.placeholder("*args")
    graph.placeholder("**kwargs")
    never = graph.call_function(operator.eq, (given, None))
    message = (
        f"{model}.{method} was not compiled; "
        f"compile with methods=({method!r},), or call the original model's"
    )
    graph.call_function(known.ASSERT, (never, message))
    graph.output(None)
    return fx.GraphModule({}, graph, f"{model}_{method}").forward


def add_methods(fused: fx.GraphModule, methods: dict[str, fx.GraphModule]) -> None:
    """Give a compiled model further entries; they share the modules that came out alike."""
    for name, entry in methods.items():
        for path, module in list(modules_of(entry)):
            twin = module_at(fused, path) if path else None
            if twin is not None and _alike(twin, module):
                owner, _, last = path.rpartition(".")
                setattr(entry.get_submodule(owner), last, twin)
        preserve(fused, name, entry)
        vars(fused)["_modules"][name] = entry  # so that it moves and casts along


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules without parts of their own are of one kind and hold the same weights."""
    if type(one) is not type(other) or any(True for _ in other.children()):
        return False
    ours, theirs = one.state_dict(), other.state_dict()
    same = repr(one) == repr(other) and ours.keys() == theirs.keys() and len(ours) > 0
    return same and all(torch.equal(cast("Tensor", ours[k]), theirs[k]) for k in ours)
