"""The pytest plugin as a user's repository meets it: it is there, and one line does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PASSES = """
from dataclasses import replace

import reparam
from reparam.algebra import batch_norm_affine, exact
from reparam.composition import compose
from reparam.values import BatchNorm, Conv


def folded(call, eps):
    if not isinstance(call.value, BatchNorm) or not isinstance(call.inputs[0].value, Conv):
        return None
    (source,) = call.inputs
    reparam.require(len(source.readers) == 1, "something else reads the convolution", source.name)
    norm = replace(call.value, eps=call.value.eps * eps)
    return reparam.Replace(compose(batch_norm_affine(norm), exact(source.value)), *source.inputs)


@reparam.rewrite
def fold_norm(call):
    return folded(call, 1)


@reparam.rewrite
def fold_norm_without_epsilon(call):
    return folded(call, 0)
"""

TESTS = """
import pytest
import torch
from torch import nn

from acme_passes import fold_norm, fold_norm_without_epsilon

X = torch.randn(2, 3, 8, 8)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_right(check_pass):
    check_pass(fold_norm, max_examples=10)


def test_wrong(check_pass):
    check_pass(fold_norm_without_epsilon, max_examples=10)


@pytest.mark.reparam_pass(fold_norm, max_examples=10)
def test_right_marked():
    pass


@pytest.mark.reparam_pass(fold_norm_without_epsilon, max_examples=10)
def test_wrong_marked():
    pass


def test_model(assert_compiles):
    assert_compiles(net().eval(), X, passes=(fold_norm,), at_least=1)


@pytest.mark.reparam_model(net, X, passes=(fold_norm_without_epsilon,), at_least=1)
def test_model_marked():
    pass


def test_equivalent(assert_equivalent):
    assert_equivalent(net().eval(), nn.Identity(), X)
"""


MISUSED = """
import unittest

import pytest
import torch
from torch import nn

from acme_passes import fold_norm, fold_norm_without_epsilon

X = torch.randn(2, 3, 8, 8)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def five():
    return 5


def plain_pass(graph_module):
    raise ZeroDivisionError("of all things")


@pytest.mark.reparam_pass(plain_pass)
def test_plain():
    pass


@pytest.mark.reparam_model(Net)
def test_no_inputs():
    pass


@pytest.mark.reparam_model(Net, X)
def test_class():
    pass


@pytest.mark.reparam_pass()
def test_empty():
    pass


@pytest.mark.reparam_pass(fold_norm, fold_norm)
def test_two():
    pass


@pytest.mark.reparam_pass(fold_norm, examples=3)
def test_unknown():
    pass


@pytest.mark.reparam_model(net(), X)
def test_instance():
    pass


@pytest.mark.reparam_model(five, X)
def test_five():
    pass


@pytest.mark.reparam_model(net, X, at_least="a")
def test_at_least():
    pass


@pytest.mark.reparam_model(net, X, atleast=2)
def test_unknown_of_model():
    pass


class OfUnittest(unittest.TestCase):
    @pytest.mark.reparam_pass(fold_norm_without_epsilon, max_examples=10)
    def test_wrong_method(self):
        pass

    @pytest.mark.reparam_pass(fold_norm_without_epsilon, max_examples=10)
    @unittest.skip("not now")
    def test_skipped_method(self):
        pass
