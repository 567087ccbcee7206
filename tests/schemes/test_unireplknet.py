"""UniRepLKNet: a large depthwise kernel and small dilated ones are one large depthwise kernel.

Source: Ding et al., "UniRepLKNet", CVPR 2024, section 3.1 (the Dilated Reparam Block).
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.schemes.scheme import Scheme, example, minimal

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

DILATED = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
}
"""For each large kernel, the sizes and dilations of the small ones."""


class DilatedReparamBlock(nn.Module):
    """BN(BN(k×k x) + Σ BN(dilated x)), depthwise; the outer batch norm is the network's."""

    def __init__(self, channels: int, kernel: int, norm: bool = True) -> None:
        super().__init__()
        self.lk_origin = nn.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )
        self.origin_bn = nn.BatchNorm2d(channels)
        self.dilated = nn.ModuleList()
        for size, dilation in DILATED[kernel]:
            conv = nn.Conv2d(
                channels,
                channels,
                size,
                padding=dilation * (size - 1) // 2,
                dilation=dilation,
                groups=channels,
                bias=False,
            )
            self.dilated.append(nn.Sequential(conv, nn.BatchNorm2d(channels)))
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.origin_bn(self.lk_origin(x))
        for branch in self.dilated:
            out = out + branch(x)
        return self.norm(out)


ONE = {"Conv2d": 1}

SCHEMES = [
    Scheme("UniRepLKNet, 7×7", lambda: DilatedReparamBlock(8, 7), (2, 8, 9, 8), ONE),
    Scheme("UniRepLKNet, 13×13", lambda: DilatedReparamBlock(8, 13), (2, 8, 14, 15), ONE),
]


@settings(max_examples=10)
@given(st.integers(1, 6), st.sampled_from(sorted(DILATED)), st.booleans(), st.integers(6, 12))
def test_block(channels: int, kernel: int, norm: bool, size: int) -> None:
    block = DilatedReparamBlock(channels, kernel, norm)
    assert minimal(block, example(2, channels, size, 9)) == ONE
