"""Rows 35 to 37: devices, dtypes, quantized layers, autocast, and layouts in memory."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.bad_inputs.outcomes import (
    IMAGE,
    assert_alike,
    calls,
    compiled,
    conv_norm,
    fused_exactly,
    norms,
    same,
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn


def test_row_35_two_devices() -> None:
    """One branch is elsewhere: what a machine of its own would compute is not merged with ours."""
    model = Net(
        lambda m, x: m.here(x) + m.there(x.to("meta")).to("cpu"),
        here=nn.Conv2d(4, 4, 1),
        there=nn.Conv2d(4, 4, 1),
    )
    model.double().eval()
    model.there.to("meta")
    fused = compiled(model)
    assert calls(fused) == 5
    assert {parameter.device.type for parameter in fused.parameters()} == {"cpu", "meta"}


def test_row_35_norm_on_another_device() -> None:
    model = trained(conv_norm())
    model[1].to("meta")
    fused = compiled(model)
    assert norms(fused) == ["1"]
    assert reparam.report(fused).missed


class Mixed(nn.Module):
    """A convolution in half precision; its batch norm in full, as mixed-precision models have."""

    def __init__(self, dtype: torch.dtype, cast: bool) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm()
        self.dtype, self.cast = dtype, cast

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.to(self.dtype))
        return self.norm(y.float() if self.cast else y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cast", [True, False], ids=["cast", "not cast"])
@pytest.mark.parametrize("given", [True, False])
def test_row_35_two_dtypes(dtype: torch.dtype, cast: bool, given: bool) -> None:
    model = Mixed(dtype, cast)
    trained(nn.Sequential(model.conv, model.norm))
    model.conv.to(dtype)
    model.norm.float()
    model.eval()
    x = IMAGE.float()
    fused = compiled(model, x if given else None)
    with torch.no_grad():
        assert fused(x).dtype == model(x).dtype
    reparam.verify(model, fused, x).raise_if_different()
    assert fused.get_parameter("conv.weight").dtype == dtype
    if norms(fused):  # a cast in between rounds; without, the batch norm's own result is rounded
        assert norms(fused) == ["norm"]
        assert reparam.report(fused).missed
    else:
        assert not cast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_row_35_one_dtype(dtype: torch.dtype) -> None:
    model = trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm())).to(dtype)
    x = IMAGE.to(dtype)
    fused = compiled(model, x)
    assert norms(fused) == []
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    assert fused(x).dtype == dtype


def test_row_35_complex() -> None:
    model = Net(
        lambda m, x: (m.wide(x) + m.narrow(x)).abs(),
        wide=nn.Conv2d(4, 4, 3, padding=1, dtype=torch.complex128),
        narrow=nn.Conv2d(4, 4, 1, dtype=torch.complex128),
    )
    x = torch.complex(drawn(1, 2, 4, 5, 5), drawn(2, 2, 4, 5, 5))
    for given in (None, x):
        fused = compiled(model.eval(), given)
        same(model, fused, x)
        if calls(fused) > 2:
            assert "complex" in str(reparam.report(fused).missed)


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_row_35_complex_beside_real() -> None:
    model = Net(
        lambda m, x: m.conv(x) + m.linear(x.to(torch.complex128).transpose(1, 3)).transpose(1, 3),
        conv=nn.Conv2d(4, 4, 1),
        linear=nn.Linear(4, 4),
    )
    model.conv.double()
    model.linear.to(torch.complex128)
    same(model, compiled(model.eval()))


def quantized() -> Any:
    """torch.ao is deprecated, and in use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao import quantization
    return quantization


@pytest.mark.filterwarnings("ignore")
def test_row_36_quantized() -> None:
    model = nn.Sequential(conv_norm(), nn.Flatten(), nn.Linear(168, 5), nn.ReLU(), nn.Linear(5, 3))
    model = trained(model).float()
    model = quantized().quantize_dynamic(model, {nn.Linear})
    fused = compiled(model)
    assert norms(fused) == []
    x = IMAGE.float()
    with torch.no_grad():
        scale = float(model(x).abs().max())
        # A folded weight rounds differently, which a quantized layer turns into a step.
        assert float((model(x) - fused(x)).abs().max()) < 0.05 * scale
    linears = [type(fused.get_submodule(path)) for path in ("2", "4")]
    assert linears == [type(model[2]), type(model[4])]


