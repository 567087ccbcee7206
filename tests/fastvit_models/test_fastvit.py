"""FastViT: shapes, sizes, initial weights, stochastic depth, tracing."""

import pytest
import torch
from torch import Tensor, nn

import fastvit_models
import reparam
from fastvit_models.backbone import Backbone, Classifier, FeatureExtractor
from fastvit_models.fastvit import FastViTConfig, FastViTFeatures, create_fastvit
from fastvit_models.fastvit_blocks import Attention, ConvFFN, DropPath, RepMixer

VARIANTS = fastvit_models.list_models("fastvit_*")
TINY = FastViTConfig((1, 1, 1, 1), 16, 2, attention=True)


def randomise(model: nn.Module) -> nn.Module:
    """Values under which no branch, shift or layer scale is neutral."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point() and ("layer_scale" in name or tensor.ndim == 1):
            nn.init.normal_(tensor, 0.2, 0.2)
    return model


def on_meta(variant: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return fastvit_models.create_model(variant, **options)


@pytest.mark.parametrize(
    ("variant", "size"),  # timm 1.0.31 counts the same
    [
        ("fastvit_t8", 4_026_232),
        ("fastvit_t12", 7_553_704),
        ("fastvit_s12", 9_473_576),
        ("fastvit_sa12", 11_580_968),
        ("fastvit_sa24", 21_554_216),
        ("fastvit_sa36", 31_527_464),
        ("fastvit_ma36", 44_068_004),
    ],
)
def test_training_size(variant: str, size: int) -> None:
    assert sum(parameter.numel() for parameter in on_meta(variant).parameters()) == size


@pytest.mark.parametrize("variant", VARIANTS)
def test_feature_maps(variant: str) -> None:
    model = on_meta(variant, features_only=True).eval()
    assert isinstance(model, FeatureExtractor)
    assert not hasattr(model, "head")
    info = model.feature_info
    assert [entry["module"] for entry in info] == ["norm0", "norm2", "norm4", "norm6"]
    assert [entry["reduction"] for entry in info] == [4, 8, 16, 32]
    maps = model(torch.empty(2, 3, 161, 97, device="meta"))
    heights, widths = [41, 21, 11, 6], [25, 13, 7, 4]
    assert [tuple(feature_map.shape) for feature_map in maps] == [
        (2, entry["num_chs"], height, width)
        for entry, height, width in zip(info, heights, widths, strict=True)
    ]


@pytest.mark.parametrize("features_only", [False, True])
def test_feature_info_names_modules(features_only: bool) -> None:
    model = on_meta("fastvit_sa12", features_only=features_only)
    assert isinstance(model, Backbone)
    for entry in model.feature_info:
        module = model.get_submodule(str(entry["module"]))
        assert isinstance(module, nn.BatchNorm2d if features_only else nn.Sequential)


def test_features_are_the_classifiers_stages_normalised() -> None:
    classifier = create_fastvit(TINY, num_classes=5)
    assert isinstance(classifier, Classifier)
    features = create_fastvit(TINY, features_only=True)
    assert isinstance(features, FastViTFeatures)
    randomise(classifier).eval()
    trunk = {k: v for k, v in classifier.state_dict().items() if k.startswith(("stem", "stages"))}
    features.eval().load_state_dict(trunk, strict=False)
    image = torch.randn(1, 3, 64, 64)
    scale = (1 + features.norm6.eps) ** -0.5  # of a fresh batch norm
    with torch.no_grad():
        x = classifier.stem(image)
        for stage, found in zip(classifier.stages, features(image), strict=True):
            x = stage(x)
            torch.testing.assert_close(found, x * scale)


@pytest.mark.parametrize("variant", ["fastvit_t8", "fastvit_sa12"])
@pytest.mark.parametrize("shape", [(1, 3, 161, 97), (2, 3, 1, 1), (0, 3, 64, 64)])
def test_any_resolution_and_batch(variant: str, shape: tuple[int, ...]) -> None:
    model = fastvit_models.create_model(variant, num_classes=7).eval()
    with torch.no_grad():
        logits = model(torch.randn(shape))
    assert logits.shape == (shape[0], 7)
    assert logits.isfinite().all()


def test_other_input_channels() -> None:
    model = fastvit_models.create_model("fastvit_t8", in_channels=1).eval()
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("variant", ["fastvit_t8", "fastvit_sa12"])
def test_a_trace_holds_for_every_size(variant: str, features_only: bool) -> None:
    model = fastvit_models.create_model(variant, features_only=features_only)
    randomise(model).eval()
    traced = torch.fx.symbolic_trace(model)
    for shape in [(1, 3, 64, 64), (2, 3, 97, 33)]:
        image = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(traced(image), model(image))


def test_training_reaches_every_parameter() -> None:
    model = create_fastvit(TINY, num_classes=5, drop_path_rate=0.3)
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("variant", ["fastvit_sa12", "fastvit_ma36"])
@pytest.mark.parametrize("rate", [None, 0.2])
def test_drop_path_grows_linearly_over_all_blocks(variant: str, rate: float | None) -> None:
    model = on_meta(variant, drop_path_rate=rate)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    published = {"fastvit_sa12": 0.1, "fastvit_ma36": 0.35}[variant]
    assert len(rates) == {"fastvit_sa12": 12, "fastvit_ma36": 36}[variant]
    expected = torch.linspace(0, published if rate is None else rate, len(rates))
    torch.testing.assert_close(torch.tensor(rates), expected)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    drop = DropPath(0.25)
    samples = drop(torch.ones(4000, 2, 3, 3)).flatten(1)
    assert torch.equal(samples, samples[:, :1].expand_as(samples))
    assert samples.unique().tolist() == pytest.approx([0, 4 / 3])
    assert samples.mean().item() == pytest.approx(1, abs=0.05)
    x = torch.randn(2, 2, 3, 3)
    assert drop.eval()(x) is x


def test_initial_weights() -> None:
    model = fastvit_models.create_model("fastvit_sa12")
    assert isinstance(model, Classifier)
    drawn: list[nn.Module] = [model.head]
    for module in model.modules():
        if isinstance(module, ConvFFN):
            drawn += [module.depthwise.get_submodule("conv"), module.fc1, module.fc2]
        elif isinstance(module, Attention):
            drawn += [module.qkv, module.proj]
    assert len(drawn) == 1 + 3 * 12 + 2 * 2
    for layer in drawn:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias is None or not layer.bias.any()
    scales = [p for name, p in model.named_parameters() if "layer_scale" in name]
    assert all(torch.equal(scale, torch.full_like(scale, 1e-5)) for scale in scales)
    assert len(scales) == 2 * 12


def test_without_side_branches_the_fused_network_is_the_same() -> None:
    """They are there for training alone."""
    plain = FastViTConfig((1, 1, 1, 1), 16, 2, attention=True, overparameterized=False)
    full, bare = (randomise(create_fastvit(config).eval()) for config in (TINY, plain))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (full, bare)]
    assert sizes[0] > sizes[1]
    fused = [reparam.compile(model, verify=False) for model in (full, bare)]
    first, second = (reparam.report(model).after for model in fused)
    assert first == second


def test_pooling_in_place_of_repmixer() -> None:
    config = FastViTConfig((1, 1, 1, 1), 16, 2, attention=True, token_mixer="pooling")
    model = randomise(create_fastvit(config, num_classes=7).eval()).double()
    assert not [m for m in model.modules() if isinstance(m, RepMixer)]
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    mixer = model.get_submodule("stages.0.blocks.0.token_mixer")
    constant = torch.ones(1, 16, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(mixer(constant), constant)  # pads with nothing, even at the border
    fused = reparam.compile(model)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(fused(x), model(x))


def test_attention_is_scaled_dot_product_attention() -> None:
    attention = Attention(96, dropout=0.0).double().eval()
    x = torch.randn(2, 96, 5, 3, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)

    def heads(rows: Tensor) -> Tensor:
        return (tokens @ rows.T).reshape(2, 15, 3, 32).transpose(1, 2)

    q, k, v = map(heads, attention.qkv.weight.chunk(3))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v)
    expected = attention.proj(mixed.transpose(1, 2).reshape(2, 15, 96)).transpose(1, 2)
    torch.testing.assert_close(attention(x), expected.reshape(2, 96, 5, 3))
