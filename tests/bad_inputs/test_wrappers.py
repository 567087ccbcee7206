"""Rows 40 and 41: models inside of wrappers, and compiled by others."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import reparam
from tests.bad_inputs.outcomes import IMAGE, compiled, conv_norm, norms, refused, same, trained


def network() -> nn.Module:
    return trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()))


def assert_unwrapped(wrapper: nn.Module, inner: nn.Module) -> None:
    """The result is that of the model inside, and names of its parts are as there."""
    fused = compiled(wrapper)
    assert norms(fused) == []
    same(inner, fused)
    assert list(fused.state_dict()) == list(compiled(inner).state_dict())
    assert not isinstance(fused, type(wrapper))


def test_row_40_data_parallel() -> None:
    model = network()
    assert_unwrapped(DataParallel(model).eval(), model)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")
def test_row_40_distributed() -> None:
    model = network()
    assert_unwrapped(DistributedDataParallel(model).eval(), model)


@pytest.mark.filterwarnings("ignore")
def test_row_40_moving_average_of_timm() -> None:
    timm = pytest.importorskip("timm")
    wrapper = timm.utils.ModelEmaV3(network())
    with torch.no_grad():
        next(wrapper.module.parameters()).add_(1.0)  # not the weights of what it averages
    assert_unwrapped(wrapper.eval(), wrapper.module)


def test_row_40_moving_average_of_torch() -> None:
    wrapper = AveragedModel(network())
    with torch.no_grad():
        next(wrapper.module.parameters()).add_(1.0)
    assert_unwrapped(wrapper.eval(), wrapper.module)


def test_row_40_one_in_another() -> None:
    model = network()
    assert_unwrapped(DataParallel(DataParallel(model)).eval(), model)


def test_row_40_with_example_inputs() -> None:
    model = network()
    fused = compiled(DataParallel(model).eval(), IMAGE)
    same(model, fused)
    assert "equivalent" in str(reparam.report(fused).verification.whole_model)


def test_row_40_only_the_wrapper_is_in_train_mode() -> None:
    """As every wrapper is that was made around a model in evaluation mode."""
    model = network()
    assert_unwrapped(DataParallel(model), model)
    model.eval()
    assert_unwrapped(AveragedModel(model), model)


def test_row_40_model_inside_in_train_mode() -> None:
    refused(DataParallel(network()).train(), reparam.TrainingModeError, "training mode", "eval()")


def test_row_40_wrapped_part() -> None:
    model = nn.Sequential(DataParallel(network()), conv_norm())
    trained(model[1])
    model.eval()
    fused = compiled(model)
    same(model, fused)
    assert [name for name in norms(fused) if name.startswith("1")] == []


def test_row_41_torch_compiled() -> None:
    model = network()
    fused = compiled(torch.compile(model))
    assert norms(fused) == []
    same(model, fused)
    assert list(fused.state_dict()) == list(compiled(model).state_dict())


def test_row_41_torch_compiled_in_place() -> None:
    model = network()
    expected = list(compiled(model).state_dict())
    model.compile(backend="eager")
    fused = compiled(model)
    assert norms(fused) == []
    assert list(fused.state_dict()) == expected
    same(network(), fused)


def test_row_41_torch_compiled_part() -> None:
    model = network()
    whole = nn.Sequential(torch.compile(model, backend="eager"), nn.ReLU()).eval()
    fused = compiled(whole)
    assert norms(fused) == [] or "0" in {remark.call for remark in reparam.report(fused).missed}
    same(nn.Sequential(model, nn.ReLU()), fused)


@pytest.mark.usefixtures("without_annotation_checks")
@pytest.mark.parametrize("form", ["program", "module"])
def test_row_41_exported(form: str) -> None:
    program = torch.export.export(network(), (IMAGE,))
    exported = program if form == "program" else program.module()
    with pytest.raises(reparam.CaptureError, match="compile the model, then export"):
        reparam.compile(exported)


def test_row_41_internal_operators() -> None:
    """A graph of them is compiled like any other, and the report says that nothing could be."""
    model = make_fx(network())(IMAGE).eval()
    fused = compiled(model)
    same(model, fused, IMAGE)
    left = [remark.message for remark in reparam.report(fused).missed]
    assert "no pass knows torch's internal operators; compile before torch.export" in left


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_row_41_script(way: str) -> None:
    model = network()
    scripted = torch.jit.script(model) if way == "script" else torch.jit.trace(model, IMAGE)
    refused(scripted, reparam.CaptureError, "ScriptModule", "pass the module it was made from")


@pytest.mark.filterwarnings("ignore")
def test_row_41_script_inside() -> None:
    model = nn.Sequential(torch.jit.trace(network(), IMAGE), conv_norm())
    trained(model[1])
    model.eval()
    fused = compiled(model)
    same(model, fused)
    assert isinstance(fused.get_submodule("0"), torch.jit.ScriptModule)
    assert [name for name in norms(fused) if name.startswith("1")] == []


class Straight(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.block, self.part = trained(conv_norm()), part
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.block(x))


class Branching(Straight):
    def forward(self, x: Tensor) -> Tensor:
        y = self.part(self.block(x))
        return y if float(y.sum()) < 1e9 else -y


def loaded(part: nn.Module) -> nn.Module:
    """A ScriptModule as it comes from a file."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(part), file)
    return torch.jit.load(io.BytesIO(file.getvalue()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize(
    "make",
    [torch.jit.script, loaded, lambda part: torch.jit.freeze(torch.jit.script(part))],
    ids=["script", "load", "freeze"],
)
def test_row_41_script_beside_others(
    make: Callable[[nn.Module], nn.Module], traceable: bool
) -> None:
    model = (Straight if traceable else Branching)(make(nn.ReLU().eval()))
    fused = reparam.compile(model)  # in which torch itself keeps the methods that are asked for
    same(model, fused)
    assert norms(fused) == []


@pytest.mark.parametrize(
    "thing", [None, 3, "model.pt", nn.ReLU, {"weight": torch.ones(3)}, lambda x: x]
)
@pytest.mark.usefixtures("without_annotation_checks")
def test_row_41_no_model(thing: object) -> None:
    with pytest.raises(reparam.CaptureError, match=r"takes a torch\.nn\.Module, not"):
        reparam.compile(thing)
