"""What traced calls return for example inputs: tensors without memory, computed when asked for."""

import operator
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx.proxy import TraceError

from reparam import known
from reparam.arguments import mapped
from reparam.errors import first_line
from reparam.proxies import FACTORIES
from reparam.state import kept

INTEGERS = {"dim", "ndim", "numel", "nelement", "ndimension", "element_size", "itemsize"}
PROPERTIES = {"dtype": torch.dtype, "device": torch.device, "requires_grad": bool}
SEQUENCES = {"split", "chunk", "unbind", "tensor_split"}
"""What methods, attributes and functions of these names return."""

PYTHONS_OWN = ("builtins", "math", "_operator", "collections")
"""Modules whose functions have no effect beside their result."""

VALUES_NEEDED = (DataDependentOutputException, DynamicOutputShapeException)


class _UnknownError(Exception):
    """A value is not known, for the reason that this says."""


class ExampleValues:
    """The values of a graph's nodes while it is being traced.

    Every call runs once, in the order of the graph, so that a write in place is seen by those
    behind it alone. Without example inputs, only what depends on none is known.
    """

    def __init__(self, attribute: Callable[[str], Any], inputs: Mapping[str, Any]) -> None:
        """Take what the paths of a graph lead to, and the example inputs by name."""
        self._attribute = attribute
        self._inputs = inputs
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[fx.Node, Any] = {}
        self._types: dict[fx.Node, type | None] = {}

    def __call__(self, node: fx.Node) -> Any:
        """What a node returns.

        Raises:
            TraceError: if that is not known.
        """
        self._catch_up(node)
        value = self._values[node]
        if isinstance(value, _UnknownError):
            raise TraceError(str(value))
        return value

    def kind(self, node: fx.Node) -> type | None:
        """The type of what a node returns; without a value, what the call's name tells."""
        if known.calls(node) in SEQUENCES:
            return tuple  # for which nothing has to run
        try:
            value: object = self(node)
        except TraceError:
            return self._expected_type(node)
        return type(value)

    def _expected_type(self, node: fx.Node) -> type | None:
        """The type of what a call returns, as far as its name tells."""
        if node not in self._types:
            kind: type | None = Tensor
            if node.op == "call_module":
                module = self._attribute(str(node.target))
                plain = type(module).__module__.startswith("torch.nn.")
                several = isinstance(module, nn.RNNBase | nn.MultiheadAttention)
                kind = Tensor if plain and not several else None
            elif node.op not in ("placeholder", "get_attr"):
                kind = _type_by_name(node, [self._expected_type(n) for n in node.all_input_nodes])
            self._types[node] = kind
        return self._types[node]

    def _catch_up(self, node: fx.Node) -> None:
        """Run what stands between the last call that was run and this one."""
        pending: list[fx.Node] = []
        while node.op != "root" and node not in self._values:
            pending.append(node)
            node = node.prev
        if pending:
            with _outside_of_the_trace(), self._mode, torch.no_grad():
                for earlier in reversed(pending):
                    self._values[earlier] = self._run(earlier)

    def _run(self, node: fx.Node) -> Any:
        try:
            args, kwargs = mapped((node.args, node.kwargs), fx.Node, self._known)
            return self._call(node, args, kwargs)
        except _UnknownError as unknown:
            return unknown
        except Exception as error:  # such as one for a value that is not there without memory
            if isinstance(error, VALUES_NEEDED):
                return _UnknownError("it depends on the values of a tensor")
            return _UnknownError(f"it depends on a call that fails beforehand: {first_line(error)}")

    def _known(self, node: fx.Node) -> Any:
        value = self._values[node]
        if isinstance(value, _UnknownError):
            raise value
        return value

    def _call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target: Any = node.target
        self._check_write(node, args)
        match node.op:
            case "placeholder":
                if target in self._inputs:
                    return self._inputs[target]
                if args:
                    return args[0]
                raise _UnknownError("it depends on a size, type or value; pass example_inputs")
            case "get_attr":
                return self._attribute(target)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_module":
                return self._run_module(self._attribute(target), args, kwargs)
            case _:
                if not _has_no_effect(target):
                    name = getattr(target, "__name__", target)
                    raise _UnknownError(f"it depends on the result of {name}")
                return target(*args, **kwargs)

    def _check_write(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Refuse to write to what the model holds."""
        real = (tensor for tensor in args[:1] if not isinstance(tensor, FakeTensor))
        if known.writes(node) and any(isinstance(tensor, Tensor) for tensor in real):
            raise _UnknownError("it depends on a tensor that it writes to")

    def _run_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(map(known.hooked, module.modules())):
            raise _UnknownError("it depends on the result of a module with hooks")
        with kept(module):
            return module(*args, **kwargs)


def _has_no_effect(target: Any) -> bool:
    """Whether a function is torch's or Python's own."""
    if target in FACTORIES.values() or known.torchs_own(target):
        return True
    return getattr(target, "__module__", None) in PYTHONS_OWN


@contextmanager
def _outside_of_the_trace() -> Generator[None]:
    """Have modules run, while torch.fx would record that they are called."""
    own = known.TORCH.fx._symbolic_trace
    modes = known.TORCH.utils._python_dispatch
    with ExitStack() as stack:
        stack.enter_context(modes._disable_current_modes())
        stack.enter_context(mock.patch.object(nn.Module, "__call__", own._orig_module_call))
        stack.enter_context(mock.patch.object(nn.Module, "__getattr__", own._orig_module_getattr))
        yield


def _type_by_name(node: fx.Node, inputs: list[type | None]) -> type | None:
    """What a function of torch's returns; None where that can't be told without running it."""
    called = node.args[1] if node.target is getattr else known.calls(node)
    if called in ("size", "shape"):
        return int if len(node.args) > 1 and node.target is not getattr else torch.Size
    if called in INTEGERS:
        return int
    if called in PROPERTIES:
        return PROPERTIES[str(called)]
    if called in SEQUENCES:
        return tuple
    if called == "getitem" and inputs[:1] == [torch.Size]:
        return torch.Size if isinstance(node.args[1], slice) else int
    if called == "getitem" and inputs[:1] == [tuple]:
        return tuple if isinstance(node.args[1], slice) else Tensor
    if getattr(node.target, "__module__", "") == operator.mul.__module__ and Tensor not in inputs:
        return _type_of_number(str(called), {*inputs, *map(type, _constants(node))})
    return Tensor if called is not None and None not in inputs else None


def _constants(node: fx.Node) -> list[Any]:
    return [argument for argument in node.args if not isinstance(argument, fx.Node)]


def _type_of_number(called: str, kinds: set[type | None]) -> type | None:
    """What an operator of Python's makes of numbers of these types."""
    if not kinds <= {bool, int, float}:
        return None
    if called in known.COMPARISONS:
        return bool
    return float if called == "truediv" or float in kinds else int
