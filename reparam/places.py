"""Where in a user's code a trace was stopped: file, line and reason."""

import inspect
import os
import traceback
from types import FrameType
from typing import Any, cast

from reparam.errors import first_line

NO_CODE = "a ScriptModule has no Python code left"
"""Why one can't be traced."""

OWN = ("torch", "reparam", "jaxtyping", "beartype")
"""Packages that are no user's: beside torch and this one, what checks annotations at run time."""


def explained(module: Any, cause: Exception | str) -> str:
    """File, line and reason of what stopped a trace of a module's forward.

    Args:
        module: whose forward it is.
        cause: what was raised; or what the forward does that no single line stands for.
    """
    if isinstance(cause, Exception):
        places = [(f, line) for f, line in traceback.walk_tb(cause.__traceback__) if _is_users(f)]
        if places:
            return f"{_line(*places[-1])}: {first_line(cause)}"
        cause = first_line(cause)
    forward: Any = inspect.unwrap(cast("Any", type(module)).forward)
    code = getattr(forward, "__code__", None)
    if code is None:
        return cause
    return f"{_short(code.co_filename, forward.__module__ or '')}:{code.co_firstlineno}: {cause}"


def calling_line() -> str:
    """File and line of the user's code that is running."""
    frame = inspect.currentframe()
    while frame is not None and not _is_users(frame):
        frame = frame.f_back
    return "the forward" if frame is None else _line(frame, frame.f_lineno)


def _is_users(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package not in OWN and not frame.f_code.co_filename.startswith("<")


def _line(frame: FrameType, number: int) -> str:
    return f"{_short(frame.f_code.co_filename, frame.f_globals.get('__name__', ''))}:{number}"


def _short(path: str, module: str) -> str:
    """A path from the folder of its package on: a report may be read on another machine."""
    parts = path.replace(os.sep, "/").split("/")
    depth = module.count(".") + 1 + (parts[-1] == "__init__.py")
    return "/".join(parts[-depth:])
