import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import fold_into_readers
from reparam.errors import Declined
from reparam.graph import ValueGraph
from reparam.operators import Norm
from reparam.sizes import SymbolTable
from reparam.values import Conv
from tests.fused import operators
from tests.passes.alone import Net, alone, fires, reasons

IMAGES = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0))


def tokens(y: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H·W, C)."""
    return y.flatten(2).transpose(1, 2)


@settings(max_examples=20)
@given(
    affine=st.booleans(),
    bias=st.booleans(),
    layout=st.sampled_from(
        [
            tokens,
            lambda y: y.permute(0, 2, 3, 1),
            lambda y: y.reshape(y.shape[0], 6, -1).transpose(-1, -2),
            lambda y: y.transpose(1, 3).reshape(y.shape[0], -1, 6),
        ]
    ),
)
def test_batch_norm(affine: bool, bias: bool, layout: object) -> None:
    model = Net(
        lambda m, x: m.linear(layout(m.norm(m.conv(x)))),
        conv=nn.Conv2d(6, 6, 1),  # which tells the dtype
        norm=nn.BatchNorm2d(6, affine=affine),
        linear=nn.Linear(6, 5, bias=bias),
    )
    fused = fires(fold_into_readers, model, IMAGES)
    assert operators(fused)["Linear"] == 1
    assert not operators(fused)["BatchNorm2d"]


def test_scale() -> None:
    """Of a convolution's output, so that its axes are known."""
    model = Net(
        lambda m, x: m.linear(tokens(m.scale * m.conv(x).relu())),
        conv=nn.Conv2d(6, 6, 1),
        scale=torch.ones(6, 1, 1),
        norm=nn.BatchNorm2d(6),
        linear=nn.Linear(6, 5),
    )
    fused = fires(fold_into_readers, model, IMAGES, given=True)
    assert not operators(fused)["mul"]


def test_tensor_in_between_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return m.linear(tokens(y)) + tokens(y).relu()

    model = Net(forward, conv=nn.Conv2d(6, 6, 1), norm=nn.BatchNorm2d(6), linear=nn.Linear(6, 6))
    assert reasons(fold_into_readers, model, IMAGES) == [
        "relu reads it, which a scale and shift can't pass"
    ]


def test_linear_layer_over_another_axis() -> None:
    """The tokens are mixed, not the channels."""
    model = Net(
        lambda m, x: m.linear(m.norm(m.conv(x)).flatten(2)),
        conv=nn.Conv2d(6, 6, 1),
        norm=nn.BatchNorm2d(6),
        linear=nn.Linear(20, 5),
    )
    assert reasons(fold_into_readers, model, IMAGES) == [
        "its channels are not the channels of what reads it"
    ]


def test_part_of_the_channels() -> None:
    """A linear layer over a piece of them takes in the scales of that piece."""
    model = Net(
        lambda m, x: m.linear(tokens(m.norm(m.conv(x))).chunk(2, dim=-1)[1]),
        conv=nn.Conv2d(6, 6, 1),
        norm=nn.BatchNorm2d(6),
        linear=nn.Linear(3, 5),
    )
    fired = fires(fold_into_readers, model, IMAGES)
    assert operators(fired)["BatchNorm2d"] == 0


def test_every_reader_takes_it_in() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = tokens(m.norm(m.conv(x)))
        return m.q(y).sum(1) + m.k(y.mean(1))

    model = Net(
        forward,
        conv=nn.Conv2d(6, 6, 1),
        norm=nn.BatchNorm2d(6),
        q=nn.Linear(6, 5),
        k=nn.Linear(6, 5, bias=False),
    )
    assert operators(fires(fold_into_readers, model, IMAGES))["BatchNorm2d"] == 0


@pytest.mark.parametrize("bias", [False, True])
def test_affine_part_of_a_layer_norm(bias: bool) -> None:
    model = Net(
        lambda m, x: m.linear(m.norm(tokens(m.conv(x)))),
        conv=nn.Conv2d(6, 6, 1),
        norm=nn.LayerNorm(6),
        linear=nn.Linear(6, 5, bias=bias),
    )
    fused = fires(fold_into_readers, model, IMAGES, given=True)
    assert operators(fused)["LayerNorm"] == 1
    assert "norm.weight" not in fused.state_dict()


