"""What a pass is: a pure function from a call to its replacement."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, overload

from reparam.errors import Declined, PassError, require
from reparam.graph import Apply, Call, Expression
from reparam.values import Value

Function = Callable[[Call], "Replace | None"]

__all__ = ["Declined", "Replace", "Rewrite", "require", "rewrite"]


class Replace:
    """What to put where.

    `Replace(value, *inputs)` puts the value, applied to calls or to further applications, in the
    place of the call that the pass was given. `Replace({call: expression, ...})` replaces several
    calls at once; `Replace(other_call)` passes another result on.
    """

    def __init__(self, what: Value | Call | Mapping[Call, Expression], *inputs: Any) -> None:
        """Build it from a value and its inputs, from a call, or from a mapping."""
        self._what = what
        self._inputs = inputs

    def roots(self, call: Call) -> dict[Call, Expression]:
        """The expression for each call that is replaced, `call` being the one matched.

        Raises:
            PassError: if it is built from anything else.
        """
        match self._what:
            case Value():
                return {call: Apply(self._what, self._inputs)}
            case Call():
                return {call: self._what}
            case Mapping():
                return dict(self._what)
            case _:
                raise PassError(f"Replace takes a value, a call or a mapping, not {self._what!r}")


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
    """

    def made(function: Any) -> Rewrite:
        return Rewrite(function, function.__name__, on)

    return made if function is None else made(function)
