"""What becomes of the networks in the compiler: as small as what timm's own fusion leaves."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import fastvit_models
import reparam
from fastvit_models import CheckpointError
from fastvit_models.fused import fitted
from reparam.testing.randomised import randomised
from reparam.verify import EXACT, relative_difference

SMALL = ("fastvit_t8", "repvit_m0_9", "mobileone_s0", "repvgg_a0")
"""The others take long."""

VARIANTS = [
    pytest.param(name, marks=[] if name in SMALL else pytest.mark.long)
    for name in fastvit_models.list_models()
]

FUSED = ("fastvit_sa12", "mobileone_s4", "repvgg_d2se", "repvit_m1_1")
"""With what the small ones do not have: attention, squeeze-and-excite."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def image() -> Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def drawn(name: str, **options: Any) -> nn.Module:
    """A model in float64 with numbers at which a wrong fold shows."""
    return randomised(fastvit_models.create_model(name, **options).eval(), image()).double()


def assert_same(model: nn.Module, fused: nn.Module) -> None:
    with torch.no_grad():
        expected, found = (tree_leaves(m(image().double())) for m in (model, fused))
    for old, new in zip(expected, found, strict=True):
        assert relative_difference(old, new) <= EXACT


@pytest.mark.parametrize("name", VARIANTS)
def test_no_batch_norm_is_left(name: str) -> None:
    timm, utils = pytest.importorskip("timm"), pytest.importorskip("timm.utils.model")
    options: dict[str, Any] = {"distillation": True} if name.startswith("repvit") else {}
    fused = reparam.compile(drawn(name, **options), verify=False)
    assert not any(isinstance(module, NORMS) for module in fused.modules())
    if not timm.is_model(name):
        return
    theirs = size(utils.reparameterize_model(timm.create_model(name).eval()))
    if name.startswith("fastvit"):
        assert size(fused) <= theirs  # it leaves batch norms between layers
    else:
        assert size(fused) == theirs


@pytest.mark.parametrize("name", sorted(SMALL))
def test_compiled_it_computes_the_same(name: str) -> None:
    model = drawn(name)
    assert_same(model, reparam.compile(model, verify=False))


def test_compiled_maps_are_the_same() -> None:
    model = drawn("fastvit_t8", features_only=True)
    assert_same(model, reparam.compile(model, verify=False))


def test_features_and_head_compile_too() -> None:
    model = drawn("repvit_m0_6", num_classes=7)
    methods = ("forward_features", "forward_head")
    fused: Any = reparam.compile(model, verify=False, methods=methods)
    logits = fused.forward_head(fused.forward_features(image().double()))
    assert relative_difference(model(image().double()), logits) <= EXACT
    assert fused.num_classes == 7
    assert fused.feature_info[-1]["reduction"] == 32


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in SMALL else pytest.mark.long) for n in (*SMALL, *FUSED)],
)
def test_a_file_that_timm_fused_goes_into_the_compiled_model(name: str, tmp_path: Path) -> None:
    timm, utils = pytest.importorskip("timm"), pytest.importorskip("timm.utils.model")
    theirs = randomised(timm.create_model(name).eval(), image())
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-5  # which no checkpoint holds
    theirs = utils.reparameterize_model(theirs).double()
    torch.save(theirs.state_dict(), tmp_path / "fused.pth")
    options: dict[str, Any] = {"distillation": True} if name.startswith("repvit") else {}
    model = fastvit_models.create_model(name, **options).eval()
    fused = reparam.compile(model, verify=False).double()
    fastvit_models.load_checkpoint(fused, tmp_path / "fused.pth")
    assert_same(theirs, fused)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match="fused form"):
        fastvit_models.load_checkpoint(model, tmp_path / "fused.pth")
    torch.save(before, tmp_path / "training.pth")
    with pytest.raises(CheckpointError, match="is the training form of a model"):
        fastvit_models.load_checkpoint(fused, tmp_path / "training.pth")
    assert_same(theirs, fused)
    torch.save(fused.state_dict(), tmp_path / "own.pth")
    again = reparam.compile(model, verify=False).double()
    fastvit_models.load_checkpoint(again, tmp_path / "own.pth")
    assert_same(theirs, again)


def test_queries_are_scaled_where_the_model_does_not() -> None:
    """Where it was compiled by fewer passes, what a file holds means the same."""
    names = ("weight", "bias", "running_mean", "running_var")
    file = {f"norm.{name}": torch.ones(32) for name in names}
    file["token_mixer.qkv.weight"] = torch.ones(96, 32)
    scale = 32**-0.5
    for forward, queries in ((lambda x: x * scale, 1.0), (lambda x: x * 2, scale)):
        model = fx.GraphModule(nn.Module(), fx.Tracer().trace(forward))
        weight = fitted({f"0.{key}": tensor for key, tensor in file.items()}, model)[
            "0.token_mixer.qkv.weight"
        ]
        torch.testing.assert_close(weight[0] / weight[-1], torch.full((32,), queries).double())
