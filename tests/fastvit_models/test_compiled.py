"""What becomes of the networks in the compiler: as small as what timm's own fusion leaves."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import fastvit_models
import passes
import reparam
from fastvit_models import CheckpointError, repvit
from fastvit_models.fastvit import FastViTConfig, create_fastvit
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


def fused_by_timm(name: str) -> nn.Module:
    """timm's own model, fused by timm, in float64 with numbers at which a wrong fold shows."""
    timm, utils = pytest.importorskip("timm"), pytest.importorskip("timm.utils.model")
    model = randomised(timm.create_model(name).eval(), image())
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-5  # which no checkpoint holds
    return utils.reparameterize_model(model).double()


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
    theirs = fused_by_timm(name)
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


def _of_repvit() -> list[tuple[str, str]]:
    """timm counts the blocks by stages, the last of each with the next; the release counts on."""
    rows = [("stem.conv1", "features.0.0"), ("stem.conv2", "features.0.2")]
    number, depths = 1, repvit.VARIANTS["repvit_m0_9"].depths
    for stage, depth in enumerate(depths):
        for block in range(depth):
            place = f"stages.{stage}.blocks.{block - (stage > 0)}"
            if stage > 0 and block == 0:
                place = f"stages.{stage}.downsample"
            elif stage < len(depths) - 1 and block == depth - 1:
                place = f"stages.{stage + 1}.downsample.pre_block"
            rows.append((place, f"features.{number}"))
            number += 1
    return [
        *((rf"^{re.escape(old)}\.", f"{new}.") for old, new in sorted(rows, reverse=True)),
        (r"\.(token_mixer|spatial_downsample)\.(weight|bias)", r".token_mixer.0.\2"),
        (r"\.se\.", ".token_mixer.1."),
        (r"\.channel_downsample\.", ".token_mixer.2."),
        (r"\.(channel_mixer|ffn)\.conv1\.", ".channel_mixer.m.0."),
        (r"\.(channel_mixer|ffn)\.conv2\.", ".channel_mixer.m.2."),
        (r"^head\.", "classifier."),
    ]


STAGES = [
    (r"^stem\.", "stage0."),
    *((rf"^stages\.{stage}\.", f"stage{stage + 1}.") for stage in range(4)),
    (r"^head\.fc\.", "linear."),
]

ORIGINALS = {
    "repvit_m0_9": _of_repvit(),
    "mobileone_s0": STAGES,
    "repvgg_a0": [*STAGES, (r"\.reparam_conv\.", ".rbr_reparam.")],
    "fastvit_sa12": [
        (r"^stem\.", "patch_embed."),
        (r"^(stages\.\d\.downsample)\.proj\.0\.reparam_conv\.", r"\1.proj.0.lkb_reparam."),
        *((rf"^stages\.{stage}\.downsample\.", f"network.{2 * stage - 1}.") for stage in (1, 2, 3)),
        *((rf"^stages\.{stage}\.blocks\.", f"network.{2 * stage}.") for stage in (0, 1, 2)),
        (r"^stages\.3\.pos_emb\.", "network.6."),
        (r"^stages\.3\.blocks\.", "network.7."),
        (r"^final_conv\.", "conv_exp."),
        (r"\.se\.fc1\.", ".se.reduce."),
        (r"\.se\.fc2\.", ".se.expand."),
        (r"\.mlp\.", ".convffn."),
        (r"\.gamma$", ""),
        (r"^head\.fc\.", "head."),
    ],
}
"""By the model that timm has: from its names of the fused form to those of the original's."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SMALL else pytest.mark.long) for n in ORIGINALS]
)
def test_a_file_that_the_original_fused_goes_into_the_compiled_model(
    name: str, tmp_path: Path
) -> None:
    theirs = fused_by_timm(name)
    renamed: dict[str, Tensor] = {}
    for key, tensor in theirs.state_dict().items():
        for old, new in ORIGINALS[name]:
            key = re.sub(old, new, key)  # noqa: PLW2901
        renamed[key] = tensor
    torch.save({"state_dict": renamed}, tmp_path / "fused.pth")
    options: dict[str, Any] = {"distillation": True} if name.startswith("repvit") else {}
    model = fastvit_models.create_model(name, **options).eval()
    fused = reparam.compile(model, verify=False).double()
    fastvit_models.load_checkpoint(fused, tmp_path / "fused.pth")
    assert_same(theirs, fused)


TINY = FastViTConfig((1, 1, 1, 1), 16, 2, attention=True)


def tiny() -> nn.Module:
    model = create_fastvit(TINY, num_classes=5).eval()
    for tensor in randomised(model, image()).state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1)  # no layer scale is next to nothing
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-5
    return model.double()


@pytest.mark.parametrize("left_out", [None, "fold_after_layout", "fold_into_readers"])
def test_what_a_compiled_model_saved_goes_into_one_like_it(
    left_out: str | None, tmp_path: Path
) -> None:
    chosen = tuple(p for p in passes.DEFAULT if left_out is not None and p.name != left_out)
    first, second = (reparam.compile(tiny(), passes=chosen, verify=False) for _ in range(2))
    torch.save(first.state_dict(), tmp_path / "own.pth")
    fastvit_models.load_checkpoint(second, tmp_path / "own.pth")
    assert_same(first, second)
    with pytest.raises(CheckpointError, match=r"does not fit|is the training form"):
        fastvit_models.load_checkpoint(reparam.compile(tiny()), tmp_path / "own.pth")


def test_two_tensors_for_one_place(tmp_path: Path) -> None:
    fused = reparam.compile(tiny(), verify=False)
    state = fused.state_dict()
    for part in ("weight", "bias"):
        tensor = state.pop(f"stem.0.branches.{part}")
        state[f"stem.0.rbr_reparam.{part}"] = state[f"stem.0.reparam_conv.{part}"] = tensor
    torch.save(state, tmp_path / "twice.pth")
    with pytest.raises(
        CheckpointError, match=r"holds stem\.0\.branches\.weight, .* more than once"
    ):
        fastvit_models.load_checkpoint(fused, tmp_path / "twice.pth")


def test_queries_are_scaled_where_the_model_does_not() -> None:
    """Where it was compiled by fewer passes, what a file holds means the same."""
    names = ("weight", "bias", "running_mean", "running_var")
    file = {f"norm.{name}": torch.ones(32) for name in names}
    file["token_mixer.qkv.weight"] = torch.ones(96, 32)
    scale = 32**-0.5
    for forward, queries in ((lambda x: x * scale, 1.0), (lambda x: x * 2, scale)):
        model = fx.GraphModule(nn.Module(), fx.Tracer().trace(forward))
        placed = dict(fitted({f"0.{key}": tensor for key, tensor in file.items()}, model))
        weight = placed["0.token_mixer.qkv.weight"]
        torch.testing.assert_close(weight[0] / weight[-1], torch.full((32,), queries).double())
