"""New values, which no call of the model stands for, are written as torch's own operators."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import reparam
from reparam import Call, Replace, require, rewrite
from reparam.capture import capture
from reparam.operators import AvgPool, Cat, ConvTranspose, Norm, Pad
from reparam.values import Sum, Value
from reparam.verify import EXACT, relative_difference
from tests.fused import operators, storages
from tests.randomised import randomised
from tests.reparam.test_operators import pads, pools, transposed
from tests.strategies import drawn

KINDS = (Pad, AvgPool, Cat, ConvTranspose, Norm)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def multiple_of(call: Call) -> tuple[float, Call] | None:
    """The factor and the operator that a call multiplies, if it does."""
    if not isinstance(call.value, Sum) or len(call.value.coefficients) != 1:
        return None
    (source,) = call.inputs
    return (call.value.coefficients[0], source) if isinstance(source.value, KINDS) else None


@rewrite
def drop_multiple_of_one(call: Call) -> Replace | None:
    """The operator is a new value then, though equal to the old one."""
    found = multiple_of(call)
    if found is None or found[0] != 1:
        return None
    return Replace(replace(found[1].value), *found[1].inputs)


@rewrite
def merge_multiple(call: Call) -> Replace | None:
    """A multiple of what has weights is one with other weights."""
    found = multiple_of(call)
    if found is None:
        return None
    factor, source = found
    value: Any = source.value
    require(isinstance(value, ConvTranspose | Norm) and value.weight is not None, "no weights")
    weights = {
        name: None if tensor is None else tensor.double() * factor
        for name, tensor in (("weight", value.weight), ("bias", value.bias))
    }
    return Replace(replace(value, **weights), *source.inputs)


class Meant(nn.Module):
    """A layer that computes a value, and says so."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x)


@reparam.lift(Meant)
def _(layer: Meant) -> Value:
    return layer.value


class Scaled(nn.Module):
    """A multiple of what a layer makes of a convolution, by which the channels are known."""

    def __init__(self, layer: Callable[..., Any], factor: float, n: int | None = None) -> None:
        super().__init__()
        self.body, self.factor = layer, factor
        convs = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        self.first = None if n is None else convs[n](4, 4, *(1,) * (n > 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if self.first is None else self.first(x)) * self.factor


def kinds(model: Any) -> Counter[str]:
    """How often each operator runs, by a name that its module and its function share."""
    names = operators(model)
    return Counter({name.replace("_", "").lower(): count for name, count in names.items()})


def written(model: nn.Module, x: Tensor, rule: Any) -> fx.GraphModule:
    """The model with a rewrite done; it computes the same, in torch's operators alone."""
    fused = reparam.compile(model.eval(), x, passes=(rule,))
    remarks = reparam.report(fused)
    assert len(remarks.applied) == 1, remarks.missed
    assert "mul" not in operators(fused)
    assert storages(model).isdisjoint(storages(fused))
    for module in fused.modules():
        assert module is fused or type(module).__module__.startswith("torch.nn.modules.")
    reparam.verify(model, fused, x).raise_if_different()
    assert operators(reparam.compile(fused, x, passes=())) == operators(fused)
    return fused


@st.composite
def norms(draw: st.DrawFn) -> tuple[int, Norm]:
    """A norm, and the number of spatial axes of its input."""
    kind = draw(st.sampled_from(("layer", "rms", "group")))
    weight = drawn(1, 4) if draw(st.booleans()) else None
    bias = drawn(2, 4) if draw(st.booleans()) and kind != "rms" else None
    eps = draw(st.sampled_from((None, 1e-3, 0.5)))
    n = draw(st.integers(1, 3)) if kind == "group" else 0
    return n, Norm(kind, 4, weight, bias, eps, draw(st.sampled_from((1, 2, 4))))


@given(
    st.one_of(
        *(s.map(lambda value: (value.n, value)) for s in (pads(), pools(), transposed())), norms()
    )
)
def test_any_value_is_written_as_it_computes(case: tuple[int, Any]) -> None:
    n, value = case
    x = drawn(0, *(2, 4, 5, 6, 4)[: n + 2])
    model = Scaled(Meant(value), 1.0, n).double()
    fused = written(model, x, drop_multiple_of_one)
    assert relative_difference(model(x), fused(x)) <= EXACT
    assert {tensor.dtype for tensor in fused.state_dict().values()} == {torch.float64}
    assert len(fused.state_dict()) == 2 + len(value.tensors())


CALLS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda x: F.pad(x, (1, 2, 0, 1)), "pad"),
    (lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"), "pad"),
    (lambda x: F.pad(x, (1, 1, 1, 1), value=0.5), "pad"),
    (lambda x: F.avg_pool2d(x, 3, 2, 1, False, False), "avgpool2d"),
    (lambda x: F.avg_pool2d(x, 2, ceil_mode=True, divisor_override=3), "avgpool2d"),
    (lambda x: torch.cat([x, x.relu(), x], 1), "cat"),
    (lambda x: torch.cat([x, x], -1), "cat"),
    (lambda x: F.layer_norm(x, (5,), eps=0.1), "layernorm"),
    (lambda x: F.rms_norm(x, (5,)), "rmsnorm"),
    (nn.GroupNorm(2, 4, affine=False), "groupnorm"),
    (nn.AvgPool2d(2), "avgpool2d"),
    (nn.CircularPad2d((1, 2, 0, 1)), "pad"),
    (nn.ConstantPad2d(1, 0.5), "pad"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("call", "operator"), CALLS)
def test_calls_without_weights(
    call: Callable[[Tensor], Tensor], operator: str, dtype: torch.dtype
) -> None:
    x = drawn(0, 2, 4, 6, 5).to(dtype)
    fused = written(Scaled(call, 1.0).to(dtype), x, drop_multiple_of_one)
    assert kinds(fused)[operator] == 1
    assert fused(x).dtype == dtype
    assert {tensor.dtype for tensor in fused.state_dict().values()} <= {dtype}


UP = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED: list[tuple[int, Callable[[], Any], str]] = [
    (1, lambda: UP[0](4, 6, 3, 2, 1, 1, 2, True, 2), "convtranspose1d"),
    (1, lambda: UP[0](4, 6, 2, bias=False), "convtranspose1d"),
    (2, lambda: UP[1](4, 6, (3, 2), (2, 3), (1, 0), (0, 2), 2), "convtranspose2d"),
    (2, lambda: UP[1](4, 4, 3, 2, groups=4, bias=False), "convtranspose2d"),
    (3, lambda: UP[2](4, 6, (1, 2, 3), (2, 1, 3), (0, 0, 1), (1, 0, 0), 2), "convtranspose3d"),
    (3, lambda: UP[2](4, 5, 2, 2, bias=False), "convtranspose3d"),
    (0, lambda: nn.LayerNorm(4, 0.1), "layernorm"),
    (0, lambda: nn.LayerNorm(4, bias=False), "layernorm"),
    (0, lambda: nn.RMSNorm(4), "rmsnorm"),
    (0, lambda: nn.RMSNorm(4, 0.1), "rmsnorm"),
    *((n, lambda n=n: nn.GroupNorm(2 ** (n - 1), 4, 0.1), "groupnorm") for n in (1, 2, 3)),
]


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "layer", "operator"), WEIGHTED)
def test_layers_with_weights(
    n: int, layer: Callable[[], Any], operator: str, dtype: torch.dtype, trainable: bool
) -> None:
    """New weights are parameters of the dtype of the old ones, and trained as those were."""
    x = drawn(0, *(2, 4, 5, 4, 3)[: n + 2]).to(dtype)
    model = Scaled(layer(), -3.0, n)
    randomised(model, x.float()).to(dtype).body.requires_grad_(trainable)
    fused = written(model, x, merge_multiple)
    assert kinds(fused) == {type(model.first).__name__.lower(): 1, operator: 1}
    parameters = dict(fused.named_parameters())
    new = {name.rpartition(".")[2]: p for name, p in parameters.items() if "first" not in name}
    old = dict(model.get_submodule("body").named_parameters())
    assert new.keys() == old.keys()
    for name, parameter in new.items():
        assert torch.equal(parameter, (old[name].double() * -3).to(dtype))
        assert parameter.requires_grad is trainable
    fused(x).sum().backward()
    assert all((parameter.grad is not None) is trainable for parameter in new.values())


