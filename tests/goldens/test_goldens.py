"""What each pass leaves of a model, in print. `pytest --update-goldens` writes the files anew."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import passes
import reparam
from fastvit_models.blocks import ConvBN, MobileOneBlock
from fastvit_models.fastvit_blocks import (
    AttentionBlock,
    ConditionalPositionEncoding,
    MetaFormerBlock,
    PatchEmbed,
    RepMixer,
)
from tests.goldens.printed import printed
from tests.randomised import randomised

FOLDER = Path(__file__).parent


class RepVGGBlock(nn.Module):
    """3×3 and 1×1, a batch norm on each, and one on the identity where shapes allow it."""

    def __init__(self, channels: int, out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = ConvBN(channels, out, 3, stride, groups)
        self.pointwise = ConvBN(channels, out, 1, stride, groups)
        self.identity = nn.BatchNorm2d(out) if stride == 1 and channels == out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.pointwise(x)
        return torch.relu(y if self.identity is None else y + self.identity(x))


def fastvit() -> nn.Module:
    """Each block of FastViT once: a layer of the stem, two stages."""
    model = nn.Sequential()
    model.add_module("stem", MobileOneBlock(3, 16, 3, stride=2, activation=nn.GELU))
    model.add_module("block", MetaFormerBlock(RepMixer(16, 1e-5), 16, 2, 1e-5, 0.0, 0.1))
    model.add_module("downsample", PatchEmbed(16))
    model.add_module("position", ConditionalPositionEncoding(32))
    model.add_module("attention", AttentionBlock(32, 2, 1e-5, 0.0, 0.1))
    return model


def repvgg() -> nn.Module:
    """A block with a stride, one without, one in groups."""
    return nn.Sequential(RepVGGBlock(3, 8, 2), RepVGGBlock(8, 8), RepVGGBlock(8, 8, groups=2))


MODELS = {"fastvit": fastvit, "repvgg": repvgg}
PIPELINES = {
    **{
        rule.name: (rule,)
        for rule in (
            passes.fold_batchnorm,
            passes.merge_branches,
            passes.fold_identity,
            passes.fold_depthwise_skip,
        )
    },
    "default": passes.DEFAULT,
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_golden(pipeline: str, model: str, request: pytest.FixtureRequest) -> None:
    x = torch.randn(2, 3, 32, 32)
    fused = reparam.compile(randomised(MODELS[model](), x), x, passes=PIPELINES[pipeline])
    text = printed(fused)
    golden = FOLDER / f"{pipeline}.{model}.txt"
    if request.config.getoption("update_goldens"):
        golden.write_text(text)
    assert text == golden.read_text()
