"""Modes of torch that a trace would freeze or lose: autocast, and whether gradients are wanted.

A forward is traced with gradients off, as `no_grad` has it: where they are on, it turned them on.
"""

import inspect
import os
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast, no_type_check
from unittest import mock

import torch
from torch.fx.proxy import TraceError

from reparam import known

TORCHS: Any = known.TORCH._C
"""Where the questions are that nobody stands before, while a forward is traced."""

FOLDER = f"{Path(torch.__file__).parent}{os.sep}"
"""Where torch's own code is, which may ask."""

GRADIENTS = "it asks whether gradients are wanted"
AUTOCAST = "it asks whether it runs under autocast"

QUESTIONS = {
    "is_grad_enabled": GRADIENTS,
    "is_inference_mode_enabled": GRADIENTS,
    **{
        name: AUTOCAST for name in vars(torch) if name.startswith(("is_autocast_", "get_autocast_"))
    },
}
"""What a forward may ask torch itself, by the reason for which it then stays."""

OF_WEIGHTS = ("requires_grad", "is_leaf", "retains_grad")
"""What a weight has, whether gradients are wanted or not."""

KINDS = ("cpu", "cuda", "mps", "xpu")
"""Of the devices that autocast is known for."""

Autocast = tuple[bool, ...]


def autocast() -> Autocast:
    """Whether calls run under autocast, on each kind of device."""
    return tuple(map(TORCHS.is_autocast_enabled, KINDS))


def require_modes(before: Autocast) -> None:
    """Refuse a call in another mode than that in which the trace began.

    Raises:
        TraceError: saying in which.
    """
    if autocast() != before:
        raise TraceError("it runs under autocast")
    if TORCHS.is_grad_enabled():
        raise TraceError("it turns gradients on")


def require_no_gradient(name: str, of_weight: bool) -> None:
    """Refuse an attribute of a tensor that depends on whether gradients are wanted.

    Raises:
        TraceError: naming it. Only a weight has some of them in any case.
    """
    if name in ("grad", "grad_fn") or (name in OF_WEIGHTS and not of_weight):
        raise TraceError(f"it asks for the {name} of a tensor")


@contextmanager
def modes_asked() -> Generator[None]:
    """Refuse a forward that asks torch for a mode, in the thread that traces."""
    thread = threading.get_ident()

    def refused(own: Callable[..., Any], reason: str) -> Callable[..., Any]:
        @no_type_check  # a check of annotations would stand between it and the code that asks
        def answer(*args: Any, **kwargs: Any) -> Any:
            asking = cast("Any", inspect.currentframe()).f_back.f_code.co_filename
            if threading.get_ident() != thread or asking.startswith(FOLDER):
                return own(*args, **kwargs)
            raise TraceError(reason)

        return cast("Callable[..., Any]", answer)

    with ExitStack() as stack:
        for name, reason in QUESTIONS.items():
            patch = refused(getattr(torch, name), reason)
            stack.enter_context(mock.patch.object(torch, name, patch))
        yield
