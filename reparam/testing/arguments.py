"""What tests are given: each argument is taken as it is, or refused in one sentence."""

import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral
from types import BuiltinFunctionType
from typing import Any, cast

from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.errors import PassError, ReparamError
from reparam.pipelines import Pass
from reparam.rewrite import Rewrite
from reparam.testing.failures import CheckFailed
from reparam.testing.graph import Graph, Shape

MOST_AXES = 3
"""How many axes may stand behind the channels: torch has no layers over more."""


def whole(name: str, value: Any, least: int) -> int:
    """A whole number.

    Raises:
        ReparamError: if it is none, or less than that.
    """
    if type(value) is bool or not isinstance(value, Integral) or int(value) < least:
        raise ReparamError(f"{name} is a whole number of {least} or more, not {value!r}")
    return int(value)


def checked_pass(rule: Any) -> Pass:
    """A rewrite, or what may be a torch.fx pass: whatever can be called with one argument.

    Raises:
        PassError: if it is neither.
    """
    if isinstance(rule, Rewrite):
        return rule
    kinds = (type, nn.Module, BuiltinFunctionType)
    if not callable(rule) or isinstance(rule, kinds) or not _takes_one(rule):
        raise PassError(f"{rule!r} is no pass; use reparam.rewrite, or a function of a GraphModule")
    return cast("Pass", rule)


def _takes_one(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # it does not tell
        return True
    return True


def checked_model(name: str, model: Any) -> nn.Module:
    """A module.

    Raises:
        ReparamError: if it is none.
    """
    if not isinstance(model, nn.Module):
        raise ReparamError(f"{name} is a torch.nn.Module, not {model!r}")
    return model


def built_model(factory: Any) -> nn.Module:
    """The model that a class or function returns, in evaluation mode.

    Raises:
        ReparamError: if it is no such thing, or returns something else.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ReparamError(
            f"a model is given by a class or function that returns it, not by {factory!r}"
        )
    named = getattr(factory, "__name__", repr(factory))
    return checked_model(f"what {named} returns", factory()).eval()


def checked_inputs(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The examples on which models are compared.

    Raises:
        CheckFailed: if there are none.
        ReparamError: if one is neither a tensor nor a tuple, a list or a mapping.
    """
    if not inputs:
        raise CheckFailed("nothing was compared: no inputs were given")
    for each in inputs:
        if not isinstance(each, Tensor | tuple | list | Mapping):
            raise ReparamError(f"inputs are tensors, or tuples or mappings of them, not {each!r}")
    return inputs


def checked_shapes(shapes: Any) -> tuple[tuple[Shape, int], ...]:
    """The shapes of inputs, each with how many axes stand behind its channels.

    Raises:
        ReparamError: if they are anything else.
    """
    try:
        pairs = tuple((tuple(shape), axes) for shape, axes in shapes)
        right = len(pairs) > 0 and all(
            min(whole("a size", size, 1) for size in shape)
            and whole("axes", axes, 0) <= min(MOST_AXES, len(shape) - 2)
            for shape, axes in pairs
        )
    except (TypeError, ValueError, ReparamError):
        pairs, right = (), False
    if not right:
        raise ReparamError(
            "shapes is a list such as [((2, 16, 8, 8), 2)]: batch, channels and further axes, "
            f"then how many axes stand behind the channels, at most {MOST_AXES}; not {shapes!r}"
        )
    return pairs


def checked_blocks(blocks: Any) -> tuple[Any, ...]:
    """Classes or functions that return a module.

    Raises:
        PassError: if they are anything else.
    """
    if not isinstance(blocks, list | tuple):
        named = getattr(blocks, "__name__", repr(blocks))
        raise PassError(f"blocks is a list of classes or functions, not {named}")
    several = tuple(cast("Sequence[Any]", blocks))
    for block in several:
        if isinstance(block, nn.Module) or not callable(block):
            raise PassError(f"a block is a class or function that returns a module, not {block!r}")
    return several


def checked_strategy(strategy: Any) -> st.SearchStrategy[Graph]:
    """A strategy; that it draws graphs is seen when it does.

    Raises:
        ReparamError: if it is none.
    """
    if not isinstance(strategy, st.SearchStrategy):
        raise ReparamError(f"graphs is a Hypothesis strategy such as graphs(), not {strategy!r}")
    return cast("st.SearchStrategy[Graph]", strategy)


def checked_graph(graph: Any) -> Graph:
    """What a strategy has drawn.

    Raises:
        ReparamError: if it is no graph.
    """
    if not isinstance(graph, Graph):
        raise ReparamError(f"graphs has to draw reparam.testing.Graph, and drew {graph!r}")
    return graph
