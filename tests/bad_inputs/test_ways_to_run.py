"""What users do with a compiled model: other compilers, exporters, and a part of a larger one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
import reparam
from tests.bad_inputs.outcomes import IMAGE, assert_alike, compiled, conv_norm, norms, same, trained


class Branches(nn.Module):
    """A block with a skip, a size that is computed with, and one that is branched on."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv_norm(), conv_norm()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.one(x) + self.two(x) + x).relu()
        if x.shape[-1] % 2:
            y = nn.functional.pad(y, (0, 1))
        return self.fc(y.flatten(2).mean(2)) / x.shape[0]


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.compile": lambda m: torch.compile(m, backend="eager"),
    "torch.export": lambda m: torch.export.export(m, (IMAGE,)).module(),
    "torch.jit.trace": lambda m: torch.jit.trace(m, IMAGE, check_trace=False),
    "part of a larger one": lambda m: nn.Sequential(nn.Identity(), m),
}


@pytest.mark.filterwarnings("ignore")  # what torch says of its own exporters
@pytest.mark.parametrize("way", WAYS)
def test_way(way: str) -> None:
    model = trained(Branches())
    fused = compiled(model, IMAGE)
    assert norms(fused) == []
    with torch.no_grad():
        assert_alike(fused(IMAGE), WAYS[way](fused)(IMAGE))


def test_a_part_in_place_of_itself() -> None:
    model = trained(nn.Sequential(Branches(), nn.Softmax(-1)))
    whole = trained(nn.Sequential(Branches(), nn.Softmax(-1)))
    whole[0] = reparam.compile(whole[0], IMAGE, passes=passes.DEFAULT)
    same(model, whole)


def test_a_pickle_loads_where_this_library_is_not(tmp_path: Path) -> None:
    """With the report, the attributes and the methods."""

    class Named(Branches):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes = 3

        def forward_features(self, x: Tensor) -> Tensor:
            return self.one(x)

    fused = compiled(trained(Named()), IMAGE, methods=("forward_features",))
    torch.save((fused, IMAGE, fused(IMAGE).detach()), tmp_path / "fused.pt")
    program = """
import sys, torch
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("reparam", "passes", "fastvit_models", "tests"):
            raise ImportError(name)
sys.meta_path.insert(0, Nowhere())
fused, image, expected = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(fused(image), expected)
assert fused.num_classes == 3 and fused.reparam_report["applied"]
assert fused.forward_features(image).shape == image.shape
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "fused.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
