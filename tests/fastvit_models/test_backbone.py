"""What users do with any of the networks: another head, features, memory for time, training."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastvit_models
from fastvit_models import ModelOptionError
from fastvit_models.backbone import Classifier
from reparam.testing.randomised import randomised
from reparam.verify import EXACT, relative_difference

NAMES = ("fastvit_sa12", "repvit_m0_6", "mobileone_s0", "repvgg_a0")
"""One of each family."""


def image(size: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_feature_maps(name: str) -> None:
    model: Any = fastvit_models.create_model(name, features_only=True, in_channels=1).eval()
    maps = model(image(96, channels=1))
    assert [tuple(m.shape) for m in maps] == [
        (2, each["num_chs"], 96 // each["reduction"], 96 // each["reduction"])
        for each in model.feature_info
    ]


@pytest.mark.parametrize("name", NAMES)
def test_another_head(name: str) -> None:
    model: Any = fastvit_models.create_model(name, num_classes=5).double().eval()
    x = image().double()[:1]
    assert (model.num_classes, model(x).shape) == (5, (1, 5))
    model.reset_classifier(3)
    assert (model.num_classes, model(x).shape) == (3, (1, 3))
    assert not any(module.training for module in model.modules())
    assert [name for name, _ in model.named_children()][-1] == "head"
    model.reset_classifier(0)
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, 2, 2)
    assert torch.equal(model(x), features.mean((2, 3)))
    headless = fastvit_models.create_model(name, num_classes=0)
    assert headless.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [-1, 2.5, True, None])
def test_a_head_that_cannot_be_leaves_the_old_one(name: str, classes: Any) -> None:
    model: Any = fastvit_models.create_model(name, num_classes=5).eval()
    head = model.head
    with pytest.raises(ModelOptionError, match=f"num_classes is {classes}: give an integer of at"):
        model.reset_classifier(classes)
    assert model.head is head
    assert model.num_classes == 5


def test_a_head_that_memory_does_not_hold_leaves_the_old_one() -> None:
    model: Any = fastvit_models.create_model("repvgg_a0", num_classes=5)
    head = model.head
    with pytest.raises(RuntimeError):
        model.reset_classifier(10**15)
    assert model.head is head
    assert model.num_classes == 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("synchronised", [False, True])
def test_what_is_computed_again_changes_nothing(name: str, synchronised: bool) -> None:
    """Gradients, running statistics and random draws are those of plain training."""
    model: Any = randomised(fastvit_models.create_model(name, num_classes=4).eval(), image())
    if synchronised:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.double().train()
    frugal = copy.deepcopy(model)
    frugal.set_grad_checkpointing()
    for each in (model, frugal):
        torch.manual_seed(0)
        each(image().double()).square().sum().backward()
    for one, other in zip(model.parameters(), frugal.parameters(), strict=True):
        assert one.grad is not None
        assert relative_difference(one.grad, other.grad) <= EXACT
    for one, other in zip(model.buffers(), frugal.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("option", "value"), [("num_classes", -1), ("in_channels", 0), ("drop_path_rate", 1.0)]
)
def test_values_out_of_range(name: str, option: str, value: Any) -> None:
    with pytest.raises(ModelOptionError, match=option):
        fastvit_models.create_model(name, **{option: value})


def test_a_distilled_repvit_returns_both_logits_in_training() -> None:
    model = fastvit_models.create_model("repvit_m0_6", num_classes=4, distillation=True)
    ours, distilled = model.train()(image())
    assert ours.shape == distilled.shape == (2, 4)
    assert model.eval()(image()).shape == (2, 4)
    assert isinstance(model, Classifier)
    model.reset_classifier(3)
    assert model(image()).shape == (2, 3)


def test_a_distilled_file_fits_a_distilled_model_alone(tmp_path: Any) -> None:
    distilled = fastvit_models.create_model("repvit_m0_6", distillation=True)
    torch.save(distilled.state_dict(), tmp_path / "distilled.pth")
    with pytest.raises(fastvit_models.CheckpointError, match=r"unexpected: head\.distilled"):
        fastvit_models.load_checkpoint(
            fastvit_models.create_model("repvit_m0_6"), tmp_path / "distilled.pth"
        )


def test_stochastic_depth_of_repvit_grows() -> None:
    model = fastvit_models.create_model("repvit_m0_6", drop_path_rate=0.16)
    rates = [module.rate for module in model.modules() if hasattr(module, "rate")]
    assert rates == pytest.approx([0.01 * i for i in range(17)])
