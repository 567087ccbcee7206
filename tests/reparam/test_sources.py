"""What a SOURCE on the command line can be, and what is said when it is none."""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import torch
from torch import nn

import fastvit_models
from reparam import sources
from reparam.errors import MissingExtraError, SourceError
from reparam.sources import registered_models, resolve

SMALL = (3, 64, 64)

NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).double()

    def forward(self, x):
        return self.conv(x)

class Line(nn.Linear):
    default_cfg = {"input_size": (7,)}

    def __init__(self):
        super().__init__(7, 1)

class nested:
    build = Net

def needs(width): return Net()
def fails(): raise KeyError("width")
def leaves(): raise SystemExit(0)
def returns_text(): return "net"
model = Net()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules of the user's in it."""
    (tmp_path / "acme_nets.py").write_text(NETS)
    (tmp_path / "acme_script.py").write_text("import sys; sys.exit('usage: …')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("acme_nets", None)


def refusal(source: str, checkpoint: Path | None = None, size: tuple[int, ...] = SMALL) -> str:
    with pytest.raises(SourceError) as caught:
        resolve(source, checkpoint=checkpoint, input_size=size)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_registered_name() -> None:
    found = resolve("fastvit_t8", input_size=SMALL)
    assert type(found.model) is type(fastvit_models.create_model("fastvit_t8"))
    assert not found.model.training
    assert found.example_input.shape == (1, *SMALL)
    assert found.random_weights


def test_every_model_is_registered() -> None:
    assert list(registered_models()) == fastvit_models.list_models()


def test_unknown_name_gets_the_nearest() -> None:
    assert "did you mean fastvit_t8" in refusal("fastvit_t9")
    assert "did you mean fastvit_t8" in refusal("FastViT_T8")


def test_name_like_no_other_gets_the_kinds_of_source() -> None:
    assert refusal("zzz") == (
        "no model is named 'zzz'; SOURCE is a registered name, timm:NAME, module:factory "
        "or a file that ends in .onnx"
    )


def test_checkpoint_of_a_registered_model(tmp_path: Path) -> None:
    model = fastvit_models.create_model("fastvit_t8")
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor)  # variances among them
    torch.save(model.state_dict(), tmp_path / "t8.pth")
    found = resolve("fastvit_t8", checkpoint=tmp_path / "t8.pth", input_size=SMALL)
    assert not found.random_weights
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_checkpoints_that_are_refused(tmp_path: Path) -> None:
    absent, other, none = (tmp_path / name for name in ("absent.pth", "other.pth", "none.pth"))
    torch.save({"weight": torch.zeros(2)}, other)
    none.write_text("not a pickle")
    assert refusal("fastvit_t8", absent) == f"there is no checkpoint {absent}"
    for path in (other, none):
        assert f"the checkpoint was not loaded: {path}" in refusal("fastvit_t8", path)
    assert "let the factory load it" in refusal("acme_nets:Net", other)


def registration(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    found = EntryPoints(EntryPoint("acme", value, sources.GROUP) for value in values)
    monkeypatch.setattr(sources, "entry_points", lambda group: found)


def test_registrations_that_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    (folder / "acme_nets.py").write_text(NETS + "MODELS = {'net': Net}\nMORE = {'net': Net}\n")
    registration(monkeypatch, "acme_nets:MODELS", "acme_nets:MORE")
    assert "two models are named 'net', in acme_nets:MODELS" in refusal("net")
    registration(monkeypatch, "acme_nets:model")
    assert "acme_nets:model of the distribution unknown is no mapping" in refusal("net")
    registration(monkeypatch, "acme_absent:MODELS")
    assert "acme_absent:MODELS of the distribution unknown cannot be loaded" in refusal("net")
    registration(monkeypatch, "acme_nets:MODELS")
    assert "has no load_checkpoint" in refusal("net", folder / "acme_nets.py")


@pytest.mark.usefixtures("folder")
def test_factory_in_the_current_folder() -> None:
    found = resolve("acme_nets:Net")
    assert type(found.model).__name__ == "Net"
    assert not found.model.training
    assert found.example_input.shape == (1, 3, 256, 256)
    assert found.example_input.dtype == torch.float64
    assert not found.random_weights
    assert type(resolve("acme_nets:nested.build", input_size=SMALL).model).__name__ == "Net"
    assert resolve("acme_nets:Line").example_input.shape == (1, 7)


@pytest.mark.usefixtures("folder")
def test_example_input_is_the_same_each_time() -> None:
    first, second = (resolve("acme_nets:Net", input_size=SMALL).example_input for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("acme_absent:build", "the module 'acme_absent' can't be imported: ModuleNotFoundError"),
        ("acme_script:build", "the module 'acme_script' can't be imported: SystemExit: usage"),
        (":build", "the module '' can't be imported: ValueError"),
        ("acme_nets:", "the module 'acme_nets' has no ''"),
        ("acme_nets:neds", "has no 'neds': did you mean needs"),
        ("acme_nets:model", "acme_nets:model is a Net, not a function or class"),
        ("acme_nets:needs", "acme_nets:needs can't be built: TypeError: needs() missing"),
        ("acme_nets:fails", "acme_nets:fails can't be built: KeyError: 'width'"),
        ("acme_nets:leaves", "acme_nets:leaves can't be built: SystemExit: 0"),
        ("acme_nets:returns_text", "returned a str, not a torch.nn.Module"),
    ],
)
def test_factories_that_are_refused(source: str, says: str) -> None:
    assert says in refusal(source)


@pytest.mark.parametrize("size", [(4, 64, 64), (3, 64), (64,)])
def test_size_that_the_network_cannot_take(size: tuple[int, ...]) -> None:
    message = refusal("fastvit_t8", size=size)
    assert message.startswith("fastvit_t8 can't take an input of size 1×")
    assert message.endswith("choose another with --input-size")


def test_timm_by_name() -> None:
    found = resolve("timm:fastvit_t8", input_size=SMALL)
    assert type(found.model).__module__.startswith("timm.")
    assert found.random_weights
    assert resolve("timm:test_resnet.r160_in1k").example_input.shape == (1, 3, 160, 160)


def test_timm_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(resolve("timm:test_resnet").model.state_dict(), path)
    assert not resolve("timm:test_resnet", checkpoint=path).random_weights
    message = refusal("timm:test_vit", path)
    assert f"{path} was not loaded: RuntimeError" in message
    assert "Missing key(s)" in message


def test_timm_name_that_is_none() -> None:
    assert "timm has no model 'fastvit_t9': did you mean fastvit_t" in refusal("timm:fastvit_t9")
    assert "timm has no model 'hf-hub:a/b'" in refusal("timm:hf-hub:a/b")


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"'timm' is not installed.*reparam\[timm\]"):
        resolve("timm:fastvit_t8")
