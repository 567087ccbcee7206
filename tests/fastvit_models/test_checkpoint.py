"""Checkpoints are loaded whole, or refused with the model left as it was."""

import argparse
import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fastvit_models
from fastvit_models import CheckpointError, load_checkpoint
from fastvit_models.backbone import Backbone
from fastvit_models.fastvit import FastViTConfig, create_fastvit
from tests.vectors import originals

CONFIG = FastViTConfig((1, 1, 1, 1), 16, 2, attention=True)


def classifier() -> nn.Module:
    return create_fastvit(CONFIG, num_classes=5)


def backbone() -> nn.Module:
    return create_fastvit(CONFIG, features_only=True)


@pytest.fixture
def model() -> nn.Module:
    return classifier()


@pytest.fixture
def state() -> dict[str, Tensor]:
    """The state dict of another model of the same form, no tensor of it constant."""
    return random_state(classifier())


def random_state(model: nn.Module) -> dict[str, Tensor]:
    drawn = {
        key: torch.randn_like(value) if value.is_floating_point() else torch.full_like(value, 7)
        for key, value in model.state_dict().items()
    }
    return {k: v.abs() if k.endswith("running_var") else v for k, v in drawn.items()}


def save(content: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(content, dict)
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_holds(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    assert model.state_dict().keys() == state.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def refusal(model: nn.Module, path: Path) -> str:
    """The sentence with which the file is refused; the model must be as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    assert_holds(model, before)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("name", ["own.safetensors", "own.pth"])
def test_own_names(model: nn.Module, state: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    load_checkpoint(model, save(state, tmp_path / name))
    assert_holds(model, state)
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("variant", fastvit_models.list_models())
@pytest.mark.parametrize("features_only", [False, True])
def test_own_names_are_not_renamed(variant: str, features_only: bool) -> None:
    with torch.device("meta"):
        model = fastvit_models.create_model(variant, features_only=features_only)
    assert isinstance(model, Backbone)
    keys = list(model.state_dict())
    assert model.convert_keys(keys) == dict(zip(keys, keys, strict=True))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 300, "metric": 76.2},
        lambda state: {"model": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"state_dict": {"stem": torch.ones(1)}, "state_dict_ema": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {key: nn.Parameter(v, v.is_floating_point()) for key, v in state.items()},
        lambda state: {"state_dict_ema": {}, "state_dict": state},
        lambda state: (
            {f"module.{k}": v for k, v in state.items()} | {"n_averaged": torch.tensor(3)}
        ),
    ],
    ids=[
        *("state_dict", "model", "twice", "ema", "module", "compiled", "parameters"),
        *("empty ema", "averaged"),
    ],
)
def test_wrapped_state_dicts(model: nn.Module, state, tmp_path: Path, wrap) -> None:
    load_checkpoint(model, save(wrap(state), tmp_path / "wrapped.pth"))
    assert_holds(model, state)


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, lambda model: torch.compile(nn.DataParallel(model))],
    ids=["parallel", "compiled", "both"],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_wrapped_model(
    model: nn.Module,
    state: dict[str, Tensor],
    tmp_path: Path,
    wrap: Callable[[nn.Module], nn.Module],
    prefix: str,
) -> None:
    content = {prefix + key: value for key, value in state.items()}
    load_checkpoint(wrap(model), save(content, tmp_path / "own.pth"))
    assert_holds(model, state)


def test_a_wrapper_that_keeps_more_than_a_model(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(model)
    message = refusal(averaged, save(state, tmp_path / "own.pth"))
    assert "load it into the model inside" in message


def test_the_backbone_of_a_segmenter(tmp_path: Path) -> None:
    model = backbone()
    state = random_state(model)
    segmenter = {f"backbone.{key}": value for key, value in state.items()}
    segmenter["decode_head.conv_seg.weight"] = torch.ones(150, 256, 1, 1)
    load_checkpoint(model, save({"state_dict": segmenter}, tmp_path / "segmenter.pth"))
    assert_holds(model, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_stays_the_models(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    load_checkpoint(model, save(stored, tmp_path / "stored.safetensors"))
    assert_holds(model, {key: stored[key].to(value.dtype) for key, value in state.items()})
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}


def test_batch_counters_may_be_missing(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    stored = {key: value for key, value in state.items() if key not in counters}
    load_checkpoint(model, save(stored, tmp_path / "old.safetensors"))
    assert_holds(model, stored | {key: torch.tensor(0) for key in counters})


def test_missing_unexpected_and_misshapen_tensors_are_listed(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    del state["stem.0.branches.conv0.conv.weight"], state["stages.0.blocks.0.layer_scale"]
    state["extra.weight"] = torch.ones(1)
    state["head.weight"] = torch.ones(10, 256)
    message = refusal(model, save(state, tmp_path / "other.safetensors"))
    assert "2 missing: stem.0.branches.conv0.conv.weight, stages.0.blocks.0.layer_scale;" in message
    assert "1 unexpected: extra.weight;" in message
    assert "1 of another shape: head.weight (10, 256) for (5, 256);" in message


def test_a_wrong_variant_names_the_first_few_of_each(tmp_path: Path) -> None:
    state = originals.state_dict("apple.fastvit_t8")
    path = save(state, tmp_path / "t8.safetensors")
    message = refusal(fastvit_models.create_model("fastvit_sa12"), path)
    assert "does not fit this FastViT: " in message
    assert "stem.0.branches.conv0.conv.weight (48, 3, 3, 3) for (64, 3, 3, 3)" in message
    assert len(message) < 1500


@pytest.mark.parametrize(
    ("variant", "other"),
    [("repvit_m0_6", "repvit_m0_9"), ("mobileone_s0", "mobileone_s1"), ("repvgg_a0", "repvgg_a1")],
)
def test_a_variant_of_the_same_family_is_refused(variant: str, other: str, tmp_path: Path) -> None:
    model = fastvit_models.create_model(variant)
    path = save(fastvit_models.create_model(other).state_dict(), tmp_path / "other.pth")
    message = refusal(model, path)
    assert "of another shape: " in message
    assert "create the variant, with the options, that it was saved from" in message
    assert len(message) < 1500


def test_a_distilled_head_is_refused_without_one(tmp_path: Path) -> None:
    model = fastvit_models.create_model("repvit_m0_6")
    distilled = fastvit_models.create_model("repvit_m0_6", distillation=True)
    path = save(distilled.state_dict(), tmp_path / "distilled.pth")
    assert "unexpected: head.distilled.linear.bias" in refusal(model, path)


def test_a_classifier_is_no_feature_extractor(state: dict[str, Tensor], tmp_path: Path) -> None:
    model = backbone()
    message = refusal(model, save(state, tmp_path / "classifier.safetensors"))
    assert "16 missing: norm0.weight" in message
    assert "unexpected: final_conv." in message


def test_one_tensor_under_two_names(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["patch_embed.0.rbr_scale.conv.weight"] = torch.ones(16, 3, 1, 1)
    message = refusal(model, save(state, tmp_path / "both.safetensors"))
    assert "stem.0.branches.scale.conv.weight more than once" in message


@pytest.mark.parametrize("name", ["own.pth", "own.SAFETENSORS", "own.bin", "own"])
def test_safetensors_by_another_name(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    safetensors.torch.save_file(state, tmp_path / name)
    load_checkpoint(model, tmp_path / name)
    assert_holds(model, state)


@pytest.mark.parametrize("count", [1 + 2j, math.nan, math.inf, 2.5])
def test_counters_that_count_nothing(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path, count: complex
) -> None:
    name = "stem.0.branches.conv0.bn.num_batches_tracked"
    message = refusal(model, save(state | {name: torch.tensor(count)}, tmp_path / "odd.pth"))
    assert f"1 not of integers: {name};" in message


def test_a_counter_of_bits(model: nn.Module, state: dict[str, Tensor], tmp_path: Path) -> None:
    """Which torch converts to no other dtype."""
    name = "stem.0.branches.conv0.bn.num_batches_tracked"
    bits = torch.zeros((), dtype=torch.uint8).view(torch.bits8)
    assert f"1 not of integers: {name}" in refusal(
        model, save(state | {name: bits}, tmp_path / "b.pth")
    )


def test_counters_of_another_dtype(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    stored = {key: value.double() for key, value in state.items()}
    load_checkpoint(model, save(stored, tmp_path / "double.pth"))
    assert_holds(model, state)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("head.weight", math.nan),
        ("head.bias", -math.inf),
        ("final_conv.branches.conv0.bn.running_var", -1e-3),
        ("final_conv.branches.conv0.bn.running_mean", math.nan),
    ],
)
def test_numbers_of_a_training_that_diverged(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path, name: str, number: float
) -> None:
    state[name].view(-1)[0] = number
    path = save(state, tmp_path / "diverged.pth")
    with pytest.warns(UserWarning, match=f"a variance below 0, in {name}: check") as caught:
        load_checkpoint(model, path)
    assert caught[0].filename == __file__
    assert torch.equal(model.state_dict()[name].nan_to_num(), state[name].nan_to_num())


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_leaves_the_model_as_it_was(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state["head.bias"][0] = math.nan
    path = save(state, tmp_path / "diverged.pth")
    with pytest.raises(UserWarning, match="a variance below 0"):
        load_checkpoint(model, path)
    assert_holds(model, before)


def test_numbers_that_the_models_dtype_has_not(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["head.weight"][0, 0] = 1e6
    message = refusal(model.half(), save(state, tmp_path / "large.safetensors"))
    assert "holds numbers that torch.float16 has not, in head.weight" in message


def test_float8_weights(model: nn.Module, state: dict[str, Tensor], tmp_path: Path) -> None:
    state["head.weight"] = state["head.weight"].to(torch.float8_e4m3fn)
    load_checkpoint(model, save(state, tmp_path / "float8.pth"))
    assert torch.equal(model.get_parameter("head.weight"), state["head.weight"].float())


def test_integer_weights(model: nn.Module, state: dict[str, Tensor], tmp_path: Path) -> None:
    state["head.weight"] = state["head.weight"].to(torch.int8)
    message = refusal(model, save(state, tmp_path / "quantized.safetensors"))
    assert "1 not of floating point: head.weight (torch.int8)" in message


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of what it makes here
@pytest.mark.parametrize(
    "make",
    [
        lambda weight: weight.to_sparse(),
        lambda weight: torch.nested.nested_tensor([*weight]),
        lambda weight: weight.to("meta"),
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "nested", "meta", "quantized"],
)
def test_weights_that_are_no_dense_tensors(
    model: nn.Module,
    state: dict[str, Tensor],
    tmp_path: Path,
    make: Callable[[Tensor], Tensor],
) -> None:
    state["head.weight"] = make(state["head.weight"])
    path = save(state, tmp_path / "special.pth")
    assert "holds no plain dense tensor as 'head.weight'" in refusal(model, path)


@pytest.mark.parametrize(
    "key", ["patch_embed.0.reparam_conv.weight", "network.1.proj.0.lkb_reparam.weight"]
)
def test_the_fused_form(model: nn.Module, tmp_path: Path, key: str) -> None:
    message = refusal(model, save({key: torch.ones(48, 3, 3, 3)}, tmp_path / "fused.pth"))
    assert f"is the fused form of a model ({key})" in message


class Malicious:
    """Creates a file as it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.trace), "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "2", "4"])
@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_a_malicious_pickle(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path, form: str, name: str
) -> None:
    trace, path = tmp_path / "trace", tmp_path / name
    content = {"state_dict": state, "extra": Malicious(trace)}
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(Malicious(trace), protocol=int(form)))
    message = refusal(model, path)
    assert not trace.exists()
    assert "weights_only" not in message
    if name == "evil.pth":
        assert "is refused, and nothing in it was run" in message
    if name == "evil.pth" and form in ("zip", "legacy"):
        assert "(it asks for io.open)" in message


