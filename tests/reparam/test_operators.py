"""Each of torch's own operators, as a value, computes what torch's module or function computes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.operators import AVERAGES, TRANSPOSED, AvgPool, Cat, ConvTranspose, Norm, Pad
from reparam.verify import EXACT, ROUNDING, relative_difference
from tests.randomised import EPSILONS, randomised
from tests.strategies import PADDING_MODES, drawn

AXES = st.integers(1, 3)
SMALL = (2, 4, 5, 6, 4)
"""The shape of an image of three spatial axes; one of fewer has the first of these sizes."""

Sides = tuple[tuple[int, int], ...]


def image(n: int) -> Tensor:
    return drawn(7, *SMALL[: n + 2])


def per_side(n: int) -> st.SearchStrategy[Sides]:
    """Up to three rows on a side, which every axis is long enough to reflect."""
    side = st.integers(0, 3)
    return st.lists(st.tuples(side, side), min_size=n, max_size=n).map(tuple)


@st.composite
def pads(draw: st.DrawFn) -> Pad:
    n, mode = draw(AXES), draw(st.sampled_from(PADDING_MODES))
    constants = draw(st.sampled_from((None, 1, SMALL[1]))) if mode == "zeros" else None
    border = None if constants is None else drawn(3, constants)
    return Pad(draw(per_side(n)), mode, border)


@given(pads())
def test_a_pad_is_torchs(pad: Pad) -> None:
    """Torch takes one constant, so channels with one each are padded one by one."""
    x, sides = image(pad.n), [side for pair in reversed(pad.padding) for side in pair]
    if pad.padding_mode != "zeros":
        assert torch.equal(pad(x), F.pad(x, sides, pad.padding_mode))
        return
    border = torch.zeros(1) if pad.border is None else pad.border
    constants = border.expand(SMALL[1]).tolist()
    padded = [F.pad(x[:, c], sides, value=value) for c, value in enumerate(constants)]
    assert relative_difference(torch.stack(padded, 1), pad(x)) <= ROUNDING


def test_the_first_pair_of_a_padding_is_of_the_first_axis() -> None:
    before_rows = Pad(((1, 0), (0, 2)), border=torch.tensor([5.0, 6.0]))
    assert before_rows(torch.zeros(2, 1, 1)).tolist() == [
        [[5, 5, 5], [0, 5, 5]],
        [[6] * 3, [0, 6, 6]],
    ]
    assert before_rows.n == 2


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_pad_is_the_padding_of_torchs_convolution(n: int, mode: str) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
    conv = kind(4, 2, 3, padding=(1, 2, 1)[:n], padding_mode=mode).double()
    pad = Pad(((1, 1), (2, 2), (1, 1))[:n], mode)
    plain = kind(4, 2, 3).double()
    plain.load_state_dict(conv.state_dict())
    with torch.no_grad():
        assert relative_difference(conv(image(n)), plain(pad(image(n)))) <= EXACT


@st.composite
def pools(draw: st.DrawFn) -> AvgPool:
    """With a padding of at most half a window, which is all that torch takes."""
    n = draw(AXES)
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(n))
    divisors = st.none() if n == 1 else st.sampled_from((None, 1, 5))
    return AvgPool(
        kernel,
        tuple(draw(st.integers(1, 3)) for _ in range(n)),
        tuple(draw(st.integers(0, k // 2)) for k in kernel),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(divisors),
    )


@given(pools())
def test_an_average_pooling_is_torchs(pool: AvgPool) -> None:
    module = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[pool.n - 1]
    options: dict[str, Any] = {} if pool.n == 1 else {"divisor_override": pool.divisor}
    torchs = module(
        pool.kernel, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad, **options
    )
    assert torch.equal(pool(image(pool.n)), torchs(image(pool.n)))
    assert torch.equal(pool(image(pool.n).float()), torchs(image(pool.n).float()))


@given(pools())
def test_an_average_is_taken_window_by_window(pool: AvgPool) -> None:
    """By the definition that its attributes give, not by torch's function."""
    x = image(pool.n)
    y = pool(x)
    for place in torch.cartesian_prod(*map(torch.arange, (1, *y.shape[2:]))).tolist():
        windows: list[slice] = []
        counted = 1
        axes = zip(place[1:], pool.kernel, pool.stride, pool.padding, x.shape[2:], strict=True)
        for p, kernel, stride, padding, size in axes:
            first = p * stride - padding
            windows.append(slice(max(first, 0), max(first + kernel, 0)))
            end = size + padding if pool.count_include_pad else size
            start = first if pool.count_include_pad else max(first, 0)
            counted *= min(first + kernel, end) - start
        total = x[(..., *windows)].flatten(2).sum(2)
        assert relative_difference(total / (pool.divisor or counted), y[(..., *place[1:])]) <= EXACT


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_tensors_are_joined_so_many_axes_from_the_end(n: int) -> None:
    shapes = ([2, 3, 4, 5] for _ in range(3))
    parts: list[Tensor] = []
    for seed, shape in enumerate(shapes):
        shape[3 - n] = seed + 1
        parts.append(drawn(seed, *shape))
    assert torch.equal(Cat(n)(*parts), torch.cat(parts, 3 - n))


