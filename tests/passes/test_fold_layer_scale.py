import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import fold_layer_scale
from tests.fused import operators
from tests.passes.alone import Net, alone, fires
from tests.passes.layers import SIZE, convolutions

IMAGES = torch.randn(2, 4, 8, 7, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30)
@given(st.data(), st.integers(1, 3), st.booleans())
def test_convolution(data: st.DataObject, n: int, scale_first: bool) -> None:
    conv = data.draw(convolutions(n))
    scale = torch.ones(conv.out_channels, *(1,) * n)
    model = Net(
        lambda m, x: m.scale * m.conv(x) if scale_first else m.conv(x) * m.scale,
        conv=conv,
        scale=scale,
    )
    kind = type(conv).__name__
    fused = fires(
        fold_layer_scale,
        model,
        torch.randn(2, conv.in_channels, *SIZE[n]),
    )
    assert operators(fused)[kind] == 1
    assert not operators(fused)["mul"]


def test_linear() -> None:
    model = Net(lambda m, x: m.linear(x) * m.scale, linear=nn.Linear(5, 4), scale=torch.ones(4))
    assert operators(fires(fold_layer_scale, model, torch.randn(3, 5))) == {"Linear": 1}


def test_through_dropout_and_drop_path() -> None:
    """With the passes before it: dropout has gone by then."""
    model = Net(
        lambda m, x: m.drop(m.scale * m.drop(m.conv(x))),
        conv=nn.Conv2d(4, 4, 3),
        drop=nn.Dropout(0.5),
        scale=torch.ones(4, 1, 1),
    )
    fused, report = alone(fold_layer_scale, model, IMAGES)
    assert len(report.applied) == 1
    assert operators(fused) == {"Conv2d": 1, "Dropout": 1}


def test_two_scales() -> None:
    model = Net(
        lambda m, x: m.b * (m.a * m.conv(x)),
        conv=nn.Conv2d(4, 4, 3),
        a=torch.ones(4, 1, 1),
        b=torch.ones(1, 4, 1, 1),
    )
    # The second has four axes: of an image without a batch it would make a batch of one.
    fused, _ = alone(fold_layer_scale, model, IMAGES, given=True)
    assert operators(fused) == {"Conv2d": 1}


def test_scale_on_another_axis() -> None:
    """As many numbers as there are channels, along the width."""
    model = Net(lambda m, x: m.scale * m.conv(x), conv=nn.Conv2d(4, 5, 3), scale=torch.ones(5))
    fires(fold_layer_scale, model, IMAGES, times=0)


def test_convolution_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.scale * y + y.relu()

    model = Net(forward, conv=nn.Conv2d(4, 4, 3), scale=torch.ones(4, 1, 1))
    fires(fold_layer_scale, model, IMAGES, times=0)


def test_scale_behind_an_activation() -> None:
    model = Net(
        lambda m, x: m.scale * m.conv(x).relu(),
        conv=nn.Conv2d(4, 4, 3),
        scale=torch.ones(4, 1, 1),
    )
    fires(fold_layer_scale, model, IMAGES, times=0)
