"""A norm takes in what scales its result: it scales in passing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import fold_after_norm
from tests.fused import operators
from tests.passes.alone import Net, fires, reasons
from tests.strategies import drawn

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

TOKENS = drawn(0, 2, 5, 6).float()
IMAGES = drawn(0, 2, 6, 5, 4).float()


@settings(max_examples=10)
@given(affine=st.booleans(), bias=st.booleans(), rms=st.booleans())
def test_layer_scale(affine: bool, bias: bool, rms: bool) -> None:
    """Swin-v2 normalizes after attention: `x + γ · LN(f(x))`."""
    norm = nn.RMSNorm(6, elementwise_affine=affine) if rms else nn.LayerNorm(6, 1e-3, affine, bias)
    model = Net(
        lambda m, x: x + m.scale * m.norm(m.linear(x)),
        linear=nn.Linear(6, 6),
        norm=norm,
        scale=torch.ones(6),
    )
    fused = fires(fold_after_norm, model, TOKENS, given=True)
    assert "mul" not in operators(fused)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_batch_norm_behind_a_group_norm(groups: int) -> None:
    model = Net(
        lambda m, x: m.after(m.norm(m.conv(x))).relu(),
        conv=nn.Conv2d(6, 6, 1),
        norm=nn.GroupNorm(groups, 6),
        after=nn.BatchNorm2d(6),
    )
    fused = fires(fold_after_norm, model, IMAGES, given=True)
    assert operators(fused) == {"Conv2d": 1, "GroupNorm": 1, "relu": 1}


def scaled(scale: Tensor, *, read_twice: bool = False) -> Net:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.norm(m.linear(x))
        return m.scale * y + y.relu() if read_twice else m.scale * y + m.shift

    return Net(
        forward, linear=nn.Linear(6, 6), norm=nn.LayerNorm(6), scale=scale, shift=torch.ones(6)
    )


def test_norm_with_another_reader() -> None:
    found = reasons(fold_after_norm, scaled(torch.ones(6), read_twice=True), TOKENS, given=True)
    assert found == ["something else reads the norm before it"]


def test_scale_along_another_axis() -> None:
    """Of six tokens, one number each."""
    found = reasons(
        fold_after_norm, scaled(torch.ones(6, 1)), drawn(0, 2, 6, 6).float(), given=True
    )
    assert found in ([], ["its channels are not known to be those of the norm"])
    model = Net(
        lambda m, x: m.after(m.norm(m.linear(x))),
        linear=nn.Linear(6, 6),
        norm=nn.LayerNorm(6),
        after=nn.BatchNorm1d(6),
    )
    assert reasons(fold_after_norm, model, drawn(0, 2, 6, 6).float(), given=True) == [
        "its channels are not known to be those of the norm"
    ]


def test_shift_behind_an_rms_norm() -> None:
    model = Net(
        lambda m, x: m.after(m.norm(m.linear(x))),
        linear=nn.Linear(6, 6),
        norm=nn.RMSNorm(6),
        after=nn.BatchNorm1d(6),
    )
    assert reasons(fold_after_norm, model, drawn(0, 4, 6).float(), given=True) == [
        "an RMS norm has no bias to take a shift in"
    ]


def test_input_of_unknown_dtype() -> None:
    """A norm by itself tells of no dtype."""
    model = Net(lambda m, x: m.scale * m.norm(x), norm=nn.LayerNorm(6), scale=torch.ones(6))
    assert reasons(fold_after_norm, model, TOKENS) == ["the dtypes differ"]
