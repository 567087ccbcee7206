import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import reparam
from passes import fold_identity
from tests.fused import operators
from tests.passes.alone import Net, fires, reasons
from tests.passes.layers import batch_norms, branch

IMAGES = torch.randn(2, 4, 8, 7, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30)
@given(
    kernel=st.sampled_from([1, 3, (3, 5), (1, 7)]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    norm=st.booleans(),
    skip=st.one_of(st.builds(nn.Identity), batch_norms(4)),
    sign=st.sampled_from([1, -1, 0.5]),
)
def test_skip(
    kernel: int | tuple[int, int],
    groups: int,
    bias: bool,
    norm: bool,
    skip: nn.Module,
    sign: float,
) -> None:
    conv = nn.Conv2d(4, 4, kernel, padding="same", groups=groups, bias=bias)
    parts = nn.Sequential(conv, nn.BatchNorm2d(4)) if norm else conv
    model = Net(lambda m, x: m.branch(x) + sign * m.skip(x), branch=parts, skip=skip)
    fused = fires(fold_identity, model, IMAGES)
    assert operators(fused) == {"Conv2d": 1}


def test_linear() -> None:
    model = Net(lambda m, x: x + m.linear(x), linear=nn.Linear(5, 5))
    assert operators(fires(fold_identity, model, torch.randn(3, 5))) == {"Linear": 1}


def test_chain_of_residuals() -> None:
    model = nn.Sequential(
        *(Net(lambda m, x: x + m.branch(x), branch=branch(4, 3)) for _ in range(2))
    )
    fused = fires(fold_identity, model, IMAGES, times=2)
    assert operators(fused) == {"Conv2d": 2}


def test_even_kernel() -> None:
    """Padded by one more behind than before: the centre tap is where x itself is."""
    model = Net(lambda m, x: m.conv(x) + x, conv=nn.Conv2d(4, 4, 4, padding="same"))
    fused = fires(fold_identity, model, IMAGES)
    assert operators(fused) == {"Conv2d": 1, "pad": 1}


def test_depthwise_convolution_has_a_pass_of_its_own() -> None:
    model = Net(lambda m, x: m.conv(x) + x, conv=nn.Conv2d(4, 4, 3, padding=1, groups=4))
    fires(fold_identity, model, IMAGES, times=0)


def test_stride() -> None:
    """Where x has one pixel the sum is defined, and still no convolution."""
    model = Net(lambda m, x: m.conv(x) + x, conv=nn.Conv2d(4, 4, 3, stride=2, padding=1))
    assert reasons(fold_identity, model, torch.randn(2, 4, 1, 1)) == [
        "the operands of the sum are not known to have one shape"
    ]


def test_broadcast_skip() -> None:
    model = Net(lambda m, x: m.conv(x) + x, conv=nn.Conv2d(1, 4, 3, padding=1))
    assert reasons(fold_identity, model, torch.randn(2, 1, 5, 5)) == [
        "the operands of the sum are not known to have one shape"
    ]


def test_branch_that_is_not_linear() -> None:
    model = Net(
        lambda m, x: x + m.expand(m.reduce(x).relu()),
        reduce=nn.Conv2d(4, 2, 1),
        expand=nn.Conv2d(2, 4, 1),
    )
    assert reasons(fold_identity, model, IMAGES) == ["a branch has relu in it, not linear"]


def test_where_all_branches_begin_is_no_obstacle() -> None:
    """They do not merge for other reasons, which other passes say."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        y = m.before(x)
        return m.a(y) + m.b(y)

    for before in (nn.Sequential(), nn.ReLU()):
        model = Net(
            forward,
            before=before,
            a=nn.Conv2d(4, 4, 3, padding=1),
            b=nn.Conv2d(4, 4, 3, padding=4, dilation=4),
        )
        assert reasons(fold_identity, model, IMAGES) == []


def test_another_input_is_no_obstacle() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + y

    fused = reparam.compile(Two().eval(), (IMAGES, IMAGES), passes=(fold_identity,))
    assert not reparam.report(fused).missed


def test_a_kernel_that_passes_over_its_middle_would_cost_more() -> None:
    """Of two taps an axis it would become one of three."""
    model = Net(lambda m, x: m.conv(x) + x, conv=nn.Conv2d(4, 4, 2, padding=1, dilation=2))
    assert reasons(fold_identity, model, IMAGES) == [
        "merged, it takes more multiply-adds per pixel: 144 instead of 68"
    ]


def test_padding_by_reflection() -> None:
    """A skip needs no padding, so it goes into a kernel padded in any mode."""
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    model = Net(lambda m, x: m.conv(x) + x, conv=conv)
    assert operators(fires(fold_identity, model, IMAGES)) == {"Conv2d": 1}
