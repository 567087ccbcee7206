"""FastViT from end to end: what is left after a compile, and that it computes the same."""

import copy
import functools
import io
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import fastvit_models
import reparam
from fastvit_models.fastvit import VARIANTS
from tests.fused import operators, same_state, storages
from tests.randomised import randomised

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

SIZES = ((256, 256), (161, 97))
SMALL = ("fastvit_t8", "fastvit_sa12")
ATTENTION = {"transpose": 7, "narrow": 3, "unflatten": 3, "flatten": 2, "matmul": 2} | {
    "softmax": 1,
    "reshape": 1,
    "getattr": 1,  # x.shape
}
"""The calls of one attention beside its two linear layers."""

RESIDUAL = re.compile(r"stages\.\d\.blocks\.\d+\.add")


def trained(name: str, **options: object) -> nn.Module:
    """A variant in training form, as if it had been trained."""
    model = fastvit_models.create_model(name, **options)
    return randomised(model, torch.randn(2, 3, 128, 128))


@functools.cache
def compiled(name: str) -> tuple[nn.Module, fx.GraphModule]:
    """A variant and its compiled form, for tests that change neither."""
    torch.manual_seed(0)
    model = trained(name)
    return model, reparam.compile(model)


def images(*size: int) -> torch.Tensor:
    """A batch of one."""
    return torch.randn(1, 3, *size)


@pytest.mark.parametrize("name", VARIANTS)
def test_same_function_and_nothing_of_the_training_form_is_left(name: str) -> None:
    """No batch norm, no layer scale, no branch, no skip around RepMixer or position encoding."""
    config = VARIANTS[name]
    attention = config.depths[-1] if config.attention else 0
    mixers = sum(config.depths) - attention
    model, fused = compiled(name)
    for size in SIZES:
        reparam.verify(model, fused, images(*size)).raise_if_different()
    assert operators(fused) == {
        # stem; mixer or none, and the three of each ConvFFN; patch embeddings; encoding; head
        "Conv2d": 3 + 4 * mixers + 3 * attention + 3 * 2 + config.attention + 3,
        "Linear": 2 * attention + 1,
        "GELU": 3 + sum(config.depths) + 3 + 1,
        "add": mixers + 2 * attention,
        "mean": 2,  # squeeze-and-excite, pooling
        "relu": 1,
        "sigmoid": 1,
        "mul": 1,
        **{operator: count * attention for operator, count in ATTENTION.items() if attention},
    }
    assert not [node for node in fused.graph.nodes if node.op == "get_attr"]


@pytest.mark.parametrize(
    ("name", "convolutions", "linears", "calls"),
    [("fastvit_t8", 52, 1, 90), ("fastvit_sa12", 59, 5, 145)],
)
def test_published_counts(name: str, convolutions: int, linears: int, calls: int) -> None:
    found = operators(compiled(name)[1])
    assert found["Conv2d"] == convolutions
    assert found["Linear"] == linears
    assert found.total() <= calls


@pytest.mark.parametrize(
    ("name", "dtype"), [("fastvit_t8", torch.float16), ("fastvit_sa12", torch.bfloat16)]
)
def test_same_function_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model = copy.deepcopy(compiled(name)[0]).to(dtype)
    fused = reparam.compile(model)
    assert operators(fused) == operators(compiled(name)[1])
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    reparam.verify(model, fused, images(128, 96).to(dtype)).raise_if_different()


@pytest.mark.parametrize("name", SMALL)
def test_input_model_is_untouched(name: str) -> None:
    model = trained(name)
    x = images(64, 64)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(x)
        reparam.compile(model, x)
        assert torch.equal(model(x), before)
    assert same_state(model.state_dict(), state)


@pytest.mark.parametrize("name", SMALL)
def test_no_storage_is_shared(name: str) -> None:
    model, fused = compiled(name)
    assert not storages(model) & storages(fused)


