import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from fastvit_models.fastvit_blocks import ConditionalPositionEncoding, RepMixer
from passes import fold_depthwise_skip
from reparam.testing.randomised import randomised
from tests.fused import operators
from tests.passes.alone import Net, fires, reasons
from tests.passes.layers import branch

IMAGES = torch.randn(2, 4, 8, 7, generator=torch.Generator().manual_seed(0))


@settings(max_examples=25)
@given(
    kernels=st.tuples(*[st.sampled_from([1, 3, 5])] * 2),
    norms=st.tuples(*[st.booleans()] * 2),
    bias=st.booleans(),
    scale=st.booleans(),
)
def test_repmixer(
    kernels: tuple[int, int], norms: tuple[bool, bool], bias: bool, scale: bool
) -> None:
    a, b = (branch(4, k, groups=4, bias=bias) for k in kernels)
    norm, other = (nn.BatchNorm2d(4) if n else nn.Identity() for n in norms)

    def forward(m: Net, x: Tensor) -> Tensor:
        mixed = m.a(x) + m.b(x) + m.other(x) - m.norm(x)
        return x + (m.scale * mixed if scale else mixed)

    model = Net(forward, a=a, b=b, norm=norm, other=other, scale=torch.ones(4, 1, 1))
    fused = fires(fold_depthwise_skip, model, IMAGES)
    assert operators(fused) == {"Conv2d": 1}


def test_blocks_of_fastvit() -> None:
    for block in (RepMixer(4, 1e-5), ConditionalPositionEncoding(4)):
        assert operators(fires(fold_depthwise_skip, block, IMAGES)) == {"Conv2d": 1}


def test_repmixer_as_the_paper_prints_it() -> None:
    """`DWConv(BN(x)) + x`: the shift t meets zero padding, so x is padded with −t/s instead."""
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    model = Net(lambda m, x: m.conv(m.norm(x)) + x, conv=conv, norm=nn.BatchNorm2d(4))
    fused = fires(fold_depthwise_skip, model, IMAGES, given=True)
    assert operators(fused) == {"sub": 1, "Conv2d": 1}


def test_without_padding_the_paper_would_be_right() -> None:
    """The same inside a border that is cut off from the skip as well: sizes differ, so it stays."""
    conv = nn.Conv2d(4, 4, 3, groups=4)
    model = Net(lambda m, x: m.conv(x) + x[..., 1:-1, 1:-1], conv=conv)
    fires(fold_depthwise_skip, model, IMAGES, times=0)


def test_stride() -> None:
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
    model = Net(lambda m, x: m.conv(x) + x, conv=conv)
    assert reasons(fold_depthwise_skip, model, torch.randn(2, 4, 1, 1)) == [
        "the operands of the sum are not known to have one shape"
    ]


def test_dense_convolution_has_a_pass_of_its_own() -> None:
    model = Net(lambda m, x: m.conv(x) + x, conv=nn.Conv2d(4, 4, 3, padding=1))
    fires(fold_depthwise_skip, model, IMAGES, times=0)


def test_a_kernel_that_passes_over_its_middle_would_cost_more() -> None:
    """Of two taps an axis it would become one of three."""
    conv = nn.Conv2d(4, 4, 2, padding=1, dilation=2, groups=4)
    model = Net(lambda m, x: m.conv(x) + x, conv=conv)
    assert reasons(fold_depthwise_skip, model, IMAGES) == [
        "merged, it takes more multiply-adds per pixel: 36 instead of 20"
    ]


def test_branches_without_a_skip() -> None:
    model = Net(lambda m, x: m.a(x) + m.b(x), a=branch(4, 3, groups=4), b=branch(4, 5, groups=4))
    fires(fold_depthwise_skip, model, IMAGES, times=0)


def test_scale_per_row_is_no_layer_scale() -> None:
    """(8, 1) lies along the height, not along channels."""
    model = Net(
        lambda m, x: x + m.scale * m.conv(x),
        conv=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        scale=torch.ones(8, 1),
    )
    fires(fold_depthwise_skip, model, IMAGES, times=0)


def test_mixer_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        return torch.stack([x + y, y])

    model = Net(forward, conv=nn.Conv2d(4, 4, 3, padding=1, groups=4))
    fires(fold_depthwise_skip, model, IMAGES, times=0)


def test_the_norm_of_a_layer_stays_with_the_layer() -> None:
    """Where its shift is 0, as at the start of training, it could go into the skip as well.

    What becomes of a model would hang on its weights, and a fused file fit another form of it.
    """
    layer = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.layer(x)
        return m.conv(y) + y

    fresh = Net(forward, layer=layer, conv=conv).eval()
    drawn = randomised(copy.deepcopy(fresh), IMAGES[:, :3])
    names = [{*reparam.compile(model).state_dict()} for model in (fresh, drawn)]
    assert names[0] == names[1] == {"layer.0.weight", "layer.0.bias", "conv.weight", "conv.bias"}
