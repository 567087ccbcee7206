"""What is no argument is refused in one sentence, and what compares nothing is no success."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
import reparam
from reparam.errors import PassError, ReparamError, TrainingModeError
from reparam.testing import (
    CheckFailed,
    assert_compiles,
    assert_equivalent,
    blocks,
    check_model,
    check_pass,
    graphs,
)
from tests.testing import wrong_passes as wrong

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

X = torch.randn(2, 3)
NAN = torch.full((2, 3), torch.nan)


def net() -> nn.Module:
    return nn.Linear(3, 4).eval()


class Net(nn.Module):
    """A block."""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_examples": -1}, "max_examples is a whole number of 1 or more, not -1"),
        ({"max_examples": 0}, "max_examples is a whole number of 1 or more, not 0"),
        ({"max_examples": 1.5}, "max_examples is a whole number"),
        ({"max_examples": "3"}, "max_examples is a whole number of 1 or more, not '3'"),
        ({"min_fired": "1"}, "min_fired is a whole number of 0 or more, not '1'"),
        ({"min_fired": -1}, "min_fired is a whole number"),
        ({"min_fired": True}, "min_fired is a whole number"),
        ({"seed": "a"}, "seed is a whole number of 0 or more, not 'a'"),
        ({"seed": 1.5}, "seed is a whole number"),
        ({"seed": -1}, "seed is a whole number"),
        ({"profile_name": ["x"]}, r"profile_name is reparam-pr or reparam-nightly, not \['x'\]"),
        ({"graphs": graphs}, "graphs is a Hypothesis strategy such as graphs\\(\\), not <function"),
        ({"graphs": [3]}, "graphs is a Hypothesis strategy"),
        ({"shapes": 3}, "shapes is a list such as"),
        ({"shapes": []}, "shapes is a list such as"),
        ({"shapes": [(2, 4, 8, 8)]}, "shapes is a list such as"),
        ({"shapes": [((2, 4, 8, 8), 3)]}, "shapes is a list such as"),
        ({"shapes": [((2, 4, 8, -8), 2)]}, "shapes is a list such as"),
        ({"shapes": [((2, 4, 8, "8"), 2)]}, "shapes is a list such as"),
        ({"shapes": [((2, 4, 1, 1, 1, 1), 4)]}, "shapes is a list such as"),
        ({"blocks": Net}, "blocks is a list of classes or functions, not Net"),
        ({"blocks": [Net()]}, r"a block is a class or function that returns a module, not Net\(\)"),
        ({"blocks": [5]}, "a block is a class or function that returns a module, not 5"),
    ],
)
def test_an_option_of_check_pass(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ReparamError, match=reason):
        check_pass(wrong.fold_norm, **options)


def test_a_strategy_of_something_else() -> None:
    from hypothesis import strategies as st

    with pytest.raises(ReparamError, match=r"graphs has to draw reparam.testing.Graph, and drew 3"):
        check_pass(wrong.fold_norm, graphs=st.just(3), max_examples=2)


@pytest.mark.parametrize(
    "rule", [nn.ReLU, nn.ReLU(), print, 3, [wrong.fold_norm], lambda: None, lambda a, b: a]
)
def test_what_is_no_pass(rule: Any) -> None:
    for check in (check_pass, lambda rule: check_model(rule, net(), X)):
        with pytest.raises(PassError, match=r"is no pass; use reparam.rewrite, or a function of a"):
            check(rule)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtypes": ("float8",)}, "dtypes are one or more of the float64, float32, bfloat16"),
        ({"dtypes": ()}, "dtypes are one or more"),
        ({"dtypes": "float32"}, "dtypes are one or more"),
        ({"motifs": ("conv_norm",)}, "motifs are one or more of the values of reparam.testing"),
        ({"motifs": ()}, "motifs are one or more"),
        ({"max_motifs": 0}, "max_motifs is a whole number of 1 or more, not 0"),
    ],
)
def test_an_option_of_graphs(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ReparamError, match=reason):
        graphs(**options)


def test_a_motif_that_is_none() -> None:
    with pytest.raises(ReparamError, match=r"not \('conv_norm',\)"):
        blocks("conv_norm")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, "a", 5])
def test_inputs_that_are_none(given: Any) -> None:
    model = net()
    for check in (
        lambda: assert_equivalent(model, model, given),
        lambda: assert_compiles(model, given),
        lambda: check_model(passes.fold_batchnorm, model, given),
    ):
        with pytest.raises(ReparamError, match="inputs are tensors, or tuples or mappings of them"):
            check()


@pytest.mark.parametrize("given", [None, 5, Net])
def test_a_model_that_is_none(given: Any) -> None:
    for name, check in (
        ("fused", lambda: assert_equivalent(net(), given, X)),
        ("model", lambda: assert_equivalent(given, net(), X)),
        ("model", lambda: assert_compiles(given, X)),
        ("model", lambda: check_model(passes.fold_batchnorm, given, X)),
    ):
        with pytest.raises(ReparamError, match=f"{name} is a torch.nn.Module, not "):
            check()


def test_at_least_is_a_number() -> None:
    with pytest.raises(ReparamError, match="at_least is a whole number of 0 or more, not '2'"):
        assert_compiles(net(), X, at_least="2")  # type: ignore[arg-type]


def test_a_model_in_training_mode_is_told() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    fused = reparam.compile(model.eval())
    model.train()
    with pytest.raises(TrainingModeError, match=r"module '1' \(BatchNorm1d\) is in training mode"):
        assert_equivalent(model, fused, X)


@pytest.mark.parametrize("inputs", [(), (X[:0],), (NAN,), (X[:0], NAN)], ids=len)
def test_nothing_was_compared(inputs: tuple[Any, ...]) -> None:
    model = net()
    for check in (
        lambda: assert_equivalent(model, model, *inputs),
        lambda: assert_compiles(model, *inputs),
        lambda: check_model(passes.fold_batchnorm, model, *inputs),
    ):
        with pytest.raises(CheckFailed, match="nothing was compared: "):
            check()


def test_an_empty_batch_beside_another_example_is_no_mistake() -> None:
    model = net()
    assert_equivalent(model, model, X[:0], X)
    assert_compiles(model, X, X[:0])
    check_model(passes.fold_batchnorm, model, X[:0], X)


class Scaled(nn.Module):
    """Takes keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * scale


def test_inputs_by_name() -> None:
    images = {"x": torch.randn(2, 3, 4, 4), "scale": torch.randn(4, 1, 1)}
    for given in (False, True):
        outcome = check_model(passes.fold_batchnorm, Scaled().eval(), images, given=given)
        assert outcome.applied == 1


def test_a_model_that_refuses_its_first_example() -> None:
    with pytest.raises(CheckFailed, match=r"on \(2, 4\): the model itself does not run on these"):
        check_model(passes.fold_batchnorm, net(), torch.randn(2, 4))
    check_model(passes.fold_batchnorm, net(), X, torch.randn(2, 4))


class Undecided(nn.Module):
    """Branches on numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Exits(nn.Module):
    """Ends the script."""

    def __init__(self) -> None:
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Undecided, "without numbers, it raises .*meta"),
        (Exits, "without numbers, it raises SystemExit: 0"),
    ],
)
def test_why_a_block_takes_no_shape(block: Any, reason: str) -> None:
    with pytest.raises(PassError, match=rf"takes none of the shapes .*given the last, {reason}"):
        check_pass(wrong.fold_norm, blocks=[block])
