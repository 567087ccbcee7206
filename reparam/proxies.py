"""Stand-ins for tensors while a forward is traced, and what Python may ask of them.

Arithmetic with sizes is recorded. Where Python itself needs a value, to branch or to count, the
example inputs give it, and the trace is held to it by an assertion.
"""

import builtins
import dis
import inspect
import operator
import typing
from collections.abc import Callable, Generator, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any, cast, no_type_check
from unittest import mock

import torch
from torch import fx
from torch.fx.proxy import Attribute, TraceError

from reparam import known
from reparam.arguments import found
from reparam.modes import modes_asked, require_no_gradient
from reparam.tested import Constants, caller_tests, tested, tested_part

IN_PLACE = known.INPLACE_OPERATORS - {"imatmul"}
"""The operators that tensors have methods of."""

FACTORIES: dict[str, Any] = {
    name: getattr(torch, name)
    for name in ("zeros", "ones", "empty", "rand", "randn", "tensor", "as_tensor")
}
"""Functions of torch that take sizes one by one, or build a tensor of numbers: given a stand-in,
they fail before anybody is asked."""

NAMES = frozenset(dir(torch.Tensor))
"""What a tensor has."""

IGNORED = ("CACHE", "NOT_TAKEN", "TO_BOOL")
"""Instructions that stand between a test and its jump in some versions of Python."""

TYPING: Any = typing
"""So that a checker takes what it decorates as it is annotated."""

DICTIONARY_VIEWS: dict[str, Callable[[Any, Any], Any]] = {
    "keys": lambda proxy, key: key,
    "values": lambda proxy, key: proxy[key],
    "items": lambda proxy, key: (key, proxy[key]),
}


@no_type_check  # a check of annotations would stand between a proxy and the code that asks it
class _Recorded:
    """What both kinds of proxies do beyond fx's own."""

    tracer: Any
    __array_priority__ = torch.Tensor.__array_priority__  # by which NumPy's numbers make way

    def __setitem__(self, index: Any, value: Any) -> None:
        """Record the assignment."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would be lost."""
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise TraceError(f"it assigns to the attribute {name!r} of a tensor")
        object.__setattr__(self, name, value)

    def __bool__(self: Any) -> bool:
        """Record an assertion; else the truth for the example inputs, to which others are held."""
        message = _asserted(inspect.currentframe())
        if message is not None:
            if self.tracer.known_value(self) is False:
                return bool(self.tracer.held(self))  # which somebody may catch
            self.tracer.create_proxy("call_function", known.ASSERT, (self, message), {})
            return True
        if type(self.tracer.known_value(self)) in (int, float):
            return bool(self.tracer.held(self != 0))  # how much it is, is not asked
        return bool(self.tracer.held(self))

    def __int__(self) -> int:
        """The number for the example inputs, which the trace is held to."""
        return int(self.tracer.held(self))

    def __float__(self) -> float:
        """The number for the example inputs, which the trace is held to."""
        return float(self.tracer.held(self))

    def __len__(self) -> int:
        """The number for the example inputs, which the trace is held to."""
        return self.tracer.held_length(self)

    def __getitem__(self: Any, index: Any) -> Any:
        """Record the call, unless there is nothing to be had."""
        return self._part(index, caller_tests(inspect.currentframe()))

    def _part(self: Any, index: Any, compared: Callable[[], Constants]) -> Any:
        if self.tracer.is_none(self, index):
            return None
        part = self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})
        return self.tracer.part(part, self, compared)

    def __iter__(self: Any) -> Iterator[Any]:
        """As many parts as are unpacked; else the number for the example inputs."""
        frame = _caller(inspect.currentframe())
        count = _unpacked(frame)
        if self.tracer.examples.kind(self.node) is dict:
            return iter(self.keys())
        value = None if count is None else self.tracer.known_value(self)
        if isinstance(value, Sized) and len(value) != count:  # which somebody may catch
            raise ValueError(f"{len(value)} values to unpack into {count} names")
        if count is None:
            return (self._part(number, partial(tested, frame)) for number in range(len(self)))
        return (self._part(number, partial(tested_part, frame, number)) for number in range(count))

    def __contains__(self: Any, item: Any) -> bool:
        """Whether a part is equal, or a dictionary has the key."""
        if issubclass(self.tracer.examples.kind(self.node) or object, Mapping):
            return item in self.keys()
        return any(part is item or part == item for part in self)

    def __hash__(self: Any) -> int:
        """What it is looked up by: a tensor by its identity, anything else by what it is."""
        if self.tracer.is_tensor(self):
            return object.__hash__(self)
        return hash(self.tracer.held(self))

    def keys(self: Any) -> Any:
        """The keys of a dictionary; else a call of the method."""
        return AttributeProxy(self, "keys")()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy of a proxy, by `copy.copy` or a pickle, would stand for nothing."""
        raise TraceError("it copies or pickles a tensor as an object of Python's")

    __deepcopy__ = __reduce_ex__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A tensor can't be called."""
        raise TraceError("it calls what it is given as an argument")


