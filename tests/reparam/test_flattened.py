"""A linear layer over what a convolution makes of an image is one over the image."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from reparam.errors import Declined
from reparam.flattened import compose_flattened
from reparam.values import Conv
from reparam.verify import EXACT, relative_difference
from tests.strategies import PADDING_MODES, convs, drawn


@given(
    convs(axes=st.integers(1, 2), modes=PADDING_MODES),
    st.lists(st.integers(1, 6), min_size=2, max_size=2),
    st.integers(1, 4),
    st.booleans(),
)
def test_a_convolution_is_taken_into_a_linear_layer(
    conv: Conv, pixels: list[int], out: int, bias: bool
) -> None:
    """Its padding, of any mode and constant, included: the image is of a fixed size."""
    sizes = tuple(pixels[: conv.n])
    x = drawn(1, 3, conv.in_channels, *sizes)
    try:
        features = conv(x).flatten(1)
    except RuntimeError:
        assume(False)  # smaller than the kernel, or than what is reflected
        raise
    linear = Conv(drawn(2, out, features.shape[1]), drawn(3, out) if bias else None)
    merged = compose_flattened(linear, conv, sizes)
    assert merged.weight.shape == (out, x[0].numel())
    assert relative_difference(linear(features), merged(x.flatten(1))) <= EXACT


def test_three_axes() -> None:
    conv = Conv(drawn(0, 4, 1, 2, 1, 3), drawn(1, 4), (1, 1, 2), ((1, 0), (0, 2), (2, 1)), groups=2)
    x = drawn(2, 3, 2, 2, 3, 4)
    features = conv(x).flatten(1)
    linear = Conv(drawn(3, 5, features.shape[1]), drawn(4, 5))
    merged = compose_flattened(linear, conv, (2, 3, 4))
    assert relative_difference(linear(features), merged(x.flatten(1))) <= EXACT


def test_nothing_is_written_to_and_nothing_is_differentiated() -> None:
    conv, linear = Conv(drawn(0, 2, 3, 1, 1), drawn(1, 2)), Conv(drawn(2, 5, 8), drawn(3, 5))
    state = [tensor.clone() for value in (conv, linear) for tensor in value.tensors()]
    merged = compose_flattened(linear, conv, (2, 2))
    assert all(map(torch.equal, state, (*conv.tensors(), *linear.tensors())))
    assert not any(tensor.requires_grad for tensor in merged.tensors())


@pytest.mark.parametrize("features", [4, 7, 16])
def test_a_linear_layer_over_something_else_is_declined(features: int) -> None:
    """Half an image, none at all, and two images in a row."""
    conv = Conv(drawn(0, 2, 3, 1, 1))
    with pytest.raises(Declined) as caught:
        compose_flattened(Conv(drawn(1, 5, features)), conv, (2, 2))
    assert caught.value.reason == "the linear layer reads more than its channels"