@pytest.mark.parametrize("padding", [0, 1])
def test_affine_part_of_a_group_norm_before_padding(padding: int) -> None:
    """Its shift would show at the border."""

    def model() -> Net:
        return Net(
            lambda m, x: m.after(m.norm(m.conv(x))),
            conv=nn.Conv2d(6, 6, 1),
            norm=nn.GroupNorm(2, 6),
            after=nn.Conv2d(6, 5, 3, padding=padding),
        )

    # A group norm takes any number of axes, and nothing else tells whether there is a batch.
    assert reasons(fold_into_readers, model(), IMAGES) == ["its number of axes is not known"]
    fused, report = alone(fold_into_readers, model(), IMAGES, given=True)
    missed = [remark.message for remark in report.missed]
    assert missed == (["its shift meets zero padding"] if padding else [])
    assert ("norm.weight" in fused.state_dict()) == bool(padding)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_batch_norm_before_several_convolutions(mode: str) -> None:
    """What is reflected is shifted with the rest."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.norm(x)
        return m.a(y) * m.b(y).sigmoid()

    model = Net(
        forward,
        norm=nn.BatchNorm2d(6),
        a=nn.Conv2d(6, 5, 1),
        b=nn.Conv2d(6, 5, 3, padding=1, padding_mode=mode),
    )
    fused, report = alone(fold_into_readers, model, IMAGES)
    missed = [remark.message for remark in report.missed]
    assert missed == (["its shift meets zero padding"] if mode == "zeros" else [])
    assert operators(fused)["BatchNorm2d"] == len(missed)


@pytest.mark.parametrize("layout", [lambda y: y, lambda y: y.flatten(1)])
def test_norm_of_which_only_the_sizes_are_read(layout: object) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        return m.linear(x).reshape(layout(m.norm(x)).shape)

    model = Net(forward, norm=nn.LayerNorm(5), linear=nn.Linear(5, 5))
    _, report = alone(fold_into_readers, model, IMAGES, given=True)
    assert report.applied == ()
    assert [remark.message for remark in report.missed] == ["nothing reads it"]


def test_norm_of_a_tensor_of_unknown_shape() -> None:
    """Lifting learns the channels of what a norm reads; a pass of someone else's need not."""
    values = ValueGraph(SymbolTable())
    norm = Norm("layer", 6, torch.randn(6), torch.randn(6), 1e-5)
    call = values.apply(norm, (values.graph.placeholder("x"),), {}, "norm")
    values.apply(Conv(torch.randn(5, 6)), (call.node,), {}, "linear")
    with pytest.raises(Declined) as caught:
        fold_into_readers(call)
    assert caught.value.reason == "the shape of its input is not known"
    assert caught.value.blocker == "x"


def test_input_of_unknown_shape() -> None:
    """Nothing tells how many axes a BatchNorm1d sees."""
    model = Net(
        lambda m, x: m.linear(m.norm(x).flatten(1)), norm=nn.BatchNorm1d(6), linear=nn.Linear(6, 5)
    )
    found = reasons(fold_into_readers, model, torch.randn(2, 6, 1))
    assert found == ["whether its input has spatial axes is not known; pass example_inputs"]


def test_input_of_unknown_dtype() -> None:
    """A batch norm takes images of several; a linear layer takes tokens of one."""
    model = Net(
        lambda m, x: m.after(m.norm(x).mean((2, 3))),
        norm=nn.BatchNorm2d(6),
        after=nn.BatchNorm1d(6),
    )
    assert reasons(fold_into_readers, model, IMAGES) == ["the dtypes differ"]
    model = Net(
        lambda m, x: m.linear(tokens(m.norm(x))), norm=nn.BatchNorm2d(6), linear=nn.Linear(6, 5)
    )
    fires(fold_into_readers, model, IMAGES)


def test_activation_in_between() -> None:
    model = Net(
        lambda m, x: m.linear(tokens(m.norm(x).relu())),
        norm=nn.BatchNorm2d(6),
        linear=nn.Linear(6, 5),
    )
    fires(fold_into_readers, model, IMAGES, times=0)