@pytest.mark.filterwarnings("ignore")
def test_row_36_quantization_aware() -> None:
    quantization = quantized()
    model = nn.Sequential(conv_norm(), nn.ReLU(), conv_norm()).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.prepare_qat(model, inplace=True)
    x = IMAGE.float()
    model(x)
    model.eval()
    fused = compiled(model)
    same(model, fused, x)
    kinds = {type(module).__name__ for module in fused.modules()}
    assert any("FakeQuantize" in kind for kind in kinds)
    assert "0.1" in norms(fused)
    assert reparam.report(fused).missed


@pytest.mark.filterwarnings("ignore")
def test_row_36_fused_for_quantization_aware_training() -> None:
    from torch.ao.nn.intrinsic import qat

    layer = qat.ConvBn2d(4, 4, 3, qconfig=quantized().get_default_qat_qconfig("fbgemm"))
    model = nn.Sequential(layer, nn.BatchNorm2d(4))
    model(IMAGE.float())
    model.eval()
    fused = compiled(model)
    same(model, fused, IMAGE.float())
    assert type(fused.get_submodule("0")).__name__ == "ConvBn2d"


class Cast(nn.Module):
    """Runs its layers under autocast, in which a convolution is computed in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.norm(self.conv(x)).float()


def cast_trained() -> nn.Module:
    model = Cast()
    trained(nn.Sequential(model.conv, model.norm))
    return model.float().eval()


def test_row_36_autocast_region() -> None:
    model = nn.Sequential(cast_trained(), trained(conv_norm()).float()).eval()
    fused = compiled(model)
    assert any("autocast" in remark.message for remark in reparam.report(fused).missed)
    assert type(fused.get_submodule("0")) is Cast
    assert [name for name in norms(fused) if name.startswith("1")] == []
    with torch.no_grad():
        assert_alike(model[0](IMAGE.float()), fused.get_submodule("0")(IMAGE.float()))


def test_row_36_autocast_around_everything() -> None:
    model = cast_trained()
    fused = compiled(model)
    assert any("autocast" in remark.message for remark in reparam.report(fused).missed)
    same(model, fused, IMAGE.float())


def test_row_36_compiled_and_called_under_autocast() -> None:
    """The caller's region is not the model's: it is fused, and the region applies to the result."""
    model = trained(conv_norm()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = compiled(model)
        assert fused(IMAGE.float()).dtype == model(IMAGE.float()).dtype == torch.bfloat16
    assert norms(fused) == []
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.float32}


def test_row_37_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3))
    trained(model).to(memory_format=torch.channels_last)
    fused = fused_exactly(model)
    for path in ("0.weight", "3.weight"):
        weight = fused.get_parameter(path)
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    x = IMAGE.to(memory_format=torch.channels_last)
    assert fused(x).stride() == model(x).stride()


def test_row_37_merged_branches() -> None:
    model = Net(
        lambda m, x: m.norm(m.wide(x) + m.narrow(x) + x),
        wide=nn.Conv2d(4, 4, 3, padding=1),
        narrow=nn.Conv2d(4, 4, 1),
        norm=nn.BatchNorm2d(4),
    )
    trained(model).to(memory_format=torch.channels_last)
    fused = fused_exactly(model)
    (conv,) = (module for module in fused.modules() if isinstance(module, nn.Conv2d))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.shape == (4, 4, 3, 3)


def test_row_37_contiguous_stays_contiguous() -> None:
    fused = fused_exactly(trained(conv_norm()))
    assert all(parameter.is_contiguous() for parameter in fused.parameters())


def test_row_37_three_axes() -> None:
    model = nn.Sequential(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6))
    x = drawn(1, 2, 4, 5, 5, 5)
    trained(model, x).to(memory_format=torch.channels_last_3d)
    fused = fused_exactly(model, x)
    weight = fused.get_parameter("0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_row_35_norm_of_integers_is_left() -> None:
    """A sum of integers is no sum of reals."""
    model = Net(lambda m, x: (x + x) * 2 + x.round(), conv=nn.Conv2d(4, 4, 1))
    fused = compiled(model.eval())
    x = torch.randint(-9, 9, (2, 4, 5, 5))
    same(model, fused, x)
