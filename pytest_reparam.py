"""The pytest plugin: one line tests a pass or a model.

It stands outside of the package `reparam`, and imports it in tests alone: pytest loads every plugin
at its start, and torch takes seconds to import. What it offers is documented in
`docs/testing_passes.md`.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

VARIABLE = "REPARAM_PROFILE"
"""The environment variable that names the profile; the option sets it."""

MARKERS = (
    "reparam_pass(rule, **options): hold a pass to all that a pass promises, as "
    "reparam.testing.check_pass does with these options, before the test is run",
    "reparam_model(factory, *inputs, **options): compile what a class or function returns, as "
    "reparam.testing.assert_compiles does with these inputs and options, before the test is run",
)


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
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if (profile := config.getoption("--reparam-profile")) is not None:
        os.environ[VARIABLE] = profile


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Do what the markers of a test ask for; then the test itself is run."""
    for marker in pyfuncitem.iter_markers("reparam_pass"):
        _check_pass()(*marker.args, **marker.kwargs)
    for marker in pyfuncitem.iter_markers("reparam_model"):
        factory, *inputs = marker.args
        _assert_compiles()(factory().eval(), *inputs, **marker.kwargs)


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
