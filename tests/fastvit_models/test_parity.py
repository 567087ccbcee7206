"""The networks compute what the original implementations do, from the original checkpoints."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

import fastvit_models
from tests.vectors import originals

VARIANTS = ["fastvit_t8", "fastvit_sa12", "fastvit_ma36"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_original(variant: str, tmp_path: Path) -> None:
    original = f"apple.{variant}"
    path = tmp_path / "original.safetensors"
    safetensors.torch.save_file(originals.state_dict(original), path)
    model = fastvit_models.create_model(variant).double().eval()
    fastvit_models.load_checkpoint(model, path)
    path.unlink()  # MA36 takes 350 MB in float64, and pytest keeps its folders
    with torch.no_grad():
        found = model(originals.inputs(original))
    expected = originals.logits(original)
    assert torch.norm(found - expected) / torch.norm(expected) < 1e-9
    assert found.argmax() == originals.summary(original)["argmax"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_size_is_that_of_the_original(variant: str) -> None:
    with torch.device("meta"):
        model = fastvit_models.create_model(variant)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert size == originals.summary(f"apple.{variant}")["parameters"]


def test_a_pickled_original_gives_the_same_model(tmp_path: Path) -> None:
    state = originals.state_dict("apple.fastvit_t8")
    safetensors.torch.save_file(state, tmp_path / "original.safetensors")
    torch.save({"state_dict": state, "epoch": 300}, tmp_path / "original.pth.tar")
    models = [fastvit_models.create_model("fastvit_t8").double() for _ in range(2)]
    fastvit_models.load_checkpoint(models[0], tmp_path / "original.safetensors")
    fastvit_models.load_checkpoint(models[1], tmp_path / "original.pth.tar")
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
