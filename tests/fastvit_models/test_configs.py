"""Networks of one's own: what can be built computes, and all else is refused by its field."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastvit_models import ModelOptionError
from fastvit_models.fastvit import FastViTConfig, create_fastvit
from fastvit_models.mobileone import MobileOneConfig, create_mobileone
from fastvit_models.repvgg import RepVGGConfig, create_repvgg
from fastvit_models.repvit import RepViTConfig, create_repvit

ONCE = (1, 1, 1, 1)


def fastvit(**options: Any) -> nn.Module:
    features_only = options.pop("features_only", False)
    config = FastViTConfig(**{"depths": ONCE, "width": 4, "mlp_ratio": 2, **options})
    return create_fastvit(config, features_only=features_only, num_classes=5)


def repvit(**options: Any) -> nn.Module:
    features_only = options.pop("features_only", False)
    config = RepViTConfig(**{"depths": ONCE, "width": 4, **options})
    return create_repvit(config, features_only=features_only, num_classes=5)


def mobileone(**options: Any) -> nn.Module:
    features_only = options.pop("features_only", False)
    config = MobileOneConfig(**{"multipliers": (1 / 16,) * 4, **options})
    return create_mobileone(config, features_only=features_only, num_classes=5)


def repvgg(**options: Any) -> nn.Module:
    features_only = options.pop("features_only", False)
    some = {"depths": ONCE, "multiplier": 1 / 16, "last_multiplier": 1 / 16}
    config = RepVGGConfig(**{**some, **options})
    return create_repvgg(config, features_only=features_only, num_classes=5)


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(
    ("create", "options"),
    [
        (fastvit, {"depths": (1, 0, 0, 0), "drop_path_rate": 0.5}),
        (fastvit, {"depths": (0, 0, 0, 0), "width": 1, "mlp_ratio": 1}),
        (fastvit, {"depths": (0, 1, 0, 0), "attention": True}),
        (fastvit, {"depths": [1, 1, 1, 2], "attention": True}),
        (fastvit, {"layer_scale": 1}),
        (fastvit, {"layer_scale": 0, "token_mixer": "pooling"}),
        (repvit, {"depths": (0, 1, 1, 1), "width": 2}),
        (repvit, {"depths": (1, 2, 3, 2), "width": 5, "excite_last": True}),
        (mobileone, {"multipliers": (1 / 64, 1 / 128, 1 / 256, 1 / 512)}),
        (mobileone, {"squeeze_excite": (2, 8, 10, 1), "conv_branches": 2}),
        (repvgg, {"multiplier": 1 / 64, "last_multiplier": 1 / 512}),
        (repvgg, {"squeeze_excite": True}),
        (repvgg, {"groups": 4, "last_multiplier": 1 / 512, "depths": (2, 1, 1, 1)}),
    ],
)
def test_a_network_of_ones_own(
    create: Callable[..., nn.Module], options: dict[str, Any], features_only: bool
) -> None:
    model: Any = create(features_only=features_only, **options)
    image = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        maps = model.train(mode)(image)
        if features_only:
            assert [tuple(each.shape) for each in maps] == [
                (2, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
                for info in model.feature_info
            ]
        else:
            assert maps.shape == (2, 5)
    keys = list(model.state_dict())
    assert model.convert_keys(keys) == dict(zip(keys, keys, strict=True))
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())


@pytest.mark.parametrize(
    ("create", "options", "reason"),
    [
        (
            fastvit,
            {"depths": (1, 1, 1)},
            "depths is (1, 1, 1): give a tuple of 4, one for each stage",
        ),
        (fastvit, {"depths": 4}, "depths is 4: give a tuple of 4"),
        (fastvit, {"depths": (1, -1, 1, 1)}, "depths[1] is -1: give an integer of at least 0"),
        (fastvit, {"depths": (1, 1, 1.0, 1)}, "depths[2] is 1.0: give an integer"),
        (fastvit, {"depths": "1111"}, "depths[0] is '1': give an integer"),
        (fastvit, {"width": 0}, "width is 0: give an integer of at least 1"),
        (fastvit, {"width": -4}, "width is -4"),
        (fastvit, {"width": None}, "width is None"),
        (fastvit, {"width": 6, "attention": True}, "width is 6, which makes 48 channels where"),
        (fastvit, {"mlp_ratio": 0}, "mlp_ratio is 0: give an integer of at least 1"),
        (fastvit, {"mlp_ratio": 2.5}, "mlp_ratio is 2.5: give an integer of at least 1"),
        (fastvit, {"layer_scale": math.nan}, "layer_scale is nan: give a finite number"),
        (fastvit, {"layer_scale": math.inf}, "layer_scale is inf"),
        (fastvit, {"layer_scale": 10**400}, "layer_scale is 1000"),
        (fastvit, {"layer_scale": "1"}, "layer_scale is '1'"),
        (fastvit, {"drop_path_rate": 1}, "drop_path_rate is 1: give a number of at least 0, less"),
        (fastvit, {"dropout": -0.5}, "dropout is -0.5: give a number of at least 0, less than 1"),
        (fastvit, {"token_mixer": "attention"}, "token_mixer is 'attention': give 'repmixer' or"),
        (repvit, {"depths": (1, 1, 1)}, "depths is (1, 1, 1): give a tuple of 4"),
        (repvit, {"depths": (1, 0, 2, 2)}, "depths[1] is 0: give an integer of at least 1"),
        (repvit, {"depths": (1, -1, 1, 1)}, "depths[1] is -1: give an integer of at least 1"),
        (repvit, {"depths": (-1, 1, 1, 1)}, "depths[0] is -1: give an integer of at least 0"),
        (repvit, {"width": 1}, "width is 1: give an integer of at least 2"),
        (mobileone, {"conv_branches": 0}, "conv_branches is 0: give an integer of at least 1"),
        (mobileone, {"squeeze_excite": (-1, 0, 0, 0)}, "squeeze_excite[0] is -1: give an integer"),
        (mobileone, {"squeeze_excite": True}, "squeeze_excite is True: give a tuple of 4"),
        (mobileone, {"multipliers": (1, 1)}, "multipliers is (1, 1): give a tuple of 4"),
        (mobileone, {"multipliers": (1, 1, 1, 0)}, "multipliers[3] is 0: give a finite number of"),
        (mobileone, {"multipliers": (math.nan,) * 4}, "multipliers[0] is nan"),
        (mobileone, {"multipliers": (math.inf,) * 4}, "multipliers[0] is inf"),
        (repvgg, {"depths": (1, 0, 1, 1)}, "depths[1] is 0: give an integer of at least 1"),
        (repvgg, {"multiplier": -1}, "multiplier is -1: give a finite number of at least 0.015625"),
        (repvgg, {"last_multiplier": 0.001}, "last_multiplier is 0.001: give a finite number of"),
        (repvgg, {"groups": 0}, "groups is 0: give an integer of at least 1"),
        (repvgg, {"groups": 3}, "groups is 3, and layer 2 has 4 channels in and 8 out: give a"),
    ],
)
def test_what_cannot_be_built_is_refused(
    create: Callable[..., nn.Module], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelOptionError) as caught:
        create(**options)
    assert str(caught.value).startswith(reason)
