"""Where a trace was stopped: the line of the user's that did it, from its package on."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reparam import places
from reparam.places import calling_line, explained

HERE = "tests/reparam/test_places.py"


class Model(nn.Module):
    """A forward, in which torch fails."""

    def forward(self, x: Any) -> Any:
        return torch.relu(x)


FORWARD = inspect.getsourcelines(Model.forward)[1]


def raised(function: Any, *args: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        function(*args)
    error = caught.value
    assert error.__traceback__ is not None
    return error.with_traceback(error.__traceback__.tb_next)  # without the frame of this function


def test_the_last_line_of_the_users_and_the_first_of_the_message() -> None:
    said = explained(Model(), raised(Model(), "no tensor"))
    assert said.startswith(f"{HERE}:{FORWARD + 1}: relu(): argument 'input'")
    assert "\n" not in said


def test_without_a_line_of_the_users_the_forward_is_named() -> None:
    error = raised(torch.relu, "no tensor").with_traceback(None)
    assert explained(Model(), error).startswith(f"{HERE}:{FORWARD}: relu(): argument")
    assert explained(Model(), "it does so") == f"{HERE}:{FORWARD}: it does so"


def test_a_decorated_forward_is_looked_into() -> None:
    class Decorated(Model):
        forward = torch.no_grad()(Model.forward)

    assert explained(Decorated(), "it does so") == f"{HERE}:{FORWARD}: it does so"


def test_a_forward_without_code() -> None:
    class Callable:
        def __call__(self, x: Any) -> Any:
            return x

    class Odd(nn.Module):
        forward = Callable()

    assert explained(Odd(), "it does so") == "it does so"


def test_code_without_a_file_is_no_users() -> None:
    class Made(nn.Module):
        exec("def forward(self, x):\n    return x.missing")

    said = explained(Made(), raised(Made(), 3))
    assert "'int' object has no attribute 'missing'" in said
    assert "<string>:2" not in said


def test_the_init_file_of_a_package_is_told_from_others(tmp_path: Path) -> None:
    path = tmp_path / "package" / "__init__.py"
    path.parent.mkdir()
    path.write_text("from torch import nn\n\nclass Inner(nn.Module):\n    forward = lambda _: 0\n")
    spec = importlib.util.spec_from_file_location("package", path)
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    assert explained(package.Inner(), "it does so") == "package/__init__.py:4: it does so"


def test_the_line_that_runs() -> None:
    line = inspect.stack()[0].lineno + 1
    assert calling_line() == f"{HERE}:{line}"


def test_no_line_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_is_users", lambda _: False)
    assert calling_line() == "the forward"
