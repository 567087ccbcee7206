"""The plug-in's own tests. One line tests a pass; a few more, what is around it."""

from importlib.metadata import entry_points

import pytest
import torch
from reparam_gains import PIPELINE, GainBlock, Standardize, fold_relu_gain, negative
from torch import nn

import reparam
from reparam.pipelines import GROUP, load
from reparam.testing import CheckFailed

WRONG = (
    negative.drop_epsilon,
    negative.scale_wrong_axis,
    negative.ignore_border,
    negative.forget_readers,
    negative.leave_bias,
)


@pytest.mark.reparam_pass(fold_relu_gain, blocks=[GainBlock], min_fired=30)
def test_fold_relu_gain() -> None:
    """The marker says it all."""


def test_the_model_compiles(assert_compiles) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Standardize(4), GainBlock()).eval()
    x = torch.randn(2, 3, 9, 8)
    fused = assert_compiles(model, x, x[:1, :, :3], passes=PIPELINE, at_least=2)
    layers = [type(layer).__name__ for layer in fused.modules() if not [*layer.children()]]
    assert layers == ["Conv2d", "Conv2d"]


def test_the_pipeline_is_registered() -> None:
    (found,) = entry_points(group=GROUP, name="gains")
    assert load(found) is PIPELINE
    assert PIPELINE[:-1] == reparam.default_passes()


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.name)
def test_wrong_passes_are_shown_by_a_few_lines(rule, check_pass) -> None:
    with pytest.raises(CheckFailed, match="differs by") as caught:
        check_pass(rule)
    assert 0 < caught.value.nodes <= 5
    with pytest.raises(CheckFailed, match="differs by"):
        exec(compile(caught.value.program, "<program>", "exec"), {"__name__": "program"})


def test_a_vacuous_pass_is_told(check_pass) -> None:
    with pytest.raises(CheckFailed, match="look_for_nothing fired on 0 of"):
        check_pass(negative.look_for_nothing, max_examples=10)
