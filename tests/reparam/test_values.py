"""Each value computes what torch's own operator computes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.values import (
    BatchNorm,
    Constant,
    Conv,
    Layout,
    Opaque,
    Shape,
    Sum,
    Value,
    pad,
)
from reparam.verify import EXACT, relative_difference
from tests.strategies import PADDING_MODES, batch_norms, convs, drawn


def close(a: Tensor, b: Tensor) -> bool:
    return relative_difference(a, b) <= EXACT


@given(convs(modes=PADDING_MODES))
def test_a_convolution_is_its_definition(conv: Conv) -> None:
    """Tap by tap, over an input that is continued beyond its border by hand."""
    x = drawn(3, 2, conv.in_channels, *(5, 6)[: conv.n])
    for axis, (sides, size) in enumerate(zip(conv.padding, x.shape[2:], strict=True)):
        x = _continued(x, axis + 2, sides, size, conv)
    y = conv(drawn(3, 2, conv.in_channels, *(5, 6)[: conv.n])) if _fits(conv, x) else None
    if y is None:
        return
    per_group, out = conv.weight.shape[1], conv.out_channels // conv.groups
    expected = torch.zeros_like(y)
    for o in range(conv.out_channels):
        for i in range(per_group):
            source = x[:, (o // out) * per_group + i]
            for tap in torch.cartesian_prod(*map(torch.arange, (1, 1, *conv.kernel))).tolist():
                window = source
                axes = zip(tap[2:], conv.stride, conv.dilation, y.shape[2:], strict=True)
                for axis, (t, stride, dilation, size) in enumerate(axes):
                    places = torch.arange(size) * stride + dilation * t
                    window = window.index_select(axis + 1, places)
                expected[:, o] += conv.weight[(o, i, *tap[2:])] * window
        if conv.bias is not None:
            expected[:, o] += conv.bias[o]
    assert close(expected, y)


def _continued(x: Tensor, axis: int, sides: tuple[int, int], size: int, conv: Conv) -> Tensor:
    places = torch.arange(-sides[0], size + sides[1])
    inside = (places >= 0) & (places < size)
    match conv.padding_mode:
        case "reflect":
            period = max(2 * size - 2, 1)
            places = places % period
            places = torch.where(places < size, places, period - places)
        case "circular":
            places = places % size
    taken = x.index_select(axis, places.clamp(0, size - 1))
    if conv.padding_mode != "zeros":
        return taken
    constant = torch.zeros(conv.in_channels) if conv.border is None else conv.border
    constant = constant.double().reshape(-1, *(1,) * conv.n)
    shape = [1] * x.ndim
    shape[axis] = len(places)
    return torch.where(inside.reshape(shape), taken, constant)


def _fits(conv: Conv, padded: Tensor) -> bool:
    axes = zip(padded.shape[2:], conv.kernel, conv.dilation, strict=True)
    return all(size > d * (k - 1) for size, k, d in axes)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_convolution_is_torchs_module(n: int, mode: str) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
    module = kind(4, 6, 3, 2, 1, groups=2, padding_mode=mode).double()
    sides = ((1, 1),) * n
    conv = Conv(module.weight.detach(), module.bias.detach(), (2,) * n, sides, (1,) * n, 2, mode)
    x = drawn(1, 2, 4, *(5,) * n)
    with torch.no_grad():
        assert close(module(x), conv(x))


def test_a_linear_layer_is_a_convolution_over_no_axes() -> None:
    module = nn.Linear(4, 6).double()
    conv = Conv(module.weight.detach(), module.bias.detach())
    for shape in ((4,), (3, 4), (2, 3, 4), (0, 4)):
        assert close(module(drawn(0, *shape)).detach(), conv(drawn(0, *shape)))


@given(convs())
def test_a_convolution_computes_in_the_dtype_of_its_input(conv: Conv) -> None:
    x = drawn(0, 2, conv.in_channels, *(9, 9)[: conv.n]).float()
    assert conv(x).dtype == torch.float32
    assert {tensor.dtype for tensor in conv.tensors()} == {torch.float64}


def test_hyperparameters_left_out_are_torchs_defaults() -> None:
    conv = Conv(torch.ones(2, 3, 4, 5))
    assert (conv.stride, conv.padding, conv.dilation) == ((1, 1), ((0, 0), (0, 0)), (1, 1))
    assert (conv.n, conv.kernel, conv.in_channels, conv.out_channels) == (2, (4, 5), 3, 2)
    assert not conv.padded


@pytest.mark.parametrize(
    ("conv", "pointwise", "depthwise"),
    [
        (Conv(torch.ones(4, 1, 1, 1), groups=4), True, True),
        (Conv(torch.ones(4, 4, 1, 1)), True, False),
        (Conv(torch.ones(8, 1, 1, 1), groups=4), True, False),
        (Conv(torch.ones(4, 1, 3), groups=4), False, True),
        (Conv(torch.ones(4, 1, 1), groups=4, stride=(2,)), False, True),
        (Conv(torch.ones(4, 1, 1), groups=4, padding=((0, 1),)), False, True),
        (Conv(torch.ones(1, 1)), True, True),
    ],
)
def test_what_a_convolution_is(conv: Conv, pointwise: bool, depthwise: bool) -> None:
    assert (conv.pointwise, conv.depthwise) == (pointwise, depthwise)
    assert conv.affine is (pointwise and depthwise)


def test_the_border_is_a_constant_per_channel() -> None:
    x, border = torch.zeros(1, 2, 1), torch.tensor([1.0, 2.0])
    assert pad(x, ((1, 2),), "zeros", border)[0].tolist() == [[1, 0, 1, 1], [2, 0, 2, 2]]
    assert pad(x, ((0, 0),), "zeros", border) is x


@given(batch_norms())
def test_a_batch_norm_is_torchs(norm: BatchNorm) -> None:
    assert norm.n is not None
    x = drawn(1, 3, norm.mean.numel(), *(2, 3, 4)[: norm.n])
    expected = F.batch_norm(
        x, norm.mean, norm.variance, norm.weight, norm.bias, training=False, eps=norm.eps
    )
    state = [tensor.clone() for tensor in norm.tensors()]
    assert torch.equal(norm(x), expected)
    assert all(map(torch.equal, state, norm.tensors()))
    assert norm(x.float()).dtype == torch.float32


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_a_sum_is_weighted(coefficients: list[float]) -> None:
    inputs = [drawn(index, 2, 3) for index, _ in enumerate(coefficients)]
    weighted = [c * x for c, x in zip(coefficients, inputs, strict=True)]
    expected = torch.stack(weighted).sum(0)
    assert close(expected, Sum(tuple(coefficients))(*inputs))


def test_a_sum_takes_as_many_tensors_as_it_has_coefficients() -> None:
    with pytest.raises(ValueError, match="zip"):
        Sum((1.0, 1.0))(torch.ones(1))


def test_sizes_and_constants() -> None:
    x = torch.zeros(2, 3, 4)
    assert Shape()(x) == (2, 3, 4)
    assert Shape(-1)(x) == 4
    assert Shape(rank=True)(x) == 3
    assert Constant(5)() == 5


def test_an_opaque_call_calls_what_it_names() -> None:
    x = drawn(0, 3)
    for target in (torch.relu, "relu", nn.ReLU()):
        assert torch.equal(Opaque(target)(x), x.relu())
        assert Opaque(target).__name__ == "relu"
    layout = Layout(torch.transpose, kind="permute", axes=(-1, -2))
    assert torch.equal(layout(drawn(0, 2, 3), 0, 1), drawn(0, 2, 3).T)


def test_values_are_compared_by_identity_and_hashed() -> None:
    conv = Conv(torch.ones(1, 1))
    assert conv != replace(conv)
    assert len({conv, conv, Sum((1.0,)), Sum((1.0,))}) == 3
    with pytest.raises(NotImplementedError):
        Value()()
