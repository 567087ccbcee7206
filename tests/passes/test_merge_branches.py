import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from passes import merge_branches
from tests.fused import operators
from tests.passes.alone import Net, fires, reasons
from tests.passes.layers import branch

IMAGES = torch.randn(2, 4, 8, 7, generator=torch.Generator().manual_seed(0))


def both(**parts: nn.Module) -> Net:
    """Two branches of one input."""
    return Net(lambda m, x: m.a(x) + m.b(x), **parts)


@settings(max_examples=30)
@given(
    kernels=st.tuples(*[st.sampled_from([1, 3, 5])] * 3),
    groups=st.sampled_from([1, 2]),
    stride=st.integers(1, 2),
    norms=st.tuples(*[st.booleans()] * 3),
    bias=st.booleans(),
    signs=st.tuples(*[st.sampled_from([1, -1])] * 2),
)
def test_branches(
    kernels: tuple[int, ...],
    groups: int,
    stride: int,
    norms: tuple[bool, ...],
    bias: bool,
    signs: tuple[int, ...],
) -> None:
    convs = [nn.Conv2d(4, 6, k, stride, padding=k // 2, groups=groups, bias=bias) for k in kernels]
    a, b, c = (
        nn.Sequential(conv, nn.BatchNorm2d(6)) if norm else conv
        for conv, norm in zip(convs, norms, strict=True)
    )
    model = Net(lambda m, x: m.a(x) + signs[0] * m.b(x) + signs[1] * m.c(x), a=a, b=b, c=c)
    fused = fires(merge_branches, model, IMAGES)
    assert operators(fused) == {"Conv2d": 1}
    (conv,) = (m for m in fused.modules() if isinstance(m, nn.Conv2d))
    assert conv.kernel_size == (max(kernels),) * 2
    assert conv.groups == groups


def test_asymmetric_kernels() -> None:
    model = Net(
        lambda m, x: m.square(x) + m.row(x) + m.column(x),
        square=nn.Conv2d(4, 4, 3, padding=1),
        row=nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
        column=nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
    )
    assert operators(fires(merge_branches, model, IMAGES)) == {"Conv2d": 1}


def test_dilation() -> None:
    model = both(a=nn.Conv2d(4, 4, 5, padding=2), b=nn.Conv2d(4, 4, 3, padding=2, dilation=2))
    assert operators(fires(merge_branches, model, IMAGES)) == {"Conv2d": 1}


def test_one_convolution_called_twice() -> None:
    model = Net(lambda m, x: m.a(x) + m.a(x), a=nn.Conv2d(4, 4, 3))
    assert operators(fires(merge_branches, model, IMAGES)) == {"Conv2d": 1}


def test_identity_is_left_alone() -> None:
    """It has a pass of its own; the two convolutions beside it become one."""
    model = Net(
        lambda m, x: m.a(x) + m.b(x) + m.norm(x),
        a=branch(4, 3),
        b=branch(4, 1),
        norm=nn.BatchNorm2d(4),
    )
    fused = fires(merge_branches, model, IMAGES)
    assert operators(fused) == {"Conv2d": 1, "BatchNorm2d": 1, "add": 1}


def test_single_convolution() -> None:
    fires(merge_branches, branch(4, 3), IMAGES, times=0)
    fires(merge_branches, Net(lambda m, x: m.a(x) + x, a=branch(4, 3)), IMAGES, times=0)


def test_branches_that_differ_in_stride_are_added_as_they_are() -> None:
    model = Net(
        lambda m, x: m.a(x) + m.b(x)[..., ::2, ::2],
        a=nn.Conv2d(4, 4, 3, stride=2, padding=1),
        b=nn.Conv2d(4, 4, 3, padding=1),
    )
    fires(merge_branches, model, IMAGES, times=0)


def test_branches_that_differ_in_padding_mode() -> None:
    model = both(
        a=nn.Conv2d(4, 4, 3, padding=1), b=nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    )
    assert reasons(merge_branches, model, IMAGES) == ["the branches differ in padding mode"]


def test_what_parts_the_branches_goes_before_what_parts_them_from_a_layer_before() -> None:
    model = Net(
        lambda m, x: m.both(m.stem(x)),
        stem=nn.Conv2d(4, 4, 3, padding=1),
        both=both(
            a=nn.Conv2d(4, 4, 3, padding=1), b=nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        ),
    )
    assert reasons(merge_branches, model, IMAGES) == ["the branches differ in padding mode"]


def test_different_inputs() -> None:
    model = Net(lambda m, x: m.a(x) + m.b(x.relu()), a=branch(4, 3), b=branch(4, 1))
    assert reasons(merge_branches, model, IMAGES) == []


def test_broadcast_branch() -> None:
    """A branch of one pixel is added everywhere."""
    model = both(a=nn.Conv2d(4, 4, (8, 7)), b=nn.Conv2d(4, 4, 1))
    assert reasons(merge_branches, model, IMAGES) == [
        "the operands of the sum are not known to have one shape"
    ]


def test_dearer_merge() -> None:
    """A large kernel in groups and a dense small one: together they would cost more."""
    model = both(a=nn.Conv2d(4, 4, 7, padding=3, groups=4), b=nn.Conv2d(4, 4, 1))
    assert reasons(merge_branches, model, IMAGES) == [
        "merged, it takes more multiply-adds per pixel: 784 instead of 216"
    ]


def test_of_several_pairs_the_nearest_says_why() -> None:
    """Two of one cost, and one of another padding mode, which no cost would mend."""
    model = Net(
        lambda m, x: m.a(x) + m.b(x) + m.c(x),
        a=nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        b=nn.Conv2d(4, 4, 3, padding=1),
        c=nn.Conv2d(4, 4, 3, padding=4, dilation=4),
    )
    assert reasons(merge_branches, model, IMAGES) == [
        "the branches differ in padding mode",
        "merged, it takes more multiply-adds per pixel: 1,296 instead of 292",
    ]
