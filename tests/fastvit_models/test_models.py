"""Models by name: creating, listing, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

import fastvit_models
from fastvit_models import ModelOptionError, UnknownModelError
from fastvit_models.blocks import DropPath

FASTVIT = ["t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36"]


def test_list_models() -> None:
    assert fastvit_models.list_models("fastvit_*") == [f"fastvit_{variant}" for variant in FASTVIT]
    assert fastvit_models.list_models() == list(fastvit_models.MODELS)
    assert fastvit_models.list_models("*_sa?6") == ["fastvit_sa36"]
    assert fastvit_models.list_models("resnet*") == []


@pytest.mark.parametrize("name", ["fastvit_sa13", "FastViT-SA12", "fastvitsa12"])
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str) -> None:
    with pytest.raises(UnknownModelError, match=f"'{name}'.*did you mean .*fastvit_sa12"):
        fastvit_models.create_model(name)


def test_an_unknown_name_that_is_near_to_none_points_at_the_list() -> None:
    with pytest.raises(UnknownModelError, match=r"^no model is named 'vgg': list_models\(\)"):
        fastvit_models.create_model("vgg")


@pytest.mark.parametrize("name", [None, 3, [], "", b"fastvit_t8", float("nan")])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(UnknownModelError, match=r"^no model is named .*list_models\(\) lists"):
        fastvit_models.create_model(name)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("weights", True, "takes no option 'weights', only num_classes, in_channels"),
        ("num_classes", -1, "num_classes is -1: give an integer of at least 0, which is no head"),
        ("num_classes", None, "num_classes is None: give an integer"),
        ("num_classes", "5", "num_classes is '5': give an integer"),
        ("num_classes", 2.5, "num_classes is 2.5: give an integer"),
        ("num_classes", True, "num_classes is True: give an integer"),
        ("num_classes", float("nan"), "num_classes is nan: give an integer"),
        ("in_channels", 0, "in_channels is 0: give an integer of at least 1"),
        ("in_channels", None, "in_channels is None: give an integer of at least 1"),
        ("in_channels", 1.0, "in_channels is 1.0: give an integer of at least 1"),
        ("drop_path_rate", 1.0, "drop_path_rate is 1.0"),
        ("drop_path_rate", -0.1, "drop_path_rate is -0.1"),
        ("drop_path_rate", "x", "drop_path_rate is 'x': give a number"),
        ("drop_path_rate", float("nan"), "drop_path_rate is nan"),
    ],
)
@pytest.mark.parametrize("name", ["fastvit_t8", "repvit_m0_6"])
def test_an_option_out_of_range_is_refused(
    name: str, option: str, value: object, reason: str
) -> None:
    with pytest.raises(ModelOptionError, match=reason):
        fastvit_models.create_model(name, **{option: value})


@pytest.mark.parametrize("name", ["fastvit_t8", "repvit_m0_6"])
def test_a_rate_of_none_is_the_default(name: str) -> None:
    models = [
        fastvit_models.create_model(name),
        fastvit_models.create_model(name, drop_path_rate=None),
    ]
    rates = [[m.rate for m in model.modules() if isinstance(m, DropPath)] for model in models]
    assert rates[0] == rates[1]


def test_integers_of_other_libraries_are_options_too() -> None:
    labels = torch.tensor([0, 6])
    for classes in (np.int64(7), labels.max() + 1):
        model = fastvit_models.create_model(
            "repvgg_a0", num_classes=classes, in_channels=np.int32(1)
        )
        assert model.get_submodule("head").weight.shape == (7, 1280)
