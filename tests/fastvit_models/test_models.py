"""Models by name: creating, listing, and what is refused."""

import pytest

import fastvit_models
from fastvit_models import ModelOptionError, UnknownModelError

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


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("weights", True, "takes no option 'weights', only num_classes, in_channels"),
        ("num_classes", -1, "num_classes is -1: give at least 0, which is no head"),
        ("in_channels", 0, "in_channels is 0"),
        ("drop_path_rate", 1.0, "drop_path_rate is 1.0"),
        ("drop_path_rate", -0.1, "drop_path_rate is -0.1"),
    ],
)
def test_an_option_out_of_range_is_refused(option: str, value: object, reason: str) -> None:
    with pytest.raises(ModelOptionError, match=reason):
        fastvit_models.create_model("fastvit_t8", **{option: value})
