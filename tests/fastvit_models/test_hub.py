"""Published weights; a folder as the Hub's cache keeps it stands for the Hub."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import fastvit_models
from fastvit_models import CheckpointError, ModelOptionError, hub
from reparam.testing.randomised import randomised

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `hf_hub_download` looks into while the network is off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def publish(name: str, cache: Path) -> nn.Module:
    """Put timm's model of that name where a download would put it."""
    model = randomised(timm.create_model(name).eval(), IMAGE)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.eps = 1e-5  # which no checkpoint holds
    place = cache / f"models--{hub.repository(name).replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    safetensors.torch.save_file(
        model.state_dict(), place / "snapshots" / ("0" * 40) / "model.safetensors"
    )
    return model


@pytest.mark.parametrize("name", ["fastvit_t8", "repvit_m0_9"])
def test_published_weights(name: str, cache: Path) -> None:
    theirs = publish(name, cache).double()
    ours: Any = fastvit_models.create_model(name, pretrained=True).double()
    assert ours.training
    with torch.no_grad():
        found, expected = ours.eval()(IMAGE.double()), theirs(IMAGE.double())
    assert torch.norm(found - expected) / torch.norm(expected) < 1e-9
    few: Any = fastvit_models.create_model(name, pretrained=True, num_classes=7).double().eval()
    assert few(IMAGE.double()).shape == (1, 7)
    assert torch.equal(few.forward_features(IMAGE.double()), ours.forward_features(IMAGE.double()))
    maps: Any = fastvit_models.create_model(name, pretrained=True, features_only=True).eval()
    own = ours.state_dict()
    shared = [key for key in maps.state_dict() if key.startswith(("stem.", "stages."))]
    assert shared
    assert all(torch.equal(maps.state_dict()[key].double(), own[key].double()) for key in shared)


@pytest.mark.usefixtures("cache")
def test_what_can_not_be_fetched() -> None:
    with pytest.raises(CheckpointError, match=r"of timm/repvgg_a0\.rvgg_in1k can't be fetched"):
        fastvit_models.create_model("repvgg_a0", pretrained=True)
    with pytest.raises(ModelOptionError, match="no weights of repvit_m0_6 are published"):
        fastvit_models.create_model("repvit_m0_6", pretrained=True)
    with pytest.raises(ModelOptionError, match="pretrained weights take 3 channels"):
        fastvit_models.create_model("repvgg_a0", pretrained=True, in_channels=1)
    with pytest.raises(ModelOptionError, match="pretrained weights have a distilled head"):
        fastvit_models.create_model("repvit_m0_9", pretrained=True, distillation=False)
    with pytest.raises(ModelOptionError, match="num_classes is '5': give an integer"):
        fastvit_models.create_model("repvgg_a0", pretrained=True, num_classes="5")


def test_repositories_are_timms() -> None:
    for name in set(fastvit_models.list_models()) - hub.UNPUBLISHED:
        tags = timm.list_pretrained(name)
        assert hub.repository(name).removeprefix("timm/") in tags