@pytest.mark.parametrize("name", SMALL)
def test_same_input_twice_gives_the_same_bits(name: str) -> None:
    model, fused = compiled(name)
    again = reparam.compile(model)
    assert again.code == fused.code
    assert same_state(again.state_dict(), fused.state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_second_compile_changes_nothing(name: str) -> None:
    _, fused = compiled(name)
    again = reparam.compile(fused)
    assert reparam.report(again).applied == ()
    assert again.code == fused.code
    assert same_state(again.state_dict(), fused.state_dict())


def test_training_mode_is_refused() -> None:
    model = fastvit_models.create_model("fastvit_t8")
    with pytest.raises(reparam.TrainingModeError, match=r"stem\.0\.branches\.conv0\.bn"):
        reparam.compile(model)


def test_every_rewrite_was_checked() -> None:
    report = reparam.report(compiled("fastvit_sa12")[1])
    assert report.verification.mode == "float64"
    assert report.verification.checked == len(report.applied)
    assert 0 < report.verification.largest_error < 1e-9


@pytest.mark.parametrize("name", SMALL)
def test_surviving_skips_have_a_remark(name: str) -> None:
    """By the name that the skip had in the model."""
    config = VARIANTS[name]
    report = reparam.report(compiled(name)[1])
    named = [remark.call for remark in report.missed if RESIDUAL.match(remark.call)]
    attention = config.depths[-1] if config.attention else 0
    blocks = {name.rpartition(".")[0] for name in named}
    assert len(blocks) == sum(config.depths)
    assert len(set(named)) == sum(config.depths) + attention


@pytest.mark.parametrize("name", SMALL)
def test_what_survives_has_a_remark(name: str) -> None:
    """Asked of the compiled model, where the names are those of its own graph."""
    again = reparam.compile(compiled(name)[1])
    named = {remark.call for remark in reparam.report(again).missed}
    assert not unexplained(again, named)


def unexplained(fused: fx.GraphModule, named: set[str]) -> list[str]:
    """The batch norms, layer scales and skips that no remark names."""
    calls = (
        (node.target if node.op == "call_module" else node.name, node) for node in fused.graph.nodes
    )
    return [
        str(name)
        for name, node in calls
        if name not in named
        and (
            (node.op == "call_function" and node.target.__name__ in ("add", "sub"))
            or (
                node.op == "call_function" and any(s.op == "get_attr" for s in node.all_input_nodes)
            )
            or isinstance(_module(fused, node), nn.modules.batchnorm._BatchNorm)
        )
    ]


def _module(fused: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return fused.get_submodule(str(node.target)) if node.op == "call_module" else None


def test_patch_embedding_is_refused_with_both_figures() -> None:
    missed = reparam.report(compiled("fastvit_t8")[1]).missed
    remark = next(r for r in missed if r.call.startswith("stages.1.downsample.pointwise"))
    assert "225,792" in remark.message
    assert "13,920" in remark.message
    assert remark.blocker == "stages.1.downsample"


@pytest.mark.parametrize("name", SMALL)
def test_features_only(name: str) -> None:
    """A norm behind a stage that is read elsewhere too has to stay, and says why."""
    model = trained(name, features_only=True)
    fused = reparam.compile(model, images(96, 64))
    expected = ["norm0", "norm2", "norm4", "norm6"]
    norms = [n.target for n in fused.graph.nodes if isinstance(_module(fused, n), nn.BatchNorm2d)]
    assert norms == expected
    named = {remark.call for remark in reparam.report(fused).missed}
    assert named >= set(expected)
    assert isinstance(fused(images(64, 64)), list)


@pytest.mark.parametrize("option", [{"num_classes": 7}, {"in_channels": 1}])
def test_options(option: dict[str, int]) -> None:
    model = fastvit_models.create_model("fastvit_t8", **option)
    x = torch.randn(2, option.get("in_channels", 3), 64, 64)
    fused = reparam.compile(randomised(model, x), x)
    assert operators(fused) == operators(compiled("fastvit_t8")[1])


def test_deepcopy() -> None:
    _, fused = compiled("fastvit_t8")
    twin = copy.deepcopy(fused)
    x = images(64, 64)
    assert torch.equal(twin(x), fused(x))
    assert same_state(twin.state_dict(), fused.state_dict())
    assert not storages(twin) & storages(fused)
    assert reparam.report(twin) == reparam.report(fused)


def test_pickle() -> None:
    _, fused = compiled("fastvit_t8")
    twin = pickle.loads(pickle.dumps(fused))
    x = images(64, 64)
    assert torch.equal(twin(x), fused(x))
    assert reparam.report(twin) == reparam.report(fused)


def test_torch_save() -> None:
    _, fused = compiled("fastvit_sa12")
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    x = images(64, 64)
    assert torch.equal(twin(x), fused(x))
    assert reparam.report(twin) == reparam.report(fused)


LOAD = """
import sys
sys.modules.update(reparam=None, passes=None, fastvit_models=None)  # importing them now fails
import torch
model = torch.load(sys.argv[1], weights_only=False)
x = torch.load(sys.argv[2])
torch.set_num_threads(int(sys.argv[4]))  # the order of additions depends on it
torch.save(model(x).detach(), sys.argv[3])
"""


def test_result_runs_where_this_library_is_not_installed(tmp_path: Path) -> None:
    _, fused = compiled("fastvit_t8")
    x = images(64, 64)
    saved, given, returned = (tmp_path / name for name in ("fused.pt", "x.pt", "y.pt"))
    torch.save(fused, saved)
    torch.save(x, given)
    command = [sys.executable, "-I", "-c", LOAD, saved, given, returned]
    subprocess.run([*command, str(torch.get_num_threads())], check=True)
    assert torch.equal(torch.load(returned), fused(x))


def test_state_dict_round_trip() -> None:
    """The state of one compiled model fits another of the same kind."""
    _, fused = compiled("fastvit_t8")
    other = reparam.compile(trained("fastvit_t8"))
    x = images(64, 64)
    other.load_state_dict(fused.state_dict())
    assert torch.equal(other(x), fused(x))


def test_state_dict_keys_are_those_of_the_model() -> None:
    """A fused layer stands where the layers stood that it took in, or beside what stays there."""
    model, fused = compiled("fastvit_t8")
    places = {name for name, _ in model.named_modules()}
    found = {key.rpartition(".")[0].removesuffix(".fused") for key in fused.state_dict()}
    assert found <= places