"""

WRITE_PASS = "write @pytest.mark.reparam_pass(rule, **options): "
WRITE_MODEL = "write @pytest.mark.reparam_model(factory, *inputs, **options): "

FAILURES = {
    "test_plain": "plain_pass: rolled back: the pass failed with ZeroDivisionError: of all things",
    "test_no_inputs": "nothing was compared: no inputs were given",
    "test_empty": WRITE_PASS + "missing a required argument: 'rule'",
    "test_two": WRITE_PASS + "too many positional arguments",
    "test_unknown": WRITE_PASS + "got an unexpected keyword argument 'examples'",
    "test_instance": "a model is given by a class or function that returns it, not by Sequential(",
    "test_five": "what five returns is a torch.nn.Module, not 5",
    "test_at_least": "at_least is a whole number of 0 or more, not 'a'",
    "test_unknown_of_model": WRITE_MODEL + "got an unexpected keyword argument 'atleast'",
    "test_wrong_method": "fold_norm_without_epsilon, asked about bn1",
}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_line_does(tmp_path: Path) -> None:
    (tmp_path / "acme_passes.py").write_text(PASSES)
    (tmp_path / "test_acme.py").write_text(TESTS)
    done = run(tmp_path, "--strict-markers", "-rfp", "-W", "error::pytest.PytestWarning")
    verdicts = {
        line.split("::")[1].split()[0]: line.split()[0]
        for line in done.stdout.splitlines()
        if line.startswith(("PASSED", "FAILED"))
    }
    assert verdicts == {
        "test_right": "PASSED",
        "test_wrong": "FAILED",
        "test_right_marked": "PASSED",
        "test_wrong_marked": "FAILED",
        "test_model": "PASSED",
        "test_model_marked": "FAILED",
        "test_equivalent": "FAILED",
    }, done.stdout
    assert "from acme_passes import fold_norm_without_epsilon" in done.stdout
    assert "0 rewrites were made, not 1" in done.stdout


def test_what_markers_are_not_given_and_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "acme_passes.py").write_text(PASSES)
    (tmp_path / "test_misused.py").write_text(MISUSED)
    done = run(tmp_path, "--strict-markers", "-rfps", "-W", "error::pytest.PytestWarning")
    told, _, summary = done.stdout.partition("short test summary info")
    assert "PASSED test_misused.py::test_class" in summary, done.stdout
    assert f"{len(FAILURES)} failed, 1 passed, 1 skipped" in summary
    for test, reason in FAILURES.items():
        (shown,) = re.findall(rf"__ \S*{test} __(.*?)(?=\n__+ |$)", told, re.DOTALL)
        assert reason in shown, shown
    assert "TypeError" not in done.stdout


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.reparam_pass\ndef test_bare():\n    pass\n",
        "class TestAll:\n    @pytest.mark.reparam_pass\n    def test_bare(self):\n        pass\n",
        "class All(unittest.TestCase):\n"
        "    @pytest.mark.reparam_pass\n    def test_bare(self):\n        pass\n",
    ],
)
def test_a_marker_without_arguments_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "test_bare.py").write_text(f"import unittest\n\nimport pytest\n\n\n{source}")
    done = run(tmp_path)
    assert done.returncode == 2, done.stdout
    assert "test_bare: write @pytest.mark.reparam_pass(rule, **options)" in done.stdout


def test_it_loads_neither_torch_nor_reparam(tmp_path: Path) -> None:
    (tmp_path / "test_modules.py").write_text(
        "import sys\n\n\ndef test_modules(request):\n"
        '    assert request.config.pluginmanager.hasplugin("reparam")\n'
        '    assert {"torch", "reparam", "hypothesis"}.isdisjoint(sys.modules) \n'
    )
    done = run(tmp_path, "-p", "no:hypothesispytest")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("profile", "expected"), [("reparam-nightly", "5000"), ("weekly", "no profile is named")]
)
def test_the_profile_is_chosen_by_an_option(tmp_path: Path, profile: str, expected: str) -> None:
    (tmp_path / "test_profile.py").write_text(
        "def test_profile():\n"
        "    from reparam.testing.profiles import profile\n"
        "    print(profile().max_examples, profile().random)\n"
    )
    done = run(tmp_path, "-s", "--reparam-profile", profile)
    assert expected in done.stdout, done.stdout


def test_it_is_described(tmp_path: Path) -> None:
    assert "@pytest.mark.reparam_pass(rule, **options)" in run(tmp_path, "--markers").stdout
    assert "--reparam-profile=NAME" in run(tmp_path, "--help").stdout
