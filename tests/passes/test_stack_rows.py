import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor, nn

from passes import stack_rows
from reparam.errors import Declined
from reparam.facts import TensorFacts
from reparam.graph import ValueGraph
from reparam.operators import Cat
from reparam.sizes import Size, SymbolTable
from reparam.values import Conv
from tests.fused import operators
from tests.passes.alone import Net, fires, reasons
from tests.passes.layers import CONVS
from tests.strategies import drawn

IMAGES = drawn(0, 3, 6, 5, 4).float()
TOKENS = drawn(0, 3, 5, 6).float()
SIZES = ((9, 8, 7), (7, 10, 8))


def joined(*layers: nn.Module, dim: int = 1) -> Net:
    """What several layers make of one input, side by side."""
    names = [f"part{i}" for i in range(len(layers))]
    return Net(
        lambda m, x: torch.cat([getattr(m, name)(x) for name in names], dim),
        **dict(zip(names, layers, strict=True)),
    )


@st.composite
def alike(draw: DrawFn, n: int) -> list[nn.Module]:
    """Convolutions of six channels, in one group, that differ in rows and biases alone."""
    kernel, stride, dilation = (
        tuple(draw(st.integers(1, top)) for _ in range(n)) for top in (4, 3, 2)
    )
    padding = tuple(draw(st.integers(0, 3)) for _ in range(n))
    mode = draw(st.sampled_from(["zeros", "replicate", "circular", *["reflect"][: 3 - n]]))
    return [
        CONVS[n](
            6,
            draw(st.integers(1, 3)),
            kernel,
            stride,
            padding,
            dilation,
            bias=draw(st.booleans()),
            padding_mode=mode,
        )
        for _ in range(draw(st.integers(2, 4)))
    ]


@settings(max_examples=40)
@given(st.data())
def test_convolutions_of_one_kind(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    layers = data.draw(alike(n))
    x, other = (drawn(i, 3, 6, *size[:n]).float() for i, size in enumerate(SIZES))
    fused = fires(stack_rows, joined(*layers, dim=-n - 1), x, given=True, others=(other,))
    assert operators(fused) == {f"Conv{n}d": 1}
    (conv,) = fused.children()
    assert conv.out_channels == sum(layer.out_channels for layer in layers)
    assert (conv.bias is None) == all(layer.bias is None for layer in layers)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_on_tokens(bias: bool) -> None:
    """Queries, keys and values."""
    layers = [nn.Linear(6, width, bias=bias and width > 2) for width in (2, 3, 4)]
    fused = fires(stack_rows, joined(*layers, dim=-1), TOKENS, given=True, others=(TOKENS[:, :1],))
    assert operators(fused) == {"Linear": 1}


def test_one_layer_called_twice() -> None:
    """Two calls are two tensors, each of which one thing reads."""
    conv = nn.Conv2d(6, 2, 3)
    fused = fires(stack_rows, joined(conv, conv), IMAGES, given=True, others=(IMAGES[..., :3],))
    assert operators(fused) == {"Conv2d": 1}


def test_depthwise_kernels_of_one_channel() -> None:
    """With one channel a group costs nothing; the kernels are set into the larger one."""
    small, large = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 8, (3, 1), padding=(1, 0))
    found = reasons(stack_rows, joined(small, large), IMAGES[:, :1], given=True)
    assert found == ["merged, it takes more multiply-adds per pixel: 27 instead of 25"]
    cross = nn.Conv2d(1, 2, 3, padding=1, dilation=1), nn.Conv2d(1, 2, 3, padding=1)
    assert operators(fires(stack_rows, joined(*cross), IMAGES[:, :1], given=True)) == {"Conv2d": 1}


def test_groups() -> None:
    """To put rows of all groups side by side takes a dense weight."""
    layers = [nn.Conv2d(6, 6, 3, groups=2, padding=1) for _ in range(2)]
    assert reasons(stack_rows, joined(*layers), IMAGES, given=True) == [
        "merged, it takes more multiply-adds per pixel: 648 instead of 324"
    ]


DIFFERENT = {
    "the branches differ in stride, (1, 1) and (2, 2)": [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2},
    ],
    "the branches differ in output size": [
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 2, "stride": 2},
    ],
    "the branches differ in padding mode": [
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 1},
    ],
    "the branches are padded differently, in mode 'circular'": [
        {"kernel_size": 5, "padding": 2, "padding_mode": "circular"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    ],
}


@pytest.mark.parametrize("reason", DIFFERENT)
def test_convolutions_that_sample_differently(reason: str) -> None:
    """And make images of one size, which is known."""
    first, second = DIFFERENT[reason]

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.pool(x)
        return torch.cat([m.a(y), m.b(y)], 1)

    model = Net(
        forward,
        pool=nn.AdaptiveAvgPool2d(1 if "stride" in reason else 4),
        a=nn.Conv2d(6, 2, **first),
        b=nn.Conv2d(6, 2, **second),
    )
    assert reasons(stack_rows, model, IMAGES, given=True) == [reason]


def test_one_tensor_joined_twice() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        return torch.cat([y, y], 1)

    model = Net(forward, conv=nn.Conv2d(6, 2, 1))
    assert reasons(stack_rows, model, IMAGES, given=True) == ["something else reads what is joined"]


def test_part_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.b(x)
        return torch.cat([m.a(x), y], 1) + y.relu().mean()

    model = Net(forward, a=nn.Conv2d(6, 2, 1), b=nn.Conv2d(6, 2, 1))
    assert reasons(stack_rows, model, IMAGES, given=True) == ["something else reads what is joined"]


@pytest.mark.parametrize("dim", [0, 2, 3, -1, -2, -4])
def test_joined_along_another_axis(dim: int) -> None:
    model = joined(nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1), dim=dim)
    assert reasons(stack_rows, model, IMAGES, given=True) == []


def test_tokens_joined_one_after_the_other() -> None:
    model = joined(nn.Linear(6, 5), nn.Linear(6, 5), dim=1)
    assert reasons(stack_rows, model, TOKENS, given=True) == []


def test_of_two_inputs() -> None:
    model = Net(
        lambda m, x: torch.cat([m.a(x), m.b(x.relu())], 1),
        a=nn.Conv2d(6, 2, 1),
        b=nn.Conv2d(6, 2, 1),
    )
    assert reasons(stack_rows, model, IMAGES, given=True) == []


def test_beside_its_input() -> None:
    model = Net(lambda m, x: torch.cat([m.a(x), x], 1), a=nn.Conv2d(6, 2, 1))
    assert reasons(stack_rows, model, IMAGES, given=True) == []


def test_parts_of_unknown_dtype() -> None:
    """A layer tells its own when it is lifted; a pass of someone else's need not."""
    table = SymbolTable()
    values = ValueGraph(table)
    x = values.graph.placeholder("x")
    x.meta["facts"] = TensorFacts((table.fresh(), table.fresh(), Size(6)), True)
    parts = [values.apply(Conv(drawn(i, 2, 6)), (x,), {}, "part") for i in range(2)]
    call = values.apply(Cat(0), tuple(part.node for part in parts), {}, "cat")
    values.graph.output(call.node)
    with pytest.raises(Declined) as caught:
        stack_rows(call)
    assert caught.value.reason == "the dtypes differ"
