import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import fold_batchnorm
from tests.fused import operators
from tests.passes.alone import Net, alone, fires, reasons
from tests.passes.layers import SIZE, batch_norms, convolutions

IMAGES = torch.randn(2, 3, 8, 7, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30)
@given(st.data(), st.integers(1, 3))
def test_convolution(data: st.DataObject, n: int) -> None:
    conv = data.draw(convolutions(n))
    norm = data.draw(batch_norms(conv.out_channels, n))
    x = torch.randn(2, conv.in_channels, *SIZE[n])
    # Two axes could be a batch of vectors or one sequence: a BatchNorm1d needs to be told.
    fused = fires(fold_batchnorm, nn.Sequential(conv, norm), x, given=n == 1)
    assert not [name for name in operators(fused) if "BatchNorm" in name]


def test_linear() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    fused = fires(fold_batchnorm, model, torch.randn(6, 5), given=True)
    assert operators(fused) == {"Linear": 1}


def test_batch_norm_over_tokens() -> None:
    """On (N, L, C) a BatchNorm1d normalises L, which no row of the linear layer knows of."""
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    fires(fold_batchnorm, model, torch.randn(6, 4, 5), times=0, given=True)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    assert reasons(fold_batchnorm, model, torch.randn(6, 5)) == [
        "whether its input has spatial axes is not known; pass example_inputs"
    ]


def test_chain() -> None:
    """One after the other; the norm behind the activation stays, and says why."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)
    )
    fused, report = alone(fold_batchnorm, model, IMAGES)
    assert len(report.applied) == 2
    assert operators(fused) == {"Conv2d": 1, "ReLU": 1, "BatchNorm2d": 1}
    assert [(r.call, r.message) for r in report.missed] == [
        ("4", "its input is relu, which no pass can fold it into")
    ]


def test_shared_convolution_is_cloned() -> None:
    """Called twice, a norm after one call only."""
    model = Net(
        lambda m, x: m.norm(m.conv(x)) + torch.relu(m.conv(x)),
        conv=nn.Conv2d(3, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    assert operators(fires(fold_batchnorm, model, IMAGES))["Conv2d"] == 2


def test_convolution_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.norm(y) + torch.relu(y)

    model = Net(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    assert reasons(fold_batchnorm, model, IMAGES) == [
        "something else reads the convolution before it"
    ]


def test_convolution_that_is_an_output() -> None:
    def forward(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return torch.stack([m.norm(y), y])

    model = Net(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    assert reasons(fold_batchnorm, model, IMAGES) == [
        "something else reads the convolution before it"
    ]


def test_reading_the_size_is_not_reading() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.norm(y).reshape(y.shape[0], -1)

    model = Net(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    fires(fold_batchnorm, model, IMAGES)


def test_norm_before_a_convolution_is_none_of_its_business() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    fires(fold_batchnorm, model, IMAGES, times=0)


def test_norm_without_running_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    _, report = alone(fold_batchnorm, model, IMAGES)
    assert [r.message for r in report.missed] == ["it has no running statistics"]
