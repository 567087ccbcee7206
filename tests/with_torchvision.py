"""Run a module or a script beside torchvision, whatever build of torch there is.

    python -m tests.with_torchvision MODULE [ARGUMENT ...]
    python -m tests.with_torchvision PATH/TO/SCRIPT.py [ARGUMENT ...]

timm imports torchvision, and torchvision declares fake kernels for operators that its compiled
part defines. Beside a torch that this part was not built for (a CPU-only one, say) it does not
load, and the import ends in "operator torchvision::nms does not exist". No model used here needs
those operators: without their fakes the rest of torchvision works.
"""

import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

NAMESPACE = "torchvision::"


def import_torchvision() -> None:
    """Import torchvision, without its fake kernels where it can't be imported otherwise.

    An ordinary import is tried first. Where torchvision is not installed, nothing happens: whoever
    needs it gets the ordinary error.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
    except RuntimeError as error:
        if f"operator {NAMESPACE}" not in str(error):
            raise
        _forget("torchvision")
        with mock.patch.object(torch.library, "register_fake", _register_fake_of_others):
            importlib.import_module("torchvision")


def run(program: str, arguments: list[str]) -> None:
    """Run a module, or a script given by its path, as ``python -m`` or ``python`` would."""
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).resolve().parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


_register_fake = torch.library.register_fake


def _register_fake_of_others(op: Any, func: Callable[..., Any] | None = None, /, **options: Any):
    if isinstance(op, str) and op.startswith(NAMESPACE):
        return func or (lambda decorated: decorated)
    return _register_fake(op, func, **options)


def _forget(package: str) -> None:
    # A failed import leaves the submodules that it had loaded; a second one would trip over them.
    for name in list(sys.modules):
        if name == package or name.startswith(f"{package}."):
            del sys.modules[name]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.with_torchvision MODULE_OR_SCRIPT [ARGUMENT ...]")
    import_torchvision()
    run(sys.argv[1], sys.argv[2:])
