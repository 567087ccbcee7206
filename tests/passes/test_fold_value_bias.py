"""The bias of an attention's values: it comes out of the attention as it went in."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import fold_value_bias
from tests.fused import operators
from tests.passes.alone import Net, fires, reasons

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def heads(y: Tensor, count: int) -> Tensor:
    batch, tokens, channels = y.shape
    return y.reshape(batch, tokens, count, channels // count).transpose(1, 2)


def attention(
    mix: Mix = written_out, count: int = 2, width: int = 3, *, bias: bool = True, own: bool = True
) -> Net:
    """Attention over tokens, (batch, tokens, channels), with layers of their own for q, k and v."""
    channels = count * width

    def forward(m: Net, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = m.q(x), m.k(x), m.v(x)
        y = mix(*(heads(part, count) for part in (q, k, v)))
        y = m.projection(y.transpose(1, 2).reshape(batch, tokens, channels))
        return y if own else y + v

    return Net(
        forward,
        q=nn.Linear(channels, channels),
        k=nn.Linear(channels, channels),
        v=nn.Linear(channels, channels, bias=bias),
        projection=nn.Linear(channels, channels),
    )


def tokens(channels: int = 6) -> Tensor:
    return torch.randn(2, 7, channels)


@settings(max_examples=10)
@given(
    count=st.integers(1, 3), width=st.integers(2, 4), mix=st.sampled_from((written_out, by_torch))
)
def test_attention(count: int, width: int, mix: Mix) -> None:
    model = attention(mix, count, width)
    fused = fires(fold_value_bias, model, tokens(count * width), given=True)
    biases = [name for name, _ in fused.named_parameters() if name.endswith("bias")]
    assert biases == ["q.bias", "k.bias", "projection.bias"]
    assert operators(fused)["Linear"] == 4


@pytest.mark.parametrize(
    "mix",
    [
        lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(-2) @ v,
        lambda q, k, v: (q @ k.transpose(-2, -1)).sigmoid() @ v,
        lambda q, k, v: v.transpose(-2, -1) @ (q @ k.transpose(-2, -1)).softmax(-1),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, (q @ k.transpose(-2, -1)) > 9),
        lambda q, k, v: ((q @ k.transpose(-2, -1)).softmax(-1) @ v).relu(),
    ],
    ids=["over queries", "sigmoid", "on the other side", "masked", "activation"],
)
def test_weights_that_do_not_sum_to_one(mix: Mix) -> None:
    """A row of a mask that lets nothing through makes zeros, not the bias."""

    fires(fold_value_bias, attention(mix, 1, 6), torch.randn(2, 6, 6), times=0, given=True)


def test_values_that_something_else_reads() -> None:
    assert reasons(fold_value_bias, attention(own=False), tokens(), given=True) == [
        "something else reads the values or what becomes of them"
    ]


@pytest.mark.parametrize("mix", [written_out, by_torch])
def test_keys_that_may_be_none(mix: Mix) -> None:
    """Attention of the first token to the others, of which there may be none."""

    def forward(m: Net, x: Tensor) -> Tensor:
        others = x[:, 1:]
        return m.projection(mix(m.q(x[:, :1]), m.k(others), m.v(others)))

    model = Net(forward, **{name: nn.Linear(6, 6) for name in ("q", "k", "v", "projection")})
    reason = "there may be no keys, and a softmax over none does not sum to one"
    assert reasons(fold_value_bias, model, tokens(), given=True) == [reason]


@pytest.mark.parametrize("convolution", [True, False])
def test_keys_that_a_convolution_or_a_pooling_made(convolution: bool) -> None:
    """Attention of all pixels to fewer: there is one at least, or making them fails."""

    def forward(m: Net, x: Tensor) -> Tensor:
        fewer = m.fewer(x).flatten(2).transpose(1, 2)
        pixels = x.flatten(2).transpose(1, 2)
        return m.projection(written_out(m.q(pixels), m.k(fewer), m.v(fewer)))

    layers = {name: nn.Linear(6, 6) for name in ("q", "k", "v", "projection")}
    fewer = nn.Conv2d(6, 6, 2, 2) if convolution else nn.AvgPool2d(2)
    model = Net(forward, fewer=fewer, **layers)
    fires(fold_value_bias, model, torch.randn(2, 6, 4, 6), given=True)


def test_values_without_a_bias() -> None:
    fires(fold_value_bias, attention(bias=False), tokens(), times=0, given=True)


def test_features_that_the_heads_mix() -> None:
    """Tokens as features: what is added to a feature is another for each token."""

    def crossed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q.transpose(-2, -1) @ k).softmax(-1) @ v.transpose(-2, -1)).transpose(-2, -1)

    assert reasons(fold_value_bias, attention(crossed), tokens(), given=True) == [
        "the attention does not treat each feature by itself"
    ]


def unshaped(flip: bool) -> Net:
    """Attention of one head, written without a reshape."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = written_out(m.q(x), m.k(x), m.v(x))
        return m.projection(y.transpose(1, 2) if flip else y)

    return Net(forward, **{name: nn.Linear(6, 6) for name in ("q", "k", "v", "projection")})


def test_projection_over_the_tokens() -> None:
    """Of which there are as many as features."""
    model, x = unshaped(flip=True), torch.randn(2, 6, 6)
    assert reasons(fold_value_bias, model, x, given=True) == [
        "its channels are not the features of the values"
    ]


def test_product_of_unknown_shape() -> None:
    """How many elements a mask selects, only its numbers tell."""

    def forward(m: Net, x: Tensor) -> Tensor:
        scores = torch.masked_select(x, x > -100).reshape(x.shape) @ x.transpose(1, 2)
        return m.projection(scores.softmax(-1) @ m.v(x))

    model = Net(forward, v=nn.Linear(6, 6), projection=nn.Linear(6, 6))
    assert reasons(fold_value_bias, model, tokens(), given=True) == [
        "the shapes of the attention are not known"
    ]


def test_number_of_axes_that_is_not_known() -> None:
    assert reasons(fold_value_bias, unshaped(flip=False), tokens()) == [
        "the shapes of the attention are not known"
    ]
    fires(fold_value_bias, unshaped(flip=False), tokens(), given=True)
