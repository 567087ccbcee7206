"""Scales and shifts that pass activations and maxima on their way to readers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from passes import fold_into_readers
from tests.passes.alone import Net, fires, settled
from tests.passes.readers import GAMMA, TOKENS, Step, between, passed, with_scale
from tests.randomised import randomised

ACTIVATIONS: dict[str, Step] = {
    "relu": lambda m, y: F.relu(y),
    "relu method": lambda m, y: y.relu(),
    "relu_": lambda m, y: y.relu_(),
    "relu in place": lambda m, y: F.relu(y, inplace=True),
    "ReLU": lambda m, y: m.act(y),
    "leaky_relu": lambda m, y: F.leaky_relu(y, 0.2),
    "leaky_relu of a negative slope": lambda m, y: F.leaky_relu(y, -0.5),
    "LeakyReLU": lambda m, y: m.leaky(y),
    "PReLU": lambda m, y: m.prelu(y),
    "PReLU per channel": lambda m, y: m.slopes(y),
    "one after the other": lambda m, y: m.prelu(m.act(y)),
}
PARTS: dict[str, Callable[[], nn.Module]] = {
    "act": lambda: nn.ReLU(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.3),
    "prelu": nn.PReLU,
    "slopes": lambda: nn.PReLU(6),
}


def activated(name: str) -> Net:
    return between(ACTIVATIONS[name], **{part: make() for part, make in PARTS.items()})


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("given", [False, True])
def test_positive_scale_passes_an_activation(name: str, given: bool) -> None:
    """A shift does not, nor does a scale that is zero or negative anywhere."""
    assert passed(with_scale(activated(name), shift=False), given=given)
    assert not passed(with_scale(activated(name)), given=given)
    for at, bad in ((0, -0.5), (3, 0.0), (5, -1e-3)):
        gamma = GAMMA.clone()
        gamma[at] = bad
        assert not passed(with_scale(activated(name), gamma, shift=False), given=given)


@pytest.mark.parametrize("name", ["gelu", "sigmoid", "silu", "hardswish", "relu6", "tanh", "elu"])
def test_scale_stays_before_another_activation(name: str) -> None:
    model = between(lambda m, y: getattr(F, name)(y))
    assert not passed(with_scale(model, shift=False))


def test_scale_of_slopes_is_not_one_of_what_they_multiply() -> None:
    """What is scaled is read as the slopes of a PReLU."""
    model = Net(
        lambda m, x: m.after(F.prelu(m.a(x), m.slopes(x)[0] * m.scale)),
        a=nn.Linear(6, 5),
        slopes=nn.Linear(6, 5),
        scale=torch.ones(5),
        after=nn.Linear(5, 3),
    )
    x = TOKENS[:, 0]
    randomised(model, x)
    model.scale.data.abs_()
    _, report = settled(fold_into_readers, model, x, given=True)
    assert report.applied == ()
    assert not any("failed" in remark.message for remark in report.missed)


@settings(max_examples=25)
@given(st.data())
def test_maximum_takes_shifts_along(data: st.DataObject) -> None:
    """The padding is no zero, and takes no part."""
    kernel = data.draw(st.integers(1, 4))
    options = {
        "kernel_size": kernel,
        "stride": data.draw(st.integers(1, 3)),
        "padding": data.draw(st.integers(0, kernel // 2)),
        "dilation": data.draw(st.integers(1, 2)),
        "ceil_mode": data.draw(st.booleans()),
    }
    module = data.draw(st.booleans())

    def model() -> Net:
        step: Step = lambda m, y: m.pool(y) if module else F.max_pool2d(y, **options)  # noqa: E731
        net = between(step, pool=nn.MaxPool2d(**options))
        net.after = nn.Conv2d(6, 5, 1)
        return net

    assert passed(with_scale(model()))
    assert not passed(with_scale(model(), GAMMA - 0.25))  # one of them is 0, one negative


@pytest.mark.parametrize("size", [1, 3, (2, 5)])
def test_adaptive_maximum(size: object) -> None:
    for step in (lambda m, y: m.pool(y), lambda m, y: F.adaptive_max_pool2d(y, size)):
        net = between(step, pool=nn.AdaptiveMaxPool2d(size))
        net.after = nn.Conv2d(6, 5, 1)
        assert passed(with_scale(net))


def test_maximum_and_where_it_is() -> None:
    """A tuple is no tensor that could be scaled."""
    model = between(lambda m, y: F.max_pool2d(y, 2, return_indices=True)[0])
    assert not passed(with_scale(model))
    pool = nn.MaxPool2d(2, return_indices=True)
    assert not passed(with_scale(between(lambda m, y: m.pool(y)[0], pool=pool)))


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("window", [(3, 1, 1), (2, 2, 0)])
def test_maximum_over_channels(kind: type[nn.Module], window: tuple[int, int, int]) -> None:
    """Of tokens a pool over one axis is one over channels, whether it keeps their number or not."""
    width = F.max_pool1d(TOKENS, *window).shape[-1]
    model = Net(
        lambda m, x: m.after(F.max_pool1d(m.norm(x), *window)),
        norm=kind(6),
        after=nn.Linear(width, 3),
    )
    randomised(model, TOKENS)
    model.norm.weight.data.copy_(GAMMA)
    _, report = settled(fold_into_readers, model, TOKENS, given=True)
    assert report.applied == ()
    assert [remark.message for remark in report.missed] == ["channels are mixed with each other"]


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("given", [False, True])
def test_norm_behind_an_activation(kind: type[nn.Module], given: bool) -> None:
    """The linear layer alone tells the dtype, with example inputs as well as without."""
    model = Net(lambda m, x: m.linear(m.norm(x.relu())), norm=kind(6), linear=nn.Linear(6, 4))
    fused = fires(fold_into_readers, model, TOKENS, given=given, others=(TOKENS[:, :1],))
    assert "norm.weight" not in fused.state_dict()
