"""The networks compute what the original implementations do, from the original checkpoints."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import fastvit_models
from reparam.testing.randomised import randomised
from tests.vectors import originals

ORIGINALS = [
    *("apple.fastvit_t8", "apple.fastvit_sa12", "apple.fastvit_ma36"),
    *("thu.repvit_m0_9", "thu.repvit_m0_9_distillation", "thu.repvit_m1_1"),
    *("apple.mobileone_s0", "apple.mobileone_s4"),
    *("dingxiaoh.repvgg_a0", "dingxiaoh.repvgg_b1g4", "dingxiaoh.repvgg_d2se"),
]

LARGE = {"apple.fastvit_ma36", "dingxiaoh.repvgg_d2se"}

TIMM = [
    *(f"fastvit_{size}" for size in ("t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36")),
    *(f"repvit_{size}" for size in ("m0_9", "m1_0", "m1_1", "m1_5", "m2_3")),
    *(f"mobileone_s{size}" for size in range(5)),
    *(f"repvgg_{size}" for size in ("a0", "a1", "a2", "b0", "b1", "b1g4", "b2g4", "d2se")),
]
SMALL = {"fastvit_t8", "repvit_m0_9", "mobileone_s0", "repvgg_a0"}
"""The others of timm's take long."""


def create(original: str) -> nn.Module:
    name = original.partition(".")[2]
    if name.endswith("_distillation"):
        name = name.removesuffix("_distillation")
        return fastvit_models.create_model(name, distillation=True)
    return fastvit_models.create_model(name)


def assert_parity(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.norm(found - expected) / torch.norm(expected) < 1e-9


@pytest.mark.parametrize(
    "original", [pytest.param(o, marks=pytest.mark.long if o in LARGE else []) for o in ORIGINALS]
)
def test_logits_are_those_of_the_original(original: str, tmp_path: Path) -> None:
    path = tmp_path / "original.safetensors"
    safetensors.torch.save_file(originals.state_dict(original), path)
    model = create(original).double().eval()
    fastvit_models.load_checkpoint(model, path)
    path.unlink()  # the largest take more than a gigabyte, and pytest keeps its folders
    with torch.no_grad():
        found = model(originals.inputs(original))
    assert_parity(found, originals.logits(original))
    assert found.argmax() == originals.summary(original)["argmax"]


@pytest.mark.parametrize("original", ORIGINALS)
def test_size_is_that_of_the_original(original: str) -> None:
    with torch.device("meta"):
        model = create(original)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert size == originals.summary(original)["parameters"]


def test_size_of_the_one_without_a_vector() -> None:
    """As the release's own table of RepViT-M0.6 counts it, 2.5 M."""
    with torch.device("meta"):
        model = fastvit_models.create_model("repvit_m0_6")
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_487_292


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SMALL else pytest.mark.long) for n in TIMM]
)
def test_timms_weights_give_what_timm_computes(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs = randomised(timm.create_model(name).eval(), x).double()
    for layer in theirs.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eps = 1e-5  # which no checkpoint holds
    path = tmp_path / "timm.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    options = {"distillation": True} if name.startswith("repvit") else {}
    ours = fastvit_models.create_model(name, **options).double().eval()
    fastvit_models.load_checkpoint(ours, path)
    path.unlink()
    with torch.no_grad():
        assert_parity(ours(x.double()), theirs(x.double()))


def test_a_pickled_original_gives_the_same_model(tmp_path: Path) -> None:
    state = originals.state_dict("apple.fastvit_t8")
    safetensors.torch.save_file(state, tmp_path / "original.safetensors")
    torch.save({"state_dict": state, "epoch": 300}, tmp_path / "original.pth.tar")
    models = [fastvit_models.create_model("fastvit_t8").double() for _ in range(2)]
    fastvit_models.load_checkpoint(models[0], tmp_path / "original.safetensors")
    fastvit_models.load_checkpoint(models[1], tmp_path / "original.pth.tar")
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
