"""A property that is computed once, when it is first asked for."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class cached(Generic[T]):  # noqa: N801 - it is used as the function that functools has
    """What `functools.cached_property` does, without the lock that it takes up to Python 3.11."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        """Take the function of the instance, after which the property is called."""
        self._function, self._name = function, function.__name__
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> T:
        """The result, which from now on is an attribute of the instance."""
        result = instance.__dict__[self._name] = self._function(instance)
        return result
