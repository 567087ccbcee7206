"""What a pass is: a pure function from a call to its replacement."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, cast, overload

from reparam.arguments import found
from reparam.errors import Declined, PassError, require
from reparam.graph import Apply, Call, Expression
from reparam.values import Opaque, Value

Function = Callable[[Call], "Replace | None"]

__all__ = ["Declined", "Replace", "Rewrite", "require", "rewrite"]


class Replace:
    """What to put where.

    `Replace(value, *inputs)` puts the value, applied to calls or to further applications, in the
    place of the call that the pass was given. `Replace({call: expression, ...})` replaces several
    calls at once; `Replace(other_call)` passes another result on.
    """

    def __init__(self, what: Value | Call | Mapping[Call, Expression], *inputs: Any) -> None:
        """Build it from a value and its inputs, from a call, or from a mapping.

        Raises:
            PassError: if it is built from anything else.
        """
        self._what: Value | Call | dict[Call, Expression]
        self._what = dict(what) if isinstance(what, Mapping) else what
        self._inputs = inputs
        _check(self._what, inputs)

    def roots(self, call: Call) -> dict[Call, Expression]:
        """The expression for each call that is replaced, `call` being the one matched."""
        match self._what:
            case Value():
                return {call: Apply(self._what, self._inputs)}
            case Call():
                return {call: self._what}
            case _:
                return dict(self._what)


def _check(what: Any, inputs: tuple[Any, ...]) -> None:
    """Raise PassError unless a Replace can be built from it."""
    if isinstance(what, Value):
        _check_expression(Apply(what, inputs))
        return
    if not isinstance(what, Call | dict):
        raise PassError(f"Replace takes a value, a call or a mapping, not {what!r}")
    if inputs:
        raise PassError("Replace takes inputs with a value, not with a call or a mapping")
    if isinstance(what, Call):
        return
    if not what:
        raise PassError("Replace was given an empty mapping; return None to replace nothing")
    replaced = cast("dict[Any, Any]", what)
    for root, expression in replaced.items():
        if not isinstance(root, Call):
            raise PassError(f"Replace takes a mapping from calls, not from {root!r}")
        _check_expression(expression)


def _check_expression(expression: Any) -> None:
    """Raise PassError unless it is a call, or an application to such."""
    seen: set[int] = set()
    pending = [expression]
    while pending:
        part = pending.pop()
        if isinstance(part, Call) or id(part) in seen:
            continue
        seen.add(id(part))
        if not isinstance(part, Apply):
            raise PassError(f"a call is replaced by a call or an Apply, not by {part!r}")
        value: Any = part.value
        inputs: Any = part.inputs
        if not isinstance(value, Value):
            raise PassError(f"Apply takes a value, not {value!r}")
        if not isinstance(inputs, tuple):
            raise PassError(f"Apply takes a tuple of inputs, not {inputs!r}")
        further = found((inputs, dict(part.options)), (Call, Apply))
        if inputs and not further and not isinstance(value, Opaque):
            raise PassError(f"{value.__name__} is applied to {inputs!r}, among which is no call")
        pending += further


@dataclass(frozen=True)
class Rewrite:
    """A pass on calls, with the name that remarks give it.

    Attributes:
        function: from a call to its replacement.
        name: what remarks call it.
        on: the kinds of values whose calls it is asked about.
    """

    function: Function
    name: str
    on: type[Value] | UnionType = Value

    def __call__(self, call: Call) -> Replace | None:
        """Match one call: a replacement, None for "not mine", or Declined with a reason."""
        return self.function(call)


@overload
def rewrite(function: Function) -> Rewrite: ...
@overload
def rewrite(*, on: type[Value] | UnionType) -> Callable[[Function], Rewrite]: ...
def rewrite(function: Any = None, *, on: Any = Value) -> Any:
    """Make a function from a call to its replacement a pass that `reparam.compile` takes.

    The function returns None where the call is none of its business, calls `require` where it
    matches but must decline, and otherwise returns a `Replace`. It keeps no state and changes
    nothing.

    `@rewrite(on=Conv | BatchNorm)` says that it returns None for calls of all other kinds of
    values, so that a compile need not ask; with plain `@rewrite` it is asked about every call.

    Raises:
        PassError: if it is given something else than a function, or than kinds of values.
    """
    kinds = on.__args__ if isinstance(on, UnionType) else (on,)
    if not all(isinstance(kind, type) for kind in kinds):
        raise PassError(
            f"rewrite takes kinds of values in on=…, such as Conv | BatchNorm, not {on!r}"
        )

    def made(function: Any) -> Rewrite:
        if not callable(function):
            raise PassError(
                f"rewrite takes a function from a call to its replacement, not {function!r}"
            )
        named = getattr(function, "__name__", type(function).__name__)
        return Rewrite(cast("Function", function), named, on)

    return made if function is None else made(function)
