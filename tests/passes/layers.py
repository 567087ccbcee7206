"""Strategies of torch's layers, with the hyper-parameters that folds depend on."""

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import nn

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = {1: (9,), 2: (9, 8), 3: (9, 8, 7)}


@st.composite
def convolutions(draw: DrawFn, n: int = 2) -> nn.Module:
    """Any convolution that takes images of `SIZE`."""
    groups = draw(st.integers(1, 3))
    inner, outer = (groups * draw(st.integers(1, 2)) for _ in range(2))
    sizes = st.tuples(*[st.integers(1, 4)] * n)
    small = st.tuples(*[st.integers(1, 2)] * n)
    padding = st.tuples(*[st.integers(0, 3)] * n)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    if mode == "reflect" and n == 3:
        mode = "zeros"
    return CONVS[n](
        inner, outer, draw(sizes), draw(small), draw(padding), draw(small), groups,
        bias=draw(st.booleans()), padding_mode=mode,
    )  # fmt: skip


def batch_norms(channels: int, n: int = 2) -> SearchStrategy[nn.Module]:
    """With γ and β, or without; momentum plays no part."""
    return st.builds(
        BATCH_NORMS[n],
        st.just(channels),
        affine=st.booleans(),
        momentum=st.sampled_from([0.1, None]),
    )


def branch(channels: int, kernel: int, groups: int = 1, bias: bool = False) -> nn.Sequential:
    """A convolution that keeps the size, and a batch norm."""
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))
