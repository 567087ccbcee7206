"""Passes that answer nonsense, or end the script, are wrong, and are told so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from reparam.errors import PassError
from reparam.graph import Apply, Call
from reparam.rewrite import Replace, require
from reparam.testing import MOTIFS, CheckFailed, blocks, check_model, check_pass
from reparam.values import IDENTITY, BatchNorm
from tests.testing.wrong_passes import Moody

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

NORMS = blocks(MOTIFS["conv_norm"])


def exits(call: Any) -> Any:
    raise SystemExit(0)


def declines_and_exits() -> Callable[[Call], None]:
    asked: list[Call] = []

    def declines_first(call: Call) -> None:
        asked.append(call)
        if len(asked) % 2:
            require(False, "it is the first time")
        raise SystemExit(0)

    return declines_first


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (lambda call: Replace({call: 3}), "it raised PassError: a call is replaced by a call or"),
        (
            lambda call: Replace({3: call}),
            "it raised PassError: Replace takes a mapping from call",
        ),
        (lambda call: Replace(IDENTITY, 7), "it raised PassError: sum is applied to (7,), among"),
        (
            lambda call: Replace(7),
            "it raised PassError: Replace takes a value, a call or a mapping",
        ),
        (lambda call: Replace({}), "it raised PassError: Replace was given an empty mapping"),
        (
            lambda call: Replace(call, call),
            "it raised PassError: Replace takes inputs with a value",
        ),
        (
            lambda call: Replace({call: Apply(3, (call,))}),
            "it raised PassError: Apply takes a value, not 3",
        ),
        (
            lambda call: Replace(IDENTITY, Apply(IDENTITY, call)),
            "it raised PassError: Apply takes a tuple of inputs, not bn",
        ),
        (Replace, "its replacement reads what it replaces"),
        (lambda call: require(False, None), "it declines for None, not for a reason in words"),
        (lambda call: 3, "it raised TypeError: it returned int, not a Replace or None"),
        (exits, "it raised SystemExit: 0"),
        (declines_and_exits(), "asked twice about one call, it answers differently"),
    ],
)
def test_a_rewrite_that_answers_nonsense(answer: Callable[[Call], Any], finding: str) -> None:
    def nonsense(call: Call) -> Any:
        return answer(call) if isinstance(call.value, BatchNorm) else None

    with pytest.raises(CheckFailed) as caught:
        check_pass(reparam.rewrite(nonsense), graphs=NORMS, max_examples=4)
    assert finding in caught.value.finding


def test_a_torch_fx_pass_that_exits() -> None:
    with pytest.raises(CheckFailed, match="exits: rolled back: the pass failed with SystemExit: 0"):
        check_pass(exits, graphs=NORMS, max_examples=4)


def test_an_interrupt_is_none_of_it() -> None:
    def interrupted(call: Call) -> None:
        raise KeyboardInterrupt

    for rule in (reparam.rewrite(interrupted), interrupted):
        with pytest.raises(KeyboardInterrupt):
            check_pass(rule, graphs=NORMS, max_examples=4)


def test_what_rewrite_is_not_given() -> None:
    with pytest.raises(PassError, match="takes a function from a call to its replacement, not 5"):
        reparam.rewrite(5)
    with pytest.raises(PassError, match="rewrite takes kinds of values in on=…"):
        reparam.rewrite(on=5)
    assert reparam.rewrite(Moody()).name == "Moody"


class Masked(nn.Module):
    """Keeps a mask that it does not save, and a plain tensor; it can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.plain = torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask * self.plain if x.sum() > 0 else x * self.mask


@pytest.mark.parametrize("name", ["mask", "plain"])
def test_a_tensor_that_is_not_saved_is_the_models_too(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), Masked()).eval()

    def reach(graph_module: fx.GraphModule) -> fx.GraphModule:
        getattr(model[1], name).zero_()
        return graph_module

    with pytest.raises(CheckFailed, match=f"reach changes the model it is run on: 1.{name}"):
        check_model(reach, model, torch.ones(2, 3))


def test_a_rewrite_that_writes_to_a_layer_that_is_not_traced() -> None:
    def reach(call: Call) -> None:
        target = getattr(call.value, "target", None)
        if isinstance(target, Masked):
            target.mask.zero_()

    model = nn.Sequential(nn.Linear(3, 3), Masked()).eval()
    with pytest.raises(CheckFailed, match="it writes to a weight that it was shown"):
        check_model(reparam.rewrite(reach), model, torch.ones(2, 3))
