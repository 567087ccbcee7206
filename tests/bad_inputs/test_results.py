"""Rows 45 to 48: what a result is good for: flags, copies, files, and a second compile."""

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from tests.bad_inputs.outcomes import (
    IMAGE,
    assert_alike,
    compiled,
    conv_norm,
    same,
    trained,
)
from tests.bad_inputs.programs import PROGRAMS
from tests.fused import same_state, storages
from tests.strategies import drawn


class Block(nn.Module):
    """A little of everything: branches, a skip, a norm that stays, a buffer, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.late = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.register_buffer("table", drawn(8, 4, 1, 1))
        self.register_buffer("hidden", drawn(9, 4, 1, 1), persistent=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(self.wide(x) + self.narrow(x) + x).relu()
        y = self.late(y).sigmoid() * self.table + self.hidden
        return {"y": y, "logits": self.fc(y.mean((2, 3)))}


class Deciding(nn.Module):
    """Stays whole, and so has to be found by whoever loads it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = conv_norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if bool(x.isfinite().all()) else x


def block() -> nn.Module:
    return trained(Block())


def with_a_whole_part() -> nn.Module:
    return trained(nn.Sequential(conv_norm(), Deciding(), nn.ReLU()))


MODELS: tuple[Callable[[], nn.Module], ...] = (block, with_a_whole_part)


def test_row_45_all_frozen() -> None:
    model = block().requires_grad_(False)
    fused = compiled(model)
    assert not any(parameter.requires_grad for parameter in fused.parameters())


def test_row_45_none_frozen() -> None:
    fused = compiled(block())
    assert all(parameter.requires_grad for parameter in fused.parameters())
    assert not any(buffer.requires_grad for buffer in fused.buffers())


def test_row_45_one_layer_frozen() -> None:
    """What is merged with something trainable is; what is not touched keeps its own flag."""
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm(), nn.ReLU(), conv_norm()))
    model[0].requires_grad_(False)
    model[2][0].requires_grad_(False)
    fused = compiled(model)
    flags = {name: parameter.requires_grad for name, parameter in fused.named_parameters()}
    expected = {"0.0": False, "2.0": True, "4.0": True}
    assert flags == {f"{path}.{k}": v for path, v in expected.items() for k in ("weight", "bias")}


def test_row_45_untouched_layer() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    model[2].bias.requires_grad_(False)
    fused = compiled(model)
    assert fused.get_parameter("2.weight").requires_grad
    assert not fused.get_parameter("2.bias").requires_grad


def pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("again", [copy.deepcopy, pickled, saved])
def test_row_46_round_trip(make: Callable[[], nn.Module], again: Any) -> None:
    fused = compiled(make())
    other = again(fused)
    assert isinstance(other, fx.GraphModule)
    # Torch's graph modules order their parts anew when they are copied, and make every buffer a
    # part of the state_dict.
    ours, theirs = fused.state_dict(), other.state_dict()
    assert same_state(*({key: state[key] for key in ours} for state in (ours, theirs)))
    assert theirs.keys() - ours.keys() <= dict(fused.named_buffers()).keys()
    assert set(dict(other.named_buffers())) == set(dict(fused.named_buffers()))
    assert reparam.report(other) == reparam.report(fused)
    assert other.training == fused.training
    with torch.no_grad():
        old, new = fused(IMAGE), other(IMAGE)
    assert_alike(old, new)
    assert not storages(fused) & storages(other)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_row_46_state(make: Callable[[], nn.Module]) -> None:
    """Through a file that holds nothing but tensors, into a compile of other weights."""
    fused = compiled(make())
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    other_model = make()
    with torch.no_grad():
        for parameter in other_model.parameters():
            parameter.mul_(0.5)
    other = compiled(other_model)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert_alike(fused(IMAGE), other(IMAGE))


def test_row_46_to_another_dtype() -> None:
    fused = compiled(block())
    half = copy.deepcopy(fused).to(torch.bfloat16)
    assert half(IMAGE.bfloat16())["y"].dtype == torch.bfloat16
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("make", [*MODELS, *PROGRAMS.values()], ids=lambda make: make.__name__)
def test_row_47_compiled_twice(make: Callable[[], nn.Module]) -> None:
    model = make()
    fused = compiled(model)
    again = compiled(fused)
    assert reparam.report(again).applied == ()
    assert same_state(again.state_dict(), fused.state_dict())
    assert again.code == fused.code
    with torch.no_grad():
        assert_alike(fused(IMAGE), again(IMAGE))


def test_row_47_a_result_as_a_part() -> None:
    model = block()
    fused = compiled(model)
    whole = nn.Sequential(conv_norm(), fused)
    trained(whole[0])
    whole.eval()
    same(whole, fused_again := compiled(whole))
    assert set(fused.state_dict()) == {
        key.removeprefix("1.") for key in fused_again.state_dict() if key.startswith("1.")
    }


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_row_48_the_same_twice(make: Callable[[], nn.Module]) -> None:
    model = make()
    first, second, of_copy = compiled(model), compiled(model), compiled(copy.deepcopy(model))
    for other in (second, of_copy):
        assert same_state(first.state_dict(), other.state_dict())
        assert first.code == other.code
        assert reparam.report(first) == reparam.report(other)


def test_row_48_draws_no_numbers_of_the_caller() -> None:
    model = block()
    before = torch.get_rng_state()
    compiled(model, IMAGE)
    assert torch.equal(torch.get_rng_state(), before)


def test_row_48_whatever_numbers_were_drawn_before() -> None:
    model = block()
    first = compiled(model)
    torch.manual_seed(1234)
    assert same_state(first.state_dict(), compiled(model).state_dict())


PROGRAM = """
import hashlib, reparam
from tests.bad_inputs.test_results import block
fused = reparam.compile(block())
state = "".join(f"{k}{v.numpy().tobytes().hex()}" for k, v in fused.state_dict().items())
print(hashlib.sha256((fused.code + state).encode()).hexdigest())
"""


def test_row_48_in_another_process() -> None:
    """Python orders sets of strings anew in each."""
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == 64


def test_row_48_exactly_as_without_verification() -> None:
    model = block()
    checked, unchecked = compiled(model), compiled(model, verify=False)
    assert same_state(checked.state_dict(), unchecked.state_dict())
