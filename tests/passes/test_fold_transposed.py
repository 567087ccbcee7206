import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor, nn

import reparam
from passes import fold_transposed
from tests.fused import operators
from tests.passes.alone import Net, alone, fires, reasons, settled
from tests.passes.layers import BATCH_NORMS, batch_norms
from tests.randomised import randomised
from tests.strategies import drawn

TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
IMAGES = drawn(0, 3, 6, 4, 5).float()


def images(channels: int, n: int) -> tuple[Tensor, ...]:
    """Of several sizes."""
    sizes = ((4, 5, 3), (1, 2, 3), (3, 1, 2))
    return tuple(drawn(i, 3, channels, *size[:n]).float() for i, size in enumerate(sizes))


@st.composite
def transposed(draw: DrawFn, n: int) -> nn.Module:
    """Any transposed convolution, of which something is left."""
    groups = draw(st.integers(1, 3))
    inner, outer = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel, stride, dilation = (
        tuple(draw(st.integers(1, top)) for _ in range(n)) for top in (4, 3, 2)
    )
    larger = [max(pair) - 1 for pair in zip(stride, dilation, strict=True)]
    more = tuple(draw(st.integers(0, top)) for top in larger)
    padding = tuple(draw(st.integers(0, (k - 1) // 2)) for k in kernel)
    bias = draw(st.booleans())
    return TRANSPOSED[n](
        inner, outer, kernel, stride, padding, more, groups, bias, dilation
    )  # fmt: skip


@settings(max_examples=60)
@given(st.data())
def test_batch_norm(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    conv = data.draw(transposed(n))
    model = nn.Sequential(conv, data.draw(batch_norms(conv.out_channels, n)))
    x, *others = images(conv.in_channels, n)
    # Nothing but an example tells what a BatchNorm1d sees.
    fused = fires(fold_transposed, model, x, given=n == 1, others=tuple(others))
    assert operators(fused) == {type(conv).__name__: 1}


@settings(max_examples=30)
@given(st.data(), st.sampled_from([-1.0, 0.0, 0.5, 2]))
def test_scale_or_multiple(data: st.DataObject, factor: float) -> None:
    n = data.draw(st.integers(1, 3))
    conv = data.draw(transposed(n))
    scale = torch.ones(conv.out_channels, *(1,) * n) if data.draw(st.booleans()) else None
    model = Net(
        lambda m, x: m.conv(x) * (factor if scale is None else m.scale),
        conv=conv,
        **({} if scale is None else {"scale": scale}),
    )
    x, *others = images(conv.in_channels, n)
    fused = fires(fold_transposed, model, x, given=True, others=tuple(others))
    assert operators(fused) == {type(conv).__name__: 1}


@pytest.mark.parametrize("gamma", [[0.0] * 6, [-1.0, 0.0, 2.0, -0.5, 1e-3, 3.0]])
def test_gamma_of_zero_or_less(gamma: list[float]) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(6, 6, 3, 2, groups=2), nn.BatchNorm2d(6))
    randomised(model, IMAGES)
    model[1].weight.data.copy_(torch.tensor(gamma))
    _, report = settled(fold_transposed, model, IMAGES)
    assert len(report.applied) == 1


def test_one_after_the_other() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(6, 4, 2, 2), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
    )
    fused = fires(fold_transposed, model, IMAGES, times=2)
    assert operators(fused) == {"ConvTranspose2d": 1}


def test_shared_convolution() -> None:
    """Each of its calls gets weights of its own."""

    def forward(m: Net, x: Tensor) -> Tensor:
        return m.a(m.up(x)) - m.b(m.up(x)).relu()

    model = Net(
        forward, up=nn.ConvTranspose2d(6, 4, 2, 2), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4)
    )
    fused = fires(fold_transposed, model, IMAGES, times=2)
    assert operators(fused)["ConvTranspose2d"] == 2
    assert not operators(fused)["BatchNorm2d"]


def test_shared_batch_norm() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        return m.norm(m.up(x).sigmoid()) * m.norm(m.up(x))

    model = Net(forward, up=nn.ConvTranspose2d(6, 4, 2, 2), norm=nn.BatchNorm2d(4))
    fused = fires(fold_transposed, model, IMAGES)
    assert operators(fused)["BatchNorm2d"] == 1


def test_convolution_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.up(x)
        return m.norm(y) + y.relu()

    model = Net(forward, up=nn.ConvTranspose2d(6, 4, 2, 2), norm=nn.BatchNorm2d(4))
    assert reasons(fold_transposed, model, IMAGES) == [
        "something else reads the convolution before it"
    ]


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 1, 8)])
def test_scale_along_the_width_or_height(shape: tuple[int, ...]) -> None:
    """As many columns, or rows, as channels."""
    model = Net(
        lambda m, x: m.scale * m.up(m.pool(x)),
        pool=nn.AdaptiveAvgPool2d(4),
        up=nn.ConvTranspose2d(6, 8, 2, 2),
        scale=torch.ones(shape),
    )
    assert reasons(fold_transposed, model, IMAGES, given=True) == [
        "its channels are not those of the convolution"
    ]


@pytest.mark.parametrize("given", [False, True])
def test_batch_norm_of_an_image_without_a_batch(given: bool) -> None:
    """To the batch norm its channels are the batch, and its pixels the channels."""
    model = nn.Sequential(nn.ConvTranspose1d(6, 8, 2, 2), nn.BatchNorm1d(8))
    unknown = "whether its input has spatial axes is not known; pass example_inputs"
    other = "its channels are not those of the convolution"
    found = reasons(fold_transposed, model, IMAGES[0, :, :, 0], given=given)
    assert found == [other if given else unknown]


def test_scale_that_widens_the_dtype() -> None:
    """The convolution would give what the scale rounds to, but narrower."""
    model = Net(
        lambda m, x: m.scale * m.up(x),
        up=nn.ConvTranspose2d(6, 4, 2, 2),
        scale=torch.ones(4, 1, 1),
    )
    model = randomised(model, IMAGES)
    model.up.bfloat16()
    x = IMAGES.bfloat16()
    fused = reparam.compile(model, x, passes=(fold_transposed,))
    assert [r.message for r in reparam.report(fused).missed] == ["the dtypes differ"]
    assert torch.equal(fused(x), model(x))


def test_nothing_but_a_transposed_convolution_before() -> None:
    """The others have passes of their own."""
    for before in (nn.Conv2d(6, 4, 1), nn.ReLU()):
        width = 4 if isinstance(before, nn.Conv2d) else 6
        _, report = alone(
            fold_transposed, nn.Sequential(before, BATCH_NORMS[2](width)), IMAGES, given=True
        )
        assert (report.applied, report.missed) == ((), ())
