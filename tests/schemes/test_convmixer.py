"""ConvMixer (Trockman and Kolter, 2022, https://arxiv.org/abs/2201.09792): a norm that has to stay.

The batch norm stands behind a GELU, and its output is added to the input: nothing takes in a scale.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import reparam
from tests.schemes.parts import Residual, inference_form
from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def spatial(channels: int, kernel: int, bias: bool = True) -> nn.Module:
    """`x + BN(GELU(dw(x)))`."""
    return Residual(
        nn.Conv2d(channels, channels, kernel, groups=channels, padding=kernel // 2, bias=bias),
        nn.GELU(),
        nn.BatchNorm2d(channels),
    )


def mixing(channels: int, outer: int, bias: bool = True) -> nn.Module:
    """`BN(GELU(conv(x)))` of single pixels."""
    return nn.Sequential(nn.Conv2d(channels, outer, 1, bias=bias), nn.GELU(), nn.BatchNorm2d(outer))


def assert_names_the_blocker(model: nn.Module, channels: int) -> None:
    """There is a remark about the batch norm that says what stands in the way, and where."""
    fused = inference_form(model, example(2, channels, 9, 8))
    norms = [path for path, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    remarks = [r for r in reparam.report(fused).missed if r.call == norms[0]]
    blockers = " ".join(f"{remark.message} {remark.blocker}" for remark in remarks).lower()
    assert "gelu" in blockers or "add" in blockers, remarks


@settings(max_examples=10)
@given(channels=st.integers(1, 6), kernel=st.sampled_from([3, 5, 9]), bias=st.booleans())
def test_residual(channels: int, kernel: int, bias: bool) -> None:
    model = spatial(channels, kernel, bias)
    counts = minimal(model, example(2, channels, 9, 8))
    assert counts == {"Conv2d": 1, "GELU": 1, "BatchNorm2d": 1, "add": 1}
    assert_names_the_blocker(model, channels)


@settings(max_examples=10)
@given(channels=st.integers(1, 6), kernel=st.sampled_from([3, 5]), bias=st.booleans())
def test_layer(channels: int, kernel: int, bias: bool) -> None:
    """The norm in the residual stays; the one after it meets the next layer's padding, or none."""
    model = nn.Sequential(
        spatial(channels, kernel, bias),
        mixing(channels, channels + 1, bias),
        nn.Conv2d(channels + 1, 3, 1),
    )
    counts = minimal(model, example(2, channels, 9, 8))
    assert counts == {"Conv2d": 3, "GELU": 2, "BatchNorm2d": 1, "add": 1}
    assert_names_the_blocker(model, channels)


SCHEMES = [
    Scheme(
        "ConvMixer residual", lambda: spatial(4, 5), (2, 4, 9, 8),
        {"Conv2d": 1, "GELU": 1, "BatchNorm2d": 1, "add": 1}, ("gelu",),
    ),
]  # fmt: skip
