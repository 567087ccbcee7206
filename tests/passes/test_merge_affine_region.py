import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import merge_affine_region
from tests.fused import operators
from tests.passes.alone import Net, alone, fires, reasons
from tests.passes.layers import branch

IMAGES = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))


@settings(max_examples=20)
@given(
    kernel=st.sampled_from([1, 3]),
    bias=st.tuples(st.booleans(), st.booleans()),
    wide=st.booleans(),
)
def test_pointwise_before_a_kernel(kernel: int, bias: tuple[bool, bool], wide: bool) -> None:
    """VanillaNet's pair, without padding."""
    hidden = 8 if wide else 4
    model = nn.Sequential(
        nn.Conv2d(4, hidden, 1, bias=bias[0]), nn.Conv2d(hidden, 4, kernel, bias=bias[1])
    )
    assert operators(fires(merge_affine_region, model, IMAGES)) == {"Conv2d": 1}


def test_diverse_branches() -> None:
    """Free beside the 3×3, though one of them alone would be a loss."""
    pair = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 3, padding=1))
    model = Net(lambda m, x: m.a(x) + m.b(x) + m.c(x), a=branch(4, 3), b=branch(4, 1), c=pair)
    fused, _ = alone(merge_affine_region, model, IMAGES)
    assert operators(fused) == {"Conv2d": 1}


def test_batch_norm_before_an_unpadded_convolution() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3))
    assert operators(fires(merge_affine_region, model, IMAGES)) == {"Conv2d": 1}


def test_shift_that_meets_zero_padding() -> None:
    """The bias of a 1×1 in front of a padded kernel."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
    assert reasons(merge_affine_region, model, IMAGES) == [
        "its bias meets the zero padding of the next kernel"
    ]


def test_two_padded_kernels() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
    )
    assert reasons(merge_affine_region, model, IMAGES) == [
        "two padded kernels do not merge at the border"
    ]


def test_two_padded_kernels_that_would_be_cheaper() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, bias=False), nn.Conv2d(16, 4, 3, padding=1, bias=False)
    )
    assert reasons(merge_affine_region, model, IMAGES) == [
        "two padded kernels do not merge at the border"
    ]


def test_patch_embedding_is_dearer_merged() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 7, 2, 3, groups=4), nn.Conv2d(8, 8, 1))
    assert reasons(merge_affine_region, model, IMAGES) == [
        "merged, it takes more multiply-adds per pixel: 1,568 instead of 456"
    ]


def test_convolution_that_something_else_reads() -> None:
    """Run anyway, so nothing is saved by a copy of it."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(y) + y.relu()

    model = Net(forward, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))
    fires(merge_affine_region, model, IMAGES, times=0)


def test_nothing_linear() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    assert reasons(merge_affine_region, model, IMAGES) == []
