"""RepMixer as FastViT's paper prints it, `DWConv(BN(x)) + x` (arXiv:2303.14189, section 3.2.1).

With zero padding that is no single convolution: the shift of the batch norm does not reach the
border. It is one depthwise convolution of the input padded with -t/s, or stays as it is.
"""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.parts import inference_form
from tests.schemes.scheme import Scheme, example, minimal, missed

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

PADDED = {"sub": 1, "Conv2d": 1}


class RepMixer(nn.Module):
    """`DWConv(BN(x)) + x`."""

    def __init__(
        self,
        channels: int,
        kernel: int,
        mode: str = "zeros",
        bias: bool = False,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=affine)
        self.conv = nn.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias,
            padding_mode=mode,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x)) + x


def assert_minimal_or_declined(model: nn.Module, x: Tensor) -> Counter[str]:
    """The border's constant is subtracted and one convolution is left, or the reason is told."""
    counts = minimal(model, x)
    if counts != PADDED:
        assert counts == {"BatchNorm2d": 1, "Conv2d": 1, "add": 1}
        fused = inference_form(model, x)
        assert any("padding" in line for line in missed(fused))
    return counts


@settings(max_examples=10)
@given(
    channels=st.integers(1, 5),
    kernel=st.sampled_from([3, 5, 7]),
    bias=st.booleans(),
    affine=st.booleans(),
)
def test_zero_padding(channels: int, kernel: int, bias: bool, affine: bool) -> None:
    model = RepMixer(channels, kernel, bias=bias, affine=affine)
    assert_minimal_or_declined(model, example(2, channels, 9, 8))


@settings(max_examples=10)
@given(
    channels=st.integers(1, 5),
    kernel=st.sampled_from([3, 5, 7]),
    mode=st.sampled_from(["reflect", "replicate", "circular"]),
    bias=st.booleans(),
)
def test_padding_with_pixels(channels: int, kernel: int, mode: str, bias: bool) -> None:
    """The shift reaches the border too."""
    model = RepMixer(channels, kernel, mode, bias)
    assert minimal(model, example(2, channels, 9, 8)) == {"Conv2d": 1}


@settings(max_examples=5)
@given(channels=st.integers(1, 5))
def test_one_pixel(channels: int) -> None:
    """Nothing is padded: two affine maps and a sum are one."""
    counts = minimal(RepMixer(channels, 1), example(2, channels, 9, 8))
    assert not counts.keys() & {"BatchNorm2d"}
    assert counts.total() <= 2


SCHEMES = [
    Scheme(
        "RepMixer as printed, reflect padding", lambda: RepMixer(4, 3, "reflect"), (2, 4, 9, 8),
        {"Conv2d": 1},
    )
]  # fmt: skip
