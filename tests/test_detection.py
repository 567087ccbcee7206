"""A detector and a segmenter on a FastViT backbone that returns features.

torchvision's detectors need compiled operators, which not every build of torch can load. The ones
here are built like Mask R-CNN: images of any sizes, proposals by non-maximum suppression, heads
over what was found. The pyramid is torchvision's own.
"""

from collections import OrderedDict
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import passes
import reparam
from reparam.verify import EXACT, relative_difference
from tests.randomised import randomised

timm: Any = pytest.importorskip("timm")
ops: Any = pytest.importorskip("torchvision.ops")
pytestmark = pytest.mark.usefixtures("without_annotation_checks")

Detections = list[dict[str, Tensor]]
IMAGES = [torch.rand(3, 64, 96), torch.rand(3, 80, 64)]


def conv_norm(inner: int, outer: int, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU())


class Pyramid(nn.Module):
    """A backbone and a feature pyramid, as torchvision joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("fastvit_t8", features_only=True, out_indices=(1, 2, 3))
        channels = self.body.feature_info.channels()
        self.fpn = ops.FeaturePyramidNetwork(channels, 16, norm_layer=nn.BatchNorm2d)
        self.out_channels = 16

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        named = OrderedDict((str(index), level) for index, level in enumerate(features))
        return cast("dict[str, Tensor]", self.fpn(named))


class Proposals(nn.Module):
    """Boxes with the best scores, without those that overlap a better one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(16, 16)
        self.scores, self.deltas = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 4, 1)

    def forward(self, features: list[Tensor], count: int = 4) -> list[Tensor]:
        levels = [self.stem(level) for level in features]
        scores = torch.cat([self.scores(level).flatten(1) for level in levels], 1)
        deltas = torch.cat([self.deltas(level).flatten(2) for level in levels], 2).sigmoid()
        return [self.suppressed(s, d.T, count) for s, d in zip(scores, deltas, strict=True)]

    def suppressed(self, scores: Tensor, boxes: Tensor, count: int) -> Tensor:
        corner, extent = boxes[:, :2] * 0.5, boxes[:, 2:] * 0.4 + 0.1
        kept: list[Tensor] = []
        for index in scores.argsort(descending=True):
            box = torch.cat([corner[index], corner[index] + extent[index]])
            if all(overlap(box, other) < 0.7 for other in kept):
                kept.append(box)
            if len(kept) == count:
                break
        return torch.stack(kept)