def test_a_pickle_of_harmless_objects(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    content = {"state_dict": state, "args": argparse.Namespace(epochs=300)}
    message = refusal(model, save(content, tmp_path / "training.pth"))
    assert "(it asks for argparse.Namespace)" in message


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch.ones(3), "holds a Tensor"),
        ([torch.ones(3)], "holds a list"),
        ({"epoch": 3, "optimizer": {}}, "holds a int as 'epoch'"),
        ({"weights": {"stem": torch.ones(3)}}, "holds a dict as 'weights'"),
        ({3: torch.ones(3)}, "holds a Tensor as 3"),
        ({}, "missing: stem.0.branches"),
    ],
)
def test_no_state_dict(model: nn.Module, tmp_path: Path, content: object, found: str) -> None:
    assert found in refusal(model, save(content, tmp_path / "other.pth"))


def test_a_pickle_that_contains_itself(model: nn.Module, tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    assert "as 'model'" in refusal(model, save(content, tmp_path / "loop.pth"))


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
@pytest.mark.parametrize("kept", [0.0, 1e-5, 1e-3, 0.5, 0.999])
def test_a_truncated_file(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path, name: str, kept: float
) -> None:
    path = save(state, tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert "is damaged" in refusal(model, path)


def test_a_hole_in_a_file(model: nn.Module, state: dict[str, Tensor], tmp_path: Path) -> None:
    """What a download that broke off and went on leaves: right sizes, wrong numbers."""
    path = save(state, tmp_path / "hole.pth")
    data = path.read_bytes()
    start = data.index(state["final_conv.se.expand.weight"].numpy().tobytes())
    path.write_bytes(data[:start] + bytes(1024) + data[start + 1024 :])
    assert torch.load(path).keys() == state.keys()
    assert "is damaged" in refusal(model, path)


@pytest.mark.parametrize("form", ["legacy", "zip without checksums"])
def test_files_without_checksums(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    computes = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = tmp_path / "own.pth"
        torch.save(state, path, _use_new_zipfile_serialization=form != "legacy")
    finally:
        torch.serialization.set_crc32_options(computes)
    load_checkpoint(model, path)
    assert_holds(model, state)


@pytest.mark.parametrize("name", ["page.safetensors", "page.pth"])
def test_a_web_page(model: nn.Module, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("<!DOCTYPE html><html><body>404: Not Found</body></html>")
    assert "damaged" in refusal(model, path) or "refused" in refusal(model, path)


def test_a_path_that_holds_no_file(model: nn.Module, tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(model, tmp_path / "absent.safetensors")
    assert "Is a directory" in refusal(model, tmp_path)
    assert "null byte" in refusal(model, tmp_path / "nul\0.pth")


def test_a_model_without_storage(state: dict[str, Tensor], tmp_path: Path) -> None:
    with torch.device("meta"):
        model = classifier()
    with pytest.raises(CheckpointError, match=r"call model\.to_empty"):
        load_checkpoint(model, save(state, tmp_path / "own.safetensors"))


def test_a_module_of_another_package(tmp_path: Path) -> None:
    linear = nn.Linear(2, 3)
    state = random_state(linear)
    load_checkpoint(linear, save(state, tmp_path / "linear.pth"))
    assert_holds(linear, state)


def test_released_dense_prediction_weights_with_attention_warn(tmp_path: Path) -> None:
    model = backbone()
    state = random_state(model)
    released = {k.replace("stages.3.position.conv.", "network.6.pe."): v for k, v in state.items()}
    path = save(released, tmp_path / "released.pth")
    with pytest.warns(UserWarning, match="norm6 of these weights") as caught:
        load_checkpoint(model, path)
    assert caught[0].filename == __file__
    assert_holds(model, state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(model, save(state, tmp_path / "own.pth"))