def _in_place(name: str) -> Any:
    function = getattr(operator, name)

    def record(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in IN_PLACE:
    setattr(_Recorded, f"__{_name}__", _in_place(_name))


@no_type_check  # as above
class TensorProxy(_Recorded, fx.Proxy):
    """Stands for a tensor."""

    def __getattr__(self, name: str) -> Any:
        """Stand for an attribute of it, or a method."""
        _require_made(name, ("tracer", "node"))
        if name in ("_is_param", "_is_buffer"):  # what torch asks to tell its own
            return False
        require_no_gradient(name, self.node.op == "get_attr")
        if name not in NAMES and isinstance(self.tracer.known_value(self), torch.Tensor):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        part = AttributeProxy(self, name)
        return self.tracer.part(part, self, caller_tests(inspect.currentframe()))


@no_type_check  # as above
class AttributeProxy(_Recorded, Attribute):
    """Stands for an attribute, which becomes a node when it is used as a value."""

    def __getattr__(self, name: str) -> Any:
        """Stand for an attribute of the attribute."""
        _require_made(name, ("tracer", "root", "attr", "_node"))
        require_no_gradient(name, of_weight=False)
        part = AttributeProxy(self, name)
        return self.tracer.part(part, self, caller_tests(inspect.currentframe()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Record the call of a method; go through a dictionary, whose keys are known."""
        if self.attr in DICTIONARY_VIEWS and not args:
            value = self.tracer.known_value(self.root)
            if isinstance(value, Mapping):
                keys = cast("Mapping[Any, Any]", value)
                self.tracer.held_keys(self.root, list(keys))
                return [DICTIONARY_VIEWS[self.attr](self.root, key) for key in keys]
        result = Attribute.__call__(self, *args, **kwargs)
        compared = caller_tests(inspect.currentframe())
        return self.tracer.called_method(result, self, compared)


def _require_made(name: str, own: tuple[str, ...]) -> None:
    """Refuse a proxy that lacks what each is made with: to find that, it would ask for it again."""
    if name in own:
        raise AttributeError(f"a proxy was made without its {name}")


def _caller(method: Any) -> FrameType:
    """The frame of the code that calls a method, by the frame of the method."""
    return method.f_back


def _unpacked(frame: FrameType) -> int | None:
    """The number of names that a frame is unpacking a value into."""
    code, here = frame.f_code.co_code, frame.f_lasti
    return code[here + 1] if dis.opname[code[here]] == "UNPACK_SEQUENCE" else None


def _asserted(method: FrameType | None) -> str | None:
    """Where the code which calls a method is testing an assertion: what it is about."""
    frame = _caller(method)
    following = (i for i in dis.get_instructions(frame.f_code) if i.offset >= frame.f_lasti)
    jump, raising, *_ = [i for i in following if i.opname not in IGNORED] + [None, None]
    if jump is None or raising is None or not jump.opname.endswith("IF_TRUE"):
        return None
    if "ASSERTION_ERROR" not in raising.opname and raising.argrepr != "AssertionError":
        return None
    return f"an assertion in {frame.f_code.co_qualname}"


@contextmanager
@TYPING.no_type_check  # it would ask isinstance itself
def python_asks(tracer: Any) -> Generator[None]:
    """Have Python's and torch's own functions heed proxies while a forward is traced."""
    own_isinstance: Any = builtins.isinstance
    own_hasattr = builtins.hasattr
    own_range = builtins.range

    def is_instance(instance: Any, kinds: Any) -> bool:
        try:  # All of torch asks this all the time, so the plain answer comes first.
            if own_isinstance(instance, kinds):
                return True
        except TypeError:  # `range` is a function while a forward is traced
            given = kinds if own_isinstance(kinds, tuple) else (kinds,)
            if counted not in given:
                raise
            return is_instance(instance, tuple(own_range if k is counted else k for k in given))
        if type(instance) is not TensorProxy and type(instance) is not AttributeProxy:
            return False
        return tracer.stands_for(instance, kinds)

    def has_attribute(instance: Any, name: str) -> bool:
        if type(instance) is TensorProxy or type(instance) is AttributeProxy:
            return tracer.has(instance, name)
        return own_hasattr(instance, name)

    def counted(*bounds: Any) -> range:
        plain = (int(bound) if own_isinstance(bound, fx.Proxy) else bound for bound in bounds)
        return own_range(*plain)

    def recorded(factory: Any) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            if found((args, kwargs), fx.Proxy):
                return tracer.create_proxy("call_function", factory, args, kwargs)
            return factory(*args, **kwargs)

        return make

    own_autocast = torch.autocast.__init__

    def autocast(region: Any, device_type: Any, *args: Any, **kwargs: Any) -> None:
        if own_isinstance(device_type, fx.Proxy):
            device_type = tracer.examples(device_type.node)
        own_autocast(region, device_type, *args, **kwargs)

    autograd: Any = torch.autograd.Function
    own_apply = inspect.getattr_static(autograd, "apply")  # of Python or of C, by release

    # It would fail on proxies, with a message about arguments of torch's own.
    def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        if found((args, kwargs), fx.Proxy):
            raise TraceError(f"it calls the autograd function {function.__name__}")
        return own_apply.__get__(None, function)(*args, **kwargs)

    def sized(factory: Any) -> Any:
        def make(*sizes: Any, **kwargs: Any) -> Any:
            packed = sizes if isinstance(sizes[0], tuple | list) else (sizes,)
            return recorded(factory)(*(packed if found(sizes, fx.Proxy) else sizes), **kwargs)

        return make

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(builtins, "isinstance", is_instance))
        stack.enter_context(mock.patch.object(builtins, "hasattr", has_attribute))
        stack.enter_context(mock.patch.object(builtins, "range", counted))
        for name, factory in FACTORIES.items():
            patch = recorded if "tensor" in name else sized
            stack.enter_context(mock.patch.object(torch, name, patch(factory)))
        stack.enter_context(modes_asked())
        stack.enter_context(mock.patch.object(torch.autocast, "__init__", autocast))
        stack.enter_context(mock.patch.object(autograd, "apply", classmethod(apply)))
        yield