def overlap(one: Tensor, other: Tensor) -> float:
    low, high = torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])
    both = (high - low).clamp(min=0).prod()
    union = (one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - both
    return float(both / union)


class Heads(nn.Module):
    """A class and a mask for each box."""

    def __init__(self) -> None:
        super().__init__()
        self.box_head = nn.Sequential(conv_norm(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.predictor = nn.Linear(16, 5)
        up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.mask_head = nn.Sequential(conv_norm(16, 16), up, nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1))

    def forward(self, features: Tensor, boxes: list[Tensor]) -> Detections:
        found: Detections = []
        for image, own in zip(features, boxes, strict=True):
            if len(own) == 0:
                continue
            crops = torch.stack([crop(image, box) for box in own])
            logits = self.predictor(self.box_head(crops))
            masks = self.mask_head(crops).sigmoid()
            found.append({"boxes": own, "logits": logits, "masks": masks})
        return found


def crop(image: Tensor, box: Tensor) -> Tensor:
    """An 8 by 8 patch of a feature map, between the corners of a box."""
    x = box[0] + (box[2] - box[0]) * torch.linspace(0, 1, 8, dtype=box.dtype)
    y = box[1] + (box[3] - box[1]) * torch.linspace(0, 1, 8, dtype=box.dtype)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None] * 2 - 1
    return F.grid_sample(image[None], grid, align_corners=False)[0]


class Detector(nn.Module):
    """Images of any sizes in, a dictionary for each out."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.rpn, self.heads = Pyramid(), Proposals(), Heads()

    def forward(self, images: list[Tensor], targets: Any = None) -> Detections:
        if self.training and targets is None:
            raise ValueError("targets are needed in training")
        height, width = (max(int(image.shape[axis]) for image in images) for axis in (1, 2))
        sides = [(0, width - i.shape[2], 0, height - i.shape[1]) for i in images]
        batch = torch.stack([F.pad(i, side) for i, side in zip(images, sides, strict=True)])
        features = list(self.backbone(batch).values())
        return cast("Detections", self.heads(features[0], self.rpn(features)))


def norms(model: nn.Module) -> list[str]:
    return [path for path, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]


def assert_equal(model: nn.Module, fused: nn.Module) -> None:
    images = [image.double() for image in IMAGES]
    with torch.no_grad():
        expected, found = model.double()(images), fused.double()(images)
    assert len(expected) == len(found) == len(IMAGES)
    for one, other in zip(expected, found, strict=True):
        assert list(one) == list(other)
        assert all(relative_difference(one[key], other[key]) <= EXACT for key in one)


def test_detector() -> None:
    """Its loops stay, and all that they call is compiled."""
    model = randomised(Detector().double(), [image.double() for image in IMAGES])
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert type(fused) is Detector
    assert isinstance(fused.get_submodule("backbone"), fx.GraphModule)
    assert norms(fused) == []
    missed = {remark.call: remark.message for remark in reparam.report(fused).missed}
    for path in ("", "rpn", "heads"):
        assert "test_detection.py:" in missed[path]
    assert_equal(model, fused)
    assert norms(model)


def test_detector_with_example_inputs() -> None:
    images = [image.double() for image in IMAGES]
    model = randomised(Detector().double(), images)
    fused = reparam.compile(model, (images,), passes=passes.DEFAULT)
    missed = {remark.call: remark.message for remark in reparam.report(fused).missed}
    # What the heads are given, they could write to: nobody has seen what they do.
    assert all("writes to a tensor" in missed[path] for path in norms(fused))
    assert all(path.startswith("backbone.fpn.layer_blocks") for path in norms(fused))
    assert "equivalent" in str(reparam.report(fused).verification.whole_model)


def test_backbone_in_place_of_itself() -> None:
    """What else the detector reads of its backbone is still there."""
    model = randomised(Detector().double(), [image.double() for image in IMAGES])
    other = randomised(Detector().double(), [image.double() for image in IMAGES])
    other.backbone = reparam.compile(other.get_submodule("backbone"), passes=passes.DEFAULT)
    assert cast("Any", other.backbone).out_channels == 16
    assert not any(path.startswith("backbone") for path in norms(other))
    assert_equal(model, other)


def test_list_of_features() -> None:
    backbone = timm.create_model("fastvit_t8", features_only=True, out_indices=(0, 2))
    x = torch.randn(2, 3, 64, 96)
    model = randomised(backbone, x)
    fused = cast("Any", reparam.compile(model, x, passes=passes.DEFAULT))
    assert norms(fused) == []
    assert fused.feature_info.channels() == backbone.feature_info.channels()
    assert isinstance(fused(x), list)


class Segmenter(nn.Module):
    """Every level of a pyramid at the size of the image, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Pyramid()
        self.heads = nn.ModuleList(conv_norm(16, 16) for _ in range(3))
        self.classifier = nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = self.backbone(x).values()
        up = [
            F.interpolate(head(level), size=x.shape[-2:], mode="bilinear")
            for head, level in zip(self.heads, levels, strict=True)
        ]
        out: OrderedDict[str, Tensor] = OrderedDict()
        out["out"] = self.classifier(torch.stack(up).sum(0))
        return out


def test_segmenter() -> None:
    x = torch.randn(2, 3, 64, 96)
    model = randomised(Segmenter(), x)
    fused = reparam.compile(model, x, passes=passes.DEFAULT)
    assert isinstance(fused, fx.GraphModule)
    assert norms(fused) == []
    assert not [r for r in reparam.report(fused).missed if r.rule == "capture"]
    larger = torch.randn(1, 3, 96, 128)
    assert type(fused(larger)) is OrderedDict
    reparam.verify(model, fused, larger).raise_if_different()
