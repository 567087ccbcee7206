"""The pytest plugin: one line tests a pass or a model.

It stands outside of the package `reparam`, and imports it in tests alone: pytest loads every plugin
at its start, and torch takes seconds to import. What it offers is documented in
`docs/testing_passes.md`.
"""

import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest

VARIABLE = "REPARAM_PROFILE"
"""The environment variable that names the profile; the option sets it."""

MARKERS = {
    "reparam_pass": "(rule, **options): hold a pass to all that a pass promises, as "
    "reparam.testing.check_pass does with these options, before the test is run",
    "reparam_model": "(factory, *inputs, **options): compile what a class or function returns, as "
    "reparam.testing.assert_compiles does with these inputs and options, before the test is run",
}


class Marker:
    """What `pytest.mark.NAME` is here: called with a pass or a factory, it makes a decorator.

    Pytest's own, called with nothing but one function or class, takes that for the test, and
    decorates it: the test would then be what the pass or the factory makes of the real one.
    """

    def __init__(self, name: str) -> None:
        """Take the name."""
        self.with_args: Callable[..., pytest.MarkDecorator] = getattr(pytest.mark, name).with_args

    def __call__(self, *args: Any, **options: Any) -> pytest.MarkDecorator:
        """The decorator with these arguments."""
        return self.with_args(*args, **options)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --reparam-profile."""
    parser.getgroup("reparam").addoption(
        "--reparam-profile",
        metavar="NAME",
        help="how passes are checked: reparam-pr, the same few graphs at every run, or "
        f"reparam-nightly, many others each time (default: ${VARIABLE}, or reparam-pr)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Describe the markers, and pass the profile on, to worker processes too."""
    for name, told in MARKERS.items():
        config.addinivalue_line("markers", name + told)
        setattr(pytest.mark, name, Marker(name))
    if (profile := config.getoption("--reparam-profile")) is not None:
        os.environ[VARIABLE] = profile


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> None:
    """Refuse a test, or a method of a class, that a marker without arguments has taken.

    Raises:
        CollectError: if there is one.
    """
    named: dict[str, Any] = dict(vars(obj)) if isinstance(obj, type) else {name: obj}
    for test, found in named.items():
        if not test.startswith("test") or not isinstance(found, pytest.MarkDecorator):
            continue
        if found.name in MARKERS:
            raise collector.CollectError(f"{test}: {_usage(found.name)}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Do what the markers of a test ask for; then the test is run. Unittest's have them too."""
    if not isinstance(item, pytest.Function) or _skipped(item):
        return
    for marker in item.iter_markers("reparam_pass"):
        _call(_check_pass(), marker)
    for marker in item.iter_markers("reparam_model"):
        _call(_compile_built, marker)


def _skipped(item: pytest.Function) -> bool:
    """Whether unittest is going to skip it, which it finds out when it runs it."""
    return any(getattr(each, "__unittest_skip__", False) for each in (item.cls, item.obj))


def _call(function: Callable[..., Any], marker: pytest.Mark) -> None:
    """Call a function with the arguments of a marker; fail with a sentence if it takes others."""
    try:
        inspect.signature(function).bind(*marker.args, **marker.kwargs)
    except TypeError as error:
        pytest.fail(f"{_usage(marker.name)}: {error}", pytrace=False)
    function(*marker.args, **marker.kwargs)


def _usage(name: str) -> str:
    """How a marker is written."""
    return f"write @pytest.mark.{name}{MARKERS[name].partition(':')[0]}"


def _compile_built(
    factory: Callable[[], Any],
    *inputs: Any,
    passes: Any = None,
    given: bool = True,
    at_least: int = 0,
) -> None:
    """Hold what a factory returns against its compiled form.

    The options are those of `assert_compiles`, written out so that others are told apart.
    """
    from reparam.testing.arguments import built_model

    model = built_model(factory)
    _assert_compiles()(model, *inputs, passes=passes, given=given, at_least=at_least)


@pytest.fixture
def check_pass() -> Callable[..., Any]:
    """`reparam.testing.check_pass`: hold a pass to all that a pass promises."""
    return _check_pass()


@pytest.fixture
def assert_compiles() -> Callable[..., Any]:
    """`reparam.testing.assert_compiles`: compile a model, and assert that it is the same."""
    return _assert_compiles()


@pytest.fixture
def assert_equivalent() -> Callable[..., None]:
    """`reparam.testing.assert_equivalent`: assert that two models compute the same function."""
    from reparam import testing

    return testing.assert_equivalent


def _check_pass() -> Callable[..., Any]:
    from reparam import testing

    return testing.check_pass


def _assert_compiles() -> Callable[..., Any]:
    from reparam import testing

    return testing.assert_compiles
