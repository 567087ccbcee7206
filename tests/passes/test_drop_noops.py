from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from passes import drop_noops
from tests.fused import operators
from tests.passes.alone import Net, fires, reasons

IMAGES = torch.randn(2, 3, 8, 7, generator=torch.Generator().manual_seed(0))

DROPOUTS = [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)]


@pytest.mark.parametrize("layer", [nn.Identity(), *DROPOUTS], ids=lambda m: type(m).__name__)
def test_layers(layer: nn.Module) -> None:
    fused = fires(drop_noops, nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU()), IMAGES)
    assert operators(fused) == {"Conv2d": 1, "ReLU": 1}


@pytest.mark.parametrize(
    "arithmetic",
    [
        lambda y: y * 1,
        lambda y: 1.0 * y,
        lambda y: y / 1,
        lambda y: y + 0,
        lambda y: 0.0 + y,
        lambda y: y - 0,
        lambda y: F.dropout(y, 0.5, training=False),
    ],
    ids=["x*1", "1.0*x", "x/1", "x+0", "0.0+x", "x-0", "dropout"],
)
def test_arithmetic(arithmetic: object) -> None:
    model = Net(lambda m, x: arithmetic(m.conv(x)).relu(), conv=nn.Conv2d(3, 4, 3))
    assert operators(fires(drop_noops, model, IMAGES)) == {"Conv2d": 1, "relu": 1}


@pytest.mark.parametrize(
    "arithmetic",
    [
        lambda y: y * 1.001,
        lambda y: y + 1e-9,
        lambda y: 0 - y,
        lambda y: 1 / y,
        lambda y: y * torch.ones(()).expand(1, 1, 1, 1, 1),
    ],
    ids=["x*1.001", "x+1e-9", "0-x", "1/x", "broadcast"],
)
def test_arithmetic_that_does_something(arithmetic: object) -> None:
    model = Net(lambda m, x: arithmetic(m.conv(x)), conv=nn.Conv2d(3, 4, 3))
    fires(drop_noops, model, IMAGES, times=0)


def test_dropout_in_training_stays() -> None:
    """`F.dropout(x)` drops in evaluation mode too, and so does a layer left in training mode."""
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)).eval()
    layer[1].train()
    function = Net(lambda m, x: F.dropout(m.conv(x)), conv=nn.Conv2d(3, 4, 3)).eval()
    for model in (layer, function):
        fused = reparam.compile(model, passes=(drop_noops,))
        assert reparam.report(fused).applied == ()
        assert operators(fused).total() == 2
        assert (fused(IMAGES) == 0).float().mean() > 0.3


SHARED = "the result would lie in memory of an input or of another result"


def test_integers_stay_what_they_become() -> None:
    """A product with 1.0 makes integers floating."""
    model = Net(lambda m, x: (x > 0) * 1.0)
    assert reasons(drop_noops, model, IMAGES) == ["its input is not known to be floating-point"]
    assert reparam.compile(model, passes=(drop_noops,))(IMAGES).dtype == torch.float32


def missed(model: nn.Module) -> list[str]:
    """Why nothing was dropped."""
    told = reparam.report(reparam.compile(model.eval(), IMAGES, passes=(drop_noops,)))
    assert not told.applied
    return [remark.message for remark in told.missed]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x * 1.0,
        lambda m, x: (x.transpose(2, 3) + 0).flatten(1),
        lambda m, x: x.contiguous() / 1,
    ],
    ids=["itself", "view", "contiguous"],
)
def test_result_is_not_the_input_itself(forward: Callable[..., Tensor]) -> None:
    """Whoever writes to the result must not write to what was given."""
    assert missed(Net(forward)) == [SHARED]


def test_results_stay_apart() -> None:
    """Whoever writes to one must not write to the other, be it a view of it."""

    def forward(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return y.flatten(2), (y * 1.0).transpose(1, 2)

    assert missed(Net(forward, conv=nn.Conv2d(3, 3, 1))) == [SHARED]


def test_what_is_not_returned_may_be_the_input() -> None:
    model = Net(lambda m, x: torch.stack([x * 1.0, m.conv(x)]), conv=nn.Conv2d(3, 3, 1))
    told = reparam.report(reparam.compile(model.eval(), IMAGES, passes=(drop_noops,)))
    assert len(told.applied) == 1


def test_proven_assertion() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        torch._assert(y.shape[1] == 4, "four channels")
        return y

    # An image without a batch axis would have its height there: the number of axes has to be known.
    model = Net(forward, conv=nn.Conv2d(3, 4, 3))
    assert operators(fires(drop_noops, model, IMAGES, given=True)) == {"Conv2d": 1}
    fires(drop_noops, Net(forward, conv=nn.Conv2d(3, 4, 3)), IMAGES, times=0)


def test_assertion_that_an_image_is_in_a_batch() -> None:
    """A batch norm makes the same one, which goes when it is folded."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        torch._assert(y.ndim == 4, "a batch of images")
        return y

    fused = fires(drop_noops, Net(forward, conv=nn.Conv2d(3, 4, 3)), IMAGES)
    assert operators(fused) == {"Conv2d": 1}


def test_assertion_of_any_other_number_of_axes() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        torch._assert(x.dim() == 2, "a batch of vectors")
        return m.linear(x)

    fused = fires(drop_noops, Net(forward, linear=nn.Linear(3, 4)), torch.randn(5, 3), times=0)
    with pytest.raises(AssertionError, match="a batch of vectors"):
        fused(torch.randn(5, 5, 3).double())


def test_assertion_that_can_fail() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == 8, "eight rows")
        return m.conv(x)

    model = Net(forward, conv=nn.Conv2d(3, 4, 3))
    fused = fires(drop_noops, model, IMAGES, times=0)
    with pytest.raises(AssertionError, match="eight rows"):
        fused(torch.randn(2, 3, 9, 9).double())