@st.composite
def transposed(draw: st.DrawFn) -> ConvTranspose:
    """An output padding less than the stride or the dilation, and a padding that leaves rows."""
    n, groups = draw(AXES), draw(st.sampled_from((1, 2, 4)))
    per_group = draw(st.integers(1, 3))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(n))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(n))
    return ConvTranspose(
        drawn(1, SMALL[1], per_group, *(draw(st.integers(1, 3)) for _ in range(n))),
        drawn(2, per_group * groups) if draw(st.booleans()) else None,
        stride,
        tuple(draw(st.integers(0, 1)) for _ in range(n)),
        tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)),
        dilation,
        groups,
    )


@given(transposed())
def test_a_transposed_convolution_is_torchs(conv: ConvTranspose) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[conv.n - 1]
    inner, outer = conv.in_channels, conv.out_channels
    module = kind(
        inner, outer, tuple(conv.weight.shape[2:]), conv.stride, conv.padding,
        conv.output_padding, conv.groups, conv.bias is not None, conv.dilation,
    ).double()  # fmt: skip
    module.weight.data.copy_(conv.weight)
    if conv.bias is not None:
        module.bias.data.copy_(conv.bias)
    with torch.no_grad():
        assert torch.equal(conv(image(conv.n)), module(image(conv.n)))
        assert torch.equal(conv(image(conv.n).float()), module.float()(image(conv.n).float()))


@given(transposed())
def test_a_transposed_convolution_is_the_adjoint_of_a_convolution(conv: ConvTranspose) -> None:
    """<x, A y> = <Aᵀ x, y>, A being the convolution with the same weight."""
    if conv.bias is not None:
        return
    x = image(conv.n)
    y = drawn(4, *conv(x).shape)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[conv.n - 1]
    options = (None, conv.stride, conv.padding, conv.dilation, conv.groups)
    adjoint = convolution(y, conv.weight, *options)[(..., *(slice(s) for s in x.shape[2:]))]
    assert adjoint.shape == x.shape
    assert relative_difference((adjoint * x).sum(), (conv(x) * y).sum()) <= EXACT


def norm_of(module: Any, kind: Any, channels: int, groups: int = 1) -> Norm:
    weight, bias = (
        None if p is None else p.detach().double()
        for p in (module.weight, getattr(module, "bias", None))
    )
    return Norm(kind, channels, weight, bias, module.eps, groups)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", EPSILONS)
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_is_torchs(affine: bool, eps: float, dtype: torch.dtype) -> None:
    """In the dtype of its input, whatever that of its weights."""
    cases: list[tuple[nn.Module, Any, int, tuple[int, ...]]] = [
        (nn.LayerNorm(6, eps, affine), "layer", 1, (2, 5, 6)),
        (nn.LayerNorm(6, eps, affine, bias=False), "layer", 1, (6,)),
        (nn.RMSNorm(6, eps, affine), "rms", 1, (2, 5, 6)),
        *((nn.GroupNorm(g, 6, eps, affine), "group", g, (2, 6, 4, 3)) for g in (1, 2, 6)),
        (nn.GroupNorm(3, 6, eps, affine), "group", 3, (2, 6)),
    ]
    for module, kind, groups, shape in cases:
        randomised(module, drawn(1, *shape).float())
        module.to(dtype)
        x = drawn(0, *shape).to(dtype)
        y = norm_of(module, kind, 6, groups)(x)
        assert y.dtype == dtype
        assert torch.equal(y, module(x).detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_the_epsilon_of_a_norm_is_torchs_if_it_is_left_out(kind: Any, dtype: torch.dtype) -> None:
    """That of an RMS norm depends on the dtype, which shows where the input is next to nothing."""
    x = (drawn(0, 2, 6) * 1e-6).to(dtype)
    modules: dict[str, nn.Module] = {
        "layer": nn.LayerNorm(6, elementwise_affine=False),
        "rms": nn.RMSNorm(6, elementwise_affine=False),
        "group": nn.GroupNorm(2, 6, affine=False),
    }
    assert torch.equal(Norm(kind, 6, None, None, None, 2)(x), modules[kind](x))


@given(AXES, st.booleans())
def test_values_hold_their_tensors_and_leave_them_alone(n: int, bias: bool) -> None:
    shift = drawn(2, 6) if bias else None
    kernel, ones, zeros = (2,) * n, (1,) * n, (0,) * n
    conv = ConvTranspose(drawn(1, 4, 3, *kernel), shift, ones, zeros, zeros, ones, 2)
    assert (conv.n, conv.in_channels, conv.out_channels) == (n, 4, 6)
    norm = Norm("group", 4, drawn(3, 4), None, 1e-5, 2)
    pad = Pad(((1, 1),) * n, border=drawn(4, 4))
    for value, held in ((conv, 1 + bias), (norm, 1), (pad, 1)):
        before = [tensor.clone() for tensor in value.tensors()]
        value(image(n).bfloat16())
        assert len(value.tensors()) == held
        assert all(map(torch.equal, before, value.tensors()))


def test_there_is_a_function_for_each_number_of_axes() -> None:
    assert [f.__name__ for f in AVERAGES] == ["avg_pool1d", "avg_pool2d", "avg_pool3d"]
    assert [f.__name__ for f in TRANSPOSED] == [f"conv_transpose{n}d" for n in (1, 2, 3)]
