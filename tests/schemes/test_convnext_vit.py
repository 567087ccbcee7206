"""ConvNeXt (Liu et al., 2022, arXiv:2201.03545) and vision transformers (arXiv:2010.11929).

The scale and shift of a norm go into the next layer, a norm without them is left; layer scale goes
into the layer before it.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tests.fused import operators
from tests.schemes.parts import Attention, LayerScale, Residual, inference_form
from tests.schemes.scheme import Scheme, example, minimal, missed

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, LayerNorm and perceptron with channels last, layer scale, residual."""

    def __init__(self, channels: int, ratio: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=bias)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, ratio * channels, bias=bias)
        self.activation = nn.GELU()
        self.reduce = nn.Linear(ratio * channels, channels, bias=bias)
        self.scale = LayerScale(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale(self.reduce(self.activation(self.expand(y))))
        return x + y.permute(0, 3, 1, 2)


class UnitOffsetRMSNorm(nn.Module):
    """An RMSNorm that holds `1 + w`, written by hand."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        root = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * root * (1 + self.weight)


def transformer_block(channels: int, heads: int, ratio: int = 2, bias: bool = True) -> nn.Module:
    return nn.Sequential(
        Residual(nn.LayerNorm(channels), Attention(channels, heads, bias), LayerScale(channels)),
        Residual(
            nn.LayerNorm(channels),
            nn.Linear(channels, ratio * channels, bias=bias),
            nn.GELU(),
            nn.Linear(ratio * channels, channels, bias=bias),
            LayerScale(channels),
        ),
    )


def assert_bare_norms(fused: fx.GraphModule) -> None:
    """No norm that is left has a scale or a shift, in a module or as an argument."""
    for module in fused.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            assert not [*module.parameters()]
    for node in fused.graph.nodes:
        if getattr(node.target, "__name__", "") in ("layer_norm", "group_norm", "rms_norm"):
            assert not [source for source in node.all_input_nodes if source.op == "get_attr"]


def norms_left(model: nn.Module, x: Tensor, given: bool = False) -> dict[str, int]:
    """The operators of a model whose norms have become bare, those under one name by one."""
    counts = minimal(model, x, given=given)
    fused = inference_form(model, x, given)
    assert operators(fused) == counts
    assert_bare_norms(fused)
    names = {"layer_norm": "LayerNorm", "group_norm": "GroupNorm", "rms_norm": "RMSNorm"}
    return {names.get(name, name): count for name, count in counts.items()}


@settings(max_examples=10)
@given(
    channels=st.integers(2, 6),
    outer=st.integers(1, 6),
    eps=st.sampled_from([1e-6, 1e-2]),
    shift=st.booleans(),
    bias=st.booleans(),
)
def test_layer_norm(channels: int, outer: int, eps: float, shift: bool, bias: bool) -> None:
    model = nn.Sequential(
        nn.LayerNorm(channels, eps=eps, bias=shift), nn.Linear(channels, outer, bias=bias)
    )
    assert norms_left(model, example(2, 7, channels)) == {"LayerNorm": 1, "Linear": 1}


@settings(max_examples=10)
@given(channels=st.integers(2, 5), ratio=st.integers(1, 4), bias=st.booleans())
def test_convnext_block(channels: int, ratio: int, bias: bool) -> None:
    counts = norms_left(ConvNeXtBlock(channels, ratio, bias), example(2, channels, 9, 8))
    assert counts == {
        "Conv2d": 1, "permute": 2, "LayerNorm": 1, "Linear": 2, "GELU": 1, "add": 1,
    }  # fmt: skip


@settings(max_examples=10)
@given(groups=st.integers(1, 3), width=st.integers(1, 3), bias=st.booleans())
def test_group_norm(groups: int, width: int, bias: bool) -> None:
    model = nn.Sequential(
        nn.GroupNorm(groups, groups * width), nn.Conv2d(groups * width, 3, 1, bias=bias)
    )
    counts = norms_left(model, example(2, groups * width, 9, 8), given=True)
    assert counts == {"GroupNorm": 1, "Conv2d": 1}


@settings(max_examples=10)
@given(groups=st.integers(1, 3), width=st.integers(1, 3), bias=st.booleans())
def test_group_norm_before_padding(groups: int, width: int, bias: bool) -> None:
    """Zero padding sees the shift, so whatever is done computes the same, or a reason is told."""
    model = nn.Sequential(
        nn.GroupNorm(groups, groups * width),
        nn.Conv2d(groups * width, 3, 3, padding=1, bias=bias),
    )
    x = example(2, groups * width, 9, 8)
    counts = minimal(model, x, given=True)
    assert counts["GroupNorm"] == counts["Conv2d"] == 1
    fused = inference_form(model, x, given=True)
    assert any("padding" in line for line in missed(fused))


@settings(max_examples=10)
@given(channels=st.integers(2, 6), outer=st.integers(1, 6), bias=st.booleans())
def test_rms_norm(channels: int, outer: int, bias: bool) -> None:
    model = nn.Sequential(nn.RMSNorm(channels), nn.Linear(channels, outer, bias=bias))
    assert norms_left(model, example(2, 7, channels)) == {"RMSNorm": 1, "Linear": 1}


@settings(max_examples=10)
@given(channels=st.integers(2, 6), outer=st.integers(1, 6), bias=st.booleans())
def test_rms_norm_with_unit_offset(channels: int, outer: int, bias: bool) -> None:
    """The norm's own steps stay; the product with `1 + w` is in the linear layer."""
    model = nn.Sequential(
        nn.Linear(3, channels), UnitOffsetRMSNorm(channels), nn.Linear(channels, outer, bias=bias)
    )
    counts = minimal(model, example(2, 7, 3), given=True)
    assert counts == {"square": 1, "mean": 1, "add": 1, "rsqrt": 1, "mul": 1, "Linear": 2}


@settings(max_examples=5)
@given(channels=st.integers(2, 6))
def test_norm_with_two_readers(channels: int) -> None:
    """Both take in the scale and the shift."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(channels)
            self.a, self.b = nn.Linear(channels, 3), nn.Linear(channels, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.a(y).sigmoid() * self.b(y)

    counts = norms_left(Two(), example(2, 7, channels))
    assert counts == {"LayerNorm": 1, "Linear": 2, "sigmoid": 1, "mul": 1}


@settings(max_examples=5)
@given(heads=st.integers(1, 3), width=st.integers(2, 3), bias=st.booleans())
def test_transformer_block(heads: int, width: int, bias: bool) -> None:
    channels = heads * width
    model = transformer_block(channels, heads, 2, bias)
    counts = norms_left(model, example(2, 7, channels), given=True)
    assert (counts["LayerNorm"], counts["Linear"], counts["add"]) == (2, 4, 2)
    assert "mul" not in counts  # neither layer scale nor the scale of the queries


SCHEMES = [
    Scheme(
        "LayerNorm and Linear", lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5)), (2, 7, 4),
        {"LayerNorm": 1, "Linear": 1},
    ),
    Scheme(
        "ConvNeXt block", lambda: ConvNeXtBlock(4), (2, 4, 9, 8),
        {"Conv2d": 1, "permute": 2, "LayerNorm": 1, "Linear": 2, "GELU": 1, "add": 1},
    ),
]  # fmt: skip