def test_weights_stay_channels_last() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, 2).to(memory_format=torch.channels_last)
    fused = written(Scaled(layer, 2.0, 2), drawn(0, 2, 4, 5, 4).float(), merge_multiple)
    (weight,) = (p for name, p in fused.named_parameters() if p.ndim == 4 and "first" not in name)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_parameter_among_what_is_joined_stays_one() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.token = nn.Parameter(drawn(5, 2, 1, 4).float())

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.first(x), self.token, x], 1) * 1.0

    fused = written(Tokens(), drawn(0, 2, 5, 4).float(), drop_multiple_of_one)
    assert {*dict(fused.named_parameters())} == {"first.weight", "first.bias", "token"}


def test_layers_that_are_shared_are_written_one_by_one() -> None:
    class Twice(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.body(x) * 2.0)

    model, x = Twice(nn.LayerNorm(4), 2.0).eval(), drawn(0, 2, 5, 4).float()
    randomised(model, x)
    fused = reparam.compile(model, x, passes=(merge_multiple,))
    reparam.verify(model, fused, x).raise_if_different()
    assert kinds(fused) == {"layernorm": 2}
    assert len(list(fused.parameters())) == 4


def test_an_operator_that_is_not_replaced_is_left_as_it_was() -> None:
    model = Scaled(nn.GroupNorm(2, 4), 2.0).eval()
    fused = reparam.compile(model, drawn(0, 2, 4, 3).float(), passes=(drop_multiple_of_one,))
    assert operators(fused) == operators_of(model)
    assert reparam.report(fused).applied == ()


def operators_of(model: nn.Module) -> Any:
    return operators(fx.GraphModule(model, capture(model).graph))


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.RMSNorm(4)])
def test_without_an_example_weights_keep_their_dtype(layer: Any) -> None:
    fused = reparam.compile(Scaled(layer, 2.0).eval(), passes=(merge_multiple,))
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.float32}
