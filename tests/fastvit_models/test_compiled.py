"""What becomes of the networks in the compiler: as small as what timm's own fusion leaves."""

from typing import Any

import pytest
import torch
from torch import nn

import fastvit_models
import reparam
from reparam.testing.randomised import randomised

SMALL = {"fastvit_t8", "repvit_m0_9", "mobileone_s0", "repvgg_a0"}
"""The others take long."""

VARIANTS = [
    pytest.param(name, marks=[] if name in SMALL else pytest.mark.long)
    for name in fastvit_models.list_models()
]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_no_batch_norm_is_left(name: str) -> None:
    timm, launched = pytest.importorskip("timm"), pytest.importorskip("timm.utils.model")
    options: dict[str, Any] = {"distillation": True} if name.startswith("repvit") else {}
    fused = reparam.compile(fastvit_models.create_model(name, **options).eval(), verify=False)
    assert not any(isinstance(module, NORMS) for module in fused.modules())
    if not timm.is_model(name):
        return
    theirs = size(launched.reparameterize_model(timm.create_model(name).eval()))
    if name.startswith("fastvit"):
        assert size(fused) <= theirs  # it leaves batch norms between layers
    else:
        assert size(fused) == theirs


@pytest.mark.parametrize("name", sorted(SMALL))
def test_compiled_it_computes_the_same(name: str) -> None:
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    model = randomised(fastvit_models.create_model(name).eval(), x).double()
    fused = reparam.compile(model, verify=False)
    torch.testing.assert_close(fused(x.double()), model(x.double()), rtol=1e-9, atol=1e-9)


def test_compiled_maps_are_the_same() -> None:
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    model = randomised(fastvit_models.create_model("fastvit_t8", features_only=True).eval(), x)
    fused = reparam.compile(model.double(), verify=False)
    torch.testing.assert_close(fused(x.double()), model(x.double()), rtol=1e-9, atol=1e-9)


def test_features_and_head_compile_too() -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = fastvit_models.create_model("repvit_m0_6", num_classes=7).eval()
    model = randomised(model, x).double()
    methods = ("forward_features", "forward_head")
    fused: Any = reparam.compile(model, verify=False, methods=methods)
    logits = fused.forward_head(fused.forward_features(x.double()))
    torch.testing.assert_close(logits, model(x.double()), rtol=1e-9, atol=1e-9)
    assert fused.num_classes == 7
    assert fused.feature_info[-1]["reduction"] == 32
