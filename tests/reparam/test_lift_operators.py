"""What each of torch's functions and modules is lifted to, and that it computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.operators import AvgPool, Cat, ConvTranspose, Norm, Pad
from reparam.values import IDENTITY, Opaque, Value
from tests.lifted import SCALE, SHAPES, SHIFT, UP, WIDE, Forward, Net, layout, lifted, same
from tests.randomised import randomised
from tests.strategies import drawn

FIVE = torch.tensor([5.0])


def norm(kind: Any, weights: int, eps: float | None = 1e-5, groups: int = 1) -> Norm:
    return Norm(kind, 4, *(SCALE, SHIFT)[:weights], *(None,) * (2 - weights), eps, groups)


# fmt: off
FUNCTIONS: list[tuple[int, Forward, Value]] = [
    (1, lambda m, x: F.avg_pool1d(x, 2), AvgPool((2,), (2,), (0,))),
    (1, lambda m, x: F.avg_pool1d(x, (3,), (2,), (1,), True, False),
        AvgPool((3,), (2,), (1,), True, False)),
    (1, lambda m, x: F.avg_pool1d(input=x, kernel_size=3, stride=1, padding=1),
        AvgPool((3,), (1,), (1,))),
    (2, lambda m, x: F.avg_pool2d(x, (2, 3)), AvgPool((2, 3), (2, 3), (0, 0))),
    (2, lambda m, x: F.avg_pool2d(x, 3, None, 1, True, False, 7),
        AvgPool((3, 3), (3, 3), (1, 1), True, False, 7)),
    (2, lambda m, x: F.avg_pool2d(x, kernel_size=3, stride=(1, 2), count_include_pad=False,
                                  padding=[1, 0], ceil_mode=True, divisor_override=2),
        AvgPool((3, 3), (1, 2), (1, 0), True, False, 2)),
    (3, lambda m, x: F.avg_pool3d(x, 2, (1, 2, 1), (1, 0, 1)),
        AvgPool((2, 2, 2), (1, 2, 1), (1, 0, 1))),
    (3, lambda m, x: F.avg_pool3d(x, 3, divisor_override=5, padding=1, stride=2),
        AvgPool((3, 3, 3), (2, 2, 2), (1, 1, 1), divisor=5)),
    (1, lambda m, x: F.conv_transpose1d(x, m.up1, m.wide, 2, 1, 1, 2, 3),
        ConvTranspose(UP[1], WIDE, (2,), (1,), (1,), (3,), 2)),
    (2, lambda m, x: F.conv_transpose2d(x, m.up2, stride=(2, 3), output_padding=(1, 2)),
        ConvTranspose(UP[2], None, (2, 3), (0, 0), (1, 2), (1, 1))),
    (3, lambda m, x: F.conv_transpose3d(x, weight=m.up3, bias=m.wide, groups=2, stride=2,
                                        padding=[1, 0, 1], dilation=(2, 1, 3)),
        ConvTranspose(UP[3], WIDE, (2, 2, 2), (1, 0, 1), (0, 0, 0), (2, 1, 3), 2)),
    (1, lambda m, x: F.pad(x, (1, 2)), Pad(((1, 2),))),
    (2, lambda m, x: F.pad(x, (1, 2)), Pad(((0, 0), (1, 2)))),
    (2, lambda m, x: F.pad(x, [1, 2, 0, 3], "constant", 5), Pad(((0, 3), (1, 2)), border=FIVE)),
    (2, lambda m, x: F.pad(x, pad=(1, 2, 0, 3), value=5.0), Pad(((0, 3), (1, 2)), border=FIVE)),
    (2, lambda m, x: F.pad(x, (1, 2, 0, 3), mode="reflect"), Pad(((0, 3), (1, 2)), "reflect")),
    (3, lambda m, x: F.pad(x, (1, 2, 0, 3, 1, 1), mode="circular"),
        Pad(((1, 1), (0, 3), (1, 2)), "circular")),
    (1, lambda m, x: F.pad(x, (7, 0), "replicate"), Pad(((7, 0),), "replicate")),
    (2, lambda m, x: torch.cat([x, x * 2], 1), Cat(2)),
    (2, lambda m, x: torch.cat((x, x * 2), dim=-3), Cat(2)),
    (1, lambda m, x: torch.concat([x, x * 2]), Cat(2)),
    (3, lambda m, x: torch.concatenate([x, x * 2], axis=-1), Cat(0)),
    (0, lambda m, x: F.layer_norm(x, (4,)), norm("layer", 0)),
    (0, lambda m, x: F.layer_norm(x, [4], m.scale, m.shift, 0.1), norm("layer", 2, 0.1)),
    (0, lambda m, x: F.layer_norm(x, normalized_shape=(4,), weight=m.scale), norm("layer", 1)),
    (0, lambda m, x: F.rms_norm(x, (4,)), norm("rms", 0, None)),
    (0, lambda m, x: F.rms_norm(x, (4,), eps=0.1, weight=m.scale), norm("rms", 1, 0.1)),
    (2, lambda m, x: F.group_norm(x, 2, m.scale, m.shift, 0.1), norm("group", 2, 0.1, 2)),
    (1, lambda m, x: F.group_norm(x, num_groups=4, weight=m.scale), norm("group", 1, 1e-5, 4)),
    (2, lambda m, x: F.leaky_relu(x, 1.0), IDENTITY),
    (2, lambda m, x: F.leaky_relu(x * 2, negative_slope=1, inplace=True), IDENTITY),
    (2, lambda m, x: F.prelu(x, m.ones), IDENTITY),
    (2, lambda m, x: torch.prelu(x, weight=m.ones), IDENTITY),
    (2, lambda m, x: x.mean((2, 3), True), layout("mean", -2, -1)),
    (2, lambda m, x: torch.mean(x, dim=[-1, 2], keepdim=True), layout("mean", -2, -1)),
    (0, lambda m, x: x.mean(1), layout("mean out", -2)),
    (0, lambda m, x: x.mean(axis=-2), layout("mean out", -2)),
    (1, lambda m, x: F.adaptive_avg_pool1d(x, 4), layout("pool")),
    (2, lambda m, x: F.adaptive_avg_pool2d(x, (4, 3)), layout("pool")),
    (3, lambda m, x: F.adaptive_avg_pool3d(x, 1), layout("pool")),
    (2, lambda m, x: F.interpolate(x, None, 2), layout("pool")),
    (2, lambda m, x: F.interpolate(x, (9, 4), None, "bilinear", False), layout("pool")),
]
# fmt: on


@pytest.mark.parametrize(("n", "forward", "expected"), FUNCTIONS)
def test_functions_and_methods(n: int, forward: Forward, expected: Value) -> None:
    *_, call = lifted(Net(forward), drawn(0, *SHAPES[n]))
    assert same(call.value, expected)


# fmt: off
MODULES: list[tuple[int, nn.Module, Value]] = [
    (1, nn.AvgPool1d(3, 2, 1), AvgPool((3,), (2,), (1,))),
    (2, nn.AvgPool2d((2, 3), None, (1, 0), True, False, 5),
        AvgPool((2, 3), (2, 3), (1, 0), True, False, 5)),
    (3, nn.AvgPool3d(2, 1, count_include_pad=False),
        AvgPool((2, 2, 2), (1, 1, 1), (0, 0, 0), False, False)),
    (2, nn.LeakyReLU(1.0), IDENTITY),
    (2, nn.PReLU(4, init=1.0), IDENTITY),
    (1, nn.AdaptiveAvgPool1d(4), layout("pool")),
    (2, nn.AdaptiveAvgPool2d((None, 2)), layout("pool")),
    (3, nn.AdaptiveAvgPool3d(1), layout("pool")),
    (2, nn.Upsample(scale_factor=2, mode="bicubic"), layout("pool")),
]
# fmt: on


@pytest.mark.parametrize(("n", "module", "expected"), MODULES)
def test_modules(n: int, module: nn.Module, expected: Value) -> None:
    model = Net(lambda m, x: m.layer(x), module)
    (call,) = lifted(model, drawn(0, *SHAPES[n]))
    assert same(call.value, expected)
    assert call.name == "layer"


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("Zero", "zeros"),
        ("Constant", "zeros"),
        ("Reflection", "reflect"),
        ("Replication", "replicate"),
        ("Circular", "circular"),
    ],
)
def test_padding_modules(kind: str, mode: str, n: int) -> None:
    constant = (5.0,) if kind == "Constant" else ()
    pairs = ((1, 2), (0, 1), (2, 1))[:n]
    module = getattr(nn, f"{kind}Pad{n}d")(sum(pairs, ()), *constant)
    (call,) = lifted(Net(lambda m, x: m.layer(x), module), drawn(0, *SHAPES[n]))
    assert same(call.value, Pad(pairs[::-1], mode, FIVE if constant else None))


UPSAMPLED = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": 3}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_transposed_convolutions(n: int, bias: bool) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n - 1]
    module = kind(4, 6, (2, 3, 1)[:n], bias=bias, **UPSAMPLED)
    (call,) = lifted(Net(lambda m, x: m.layer(x), module), drawn(0, *SHAPES[n]))
    two, one = (2,) * n, (1,) * n
    weights = module.weight.detach(), module.bias.detach() if bias else None
    assert same(call.value, ConvTranspose(*weights, two, one, one, (3,) * n, 2))
    assert not any(tensor.requires_grad for tensor in call.value.tensors())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("kind", "module", "n"),
    [
        ("layer", lambda affine: nn.LayerNorm(4, 0.1, affine), 0),
        ("layer", lambda affine: nn.LayerNorm(4, elementwise_affine=affine, bias=False), 0),
        ("rms", lambda affine: nn.RMSNorm(4, None, affine), 0),
        ("group", lambda affine: nn.GroupNorm(2, 4, 0.1, affine), 2),
        ("group", lambda affine: nn.GroupNorm(4, 4, affine=affine), 1),
    ],
)
def test_norms(kind: Any, module: Callable[[bool], Any], n: int, affine: bool) -> None:
    layer, x = module(affine), drawn(0, *SHAPES[n])
    randomised(layer, x.float())
    (call,) = lifted(Net(lambda m, x: m.layer(x), layer), x)
    weight, bias = (getattr(layer, name, None) for name in ("weight", "bias"))
    groups = layer.num_groups if kind == "group" else 1
    assert same(call.value, Norm(kind, 4, weight, bias, layer.eps, groups))


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


def with_own_forward(layer: nn.Module) -> nn.Module:
    layer.forward = torch.relu
    return layer


COMPUTED = {name: f"its {name} is computed from the input" for name in ("weight", "bias")}


# fmt: off
OPAQUE: list[tuple[int, Forward, nn.Module | None, str | None]] = [
    (1, lambda m, x: F.conv_transpose1d(x, x.mean(0)[..., None]), None, COMPUTED["weight"]),
    (1, lambda m, x: F.conv_transpose1d(x, m.up1, x.mean((0, 2))[:3], 2), None, COMPUTED["bias"]),
    (0, lambda m, x: F.layer_norm(x, (4,), x[0, 0]), None, COMPUTED["weight"]),
    (0, lambda m, x: F.layer_norm(x, (4,), m.scale, x[0, 0]), None, COMPUTED["bias"]),
    (0, lambda m, x: F.rms_norm(x, (4,), x[0, 0]), None, COMPUTED["weight"]),
    (1, lambda m, x: F.group_norm(x, 2, x[0, :, 0]), None, COMPUTED["weight"]),
    (1, lambda m, x: F.group_norm(x, 2), None, None),
    (0, lambda m, x: F.layer_norm(x, (5, 4)), None, None),
    (0, lambda m, x: m.layer(x), nn.LayerNorm((5, 4)), None),
    (0, lambda m, x: m.layer(x), nn.RMSNorm((5, 4)), None),
    (2, lambda m, x: F.avg_pool2d(x, x.shape[-1]), None,
        "one of its hyper-parameters is computed in the forward"),
    (2, lambda m, x: m.layer(x * 2), hooked(nn.AvgPool2d(2)), "it has hooks"),
    (2, lambda m, x: m.layer(x), with_own_forward(nn.AvgPool2d(2)),
        "its class AvgPool2d has a forward of its own"),
    (2, lambda m, x: m.layer(x, output_size=(12, 10)), nn.ConvTranspose2d(4, 3, 2, 2), None),
    (2, lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 1)), None, None),
    (2, lambda m, x: F.pad(x, (1, x.shape[0])), None, None),
    (2, lambda m, x: F.leaky_relu(x), None, None),
    (2, lambda m, x: F.leaky_relu(x, 0.5), None, None),
    (2, lambda m, x: F.prelu(x, m.scale), None, None),
    (2, lambda m, x: m.layer(x), nn.LeakyReLU(0.5), None),
    (2, lambda m, x: m.layer(x), nn.PReLU(), None),
    (2, lambda m, x: x.mean() * x, None, None),
    (2, lambda m, x: x.mean(1, dtype=torch.float64), None, None),
    (2, lambda m, x: F.adaptive_max_pool2d(x, 1), None, None),
    (2, lambda m, x: torch.cat(x.chunk(2, 0), 1), None, None),
]
# fmt: on


@pytest.mark.parametrize(("n", "forward", "layer", "reason"), OPAQUE)
def test_what_is_nothing_known_stays_opaque(
    n: int, forward: Forward, layer: nn.Module | None, reason: str | None
) -> None:
    calls = lifted(Net(forward, layer), drawn(0, *SHAPES[n]))
    opaque = [c.value for c in calls if type(c.value) is Opaque and c.value.__name__ != "getitem"]
    assert [value.reason for value in opaque if value.reason] == ([reason] if reason else [])
    assert opaque


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: F.group_norm(x, x.shape[1] // 2, m.scale),
        lambda m, x: F.layer_norm(x, (5,), eps=x.shape[0] * 0.1),
        lambda m, x: F.avg_pool2d(x, 2, divisor_override=x.shape[0]),
    ],
)
@pytest.mark.usefixtures("without_annotation_checks")
def test_arguments_that_are_computed_stay_arguments(forward: Forward) -> None:
    model = Net(forward).double().eval()
    fused = reparam.compile(model, drawn(0, *SHAPES[2]))
    reparam.verify(model, fused, drawn(0, *SHAPES[2])).raise_if_different()


def test_an_empty_stride_is_the_window() -> None:
    (call,) = lifted(Net(lambda m, x: F.avg_pool2d(x, (2, 3), [])), drawn(0, *SHAPES[2]))
    assert same(call.value, AvgPool((2, 3), (2, 3), (0, 0)))


def test_what_needs_the_number_of_axes_is_lifted_where_it_is_known() -> None:
    """A convolution takes images without a batch too; a batch norm does not."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.cat(
            [F.pad(m.layer(x), (1, 2)), m.layer(x).mean((2, 3), True).expand(2, 4, 6, 2)], 3
        )

    unknown = nn.Conv2d(4, 4, 1)
    known = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    for layer, kinds in ((unknown, {"pad", "mean", "cat"}), (known, set[str]())):
        calls = lifted(Net(forward, layer), drawn(0, *SHAPES[2]), known=False)
        opaque = {c.value.__name__ for c in calls if type(c.value) is Opaque} - {"expand"}
        assert opaque == kinds
