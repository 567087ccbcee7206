"""Folding is done on the CPU, whatever device a model is on and new tensors are made on."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passes
import reparam
from reparam.algebra import batch_norm_affine
from reparam.devices import device_of, held_on_cpu, on_cpu
from reparam.lift_modules import batch_norm
from reparam.testing import graphs, randomised
from reparam.testing.profiles import sample
from reparam.traits import NONE, traits

ROOT = Path(__file__).parents[2]


class Block(nn.Module):
    """Branches, borders of numbers, and a norm before attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.skip = nn.BatchNorm2d(4)
        self.tokens = nn.LayerNorm(4)
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.5) / 0.25
        x = self.norm(self.conv(F.pad(x, (1, 1, 1, 1), value=0.5))) + self.skip(x)
        q, k, v = self.qkv(self.tokens(x.flatten(2).transpose(1, 2))).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)


def test_another_default_device_changes_nothing() -> None:
    example = (torch.randn(2, 4, 8, 8),)
    model = randomised(Block().eval(), *example)
    plain = reparam.compile(model, example, passes=passes.DEFAULT, verify="proof")
    with torch.device("meta"):
        fused = reparam.compile(model, example, passes=passes.DEFAULT, verify="proof")
    assert fused.code == plain.code
    told, expected = reparam.report(fused), reparam.report(plain)
    assert list(map(str, told.missed)) == list(map(str, expected.missed))
    assert [one.proof for one in told.applied] == [one.proof for one in expected.applied]
    for name, tensor in plain.state_dict().items():
        assert torch.equal(fused.state_dict()[name], tensor)


def test_neither_on_generated_graphs() -> None:
    for graph in sample(graphs(), 20, seed=3):
        model = graph.build()
        plain = reparam.compile(model, passes=passes.DEFAULT)
        with torch.device("meta"):
            assert reparam.compile(model, passes=passes.DEFAULT).code == plain.code


def test_a_model_on_meta_stays_there() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GELU()).eval()
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert {tensor.device.type for tensor in fused.state_dict().values()} == {"meta"}
    assert len(fused.state_dict()) == 2
    assert device_of(fused) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_a_number_on_the_cpu_goes_with_any_device() -> None:
    number, weight = torch.tensor(0.5), torch.empty(2, device="meta")
    assert traits([number, weight], False).device == torch.device("meta")
    assert traits([number], False).device is None


def test_a_value_that_remembers_what_it_computed_is_moved() -> None:
    norm = batch_norm(*(torch.ones(3) for _ in range(4)), 1e-5, 2)
    assert norm.exact_scale.shape == (3,)
    assert held_on_cpu(norm) is norm


def test_weights_of_two_devices_are_not_mixed() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    model[1].to("meta")
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert "the devices differ" in str(reparam.report(fused))
    assert fused.state_dict()["1.weight"].device.type == "meta"


def test_what_is_on_the_cpu_or_nowhere_is_not_copied() -> None:
    norm = batch_norm(*(torch.ones(3) for _ in range(4)), 1e-5, 2)
    assert held_on_cpu(norm) is norm
    assert batch_norm_affine(norm).weight.device.type == "cpu"
    nowhere = torch.empty(2, device="meta")
    assert on_cpu(nowhere) is nowhere


def test_traits_know_the_device() -> None:
    assert traits([torch.empty(2, device="meta")], False).device == torch.device("meta")
    assert (NONE | traits([torch.ones(2)], True)).device == torch.device("cpu")


@pytest.mark.long
@pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("ninja")), reason="needs a C++ compiler and ninja"
)
def test_on_a_second_device_the_same_graphs_become_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.second_device", "--count", "80"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "{'same': 82}" in done.stdout
