"""timm's families: a model of each compiles, and is equal under the gates, with example inputs."""

from typing import Any

import pytest
import torch
from torch import fx

import passes
import reparam
from tests.test_timm_zoo import survivors, trained, unexplained
from tests.timm_families import FAMILIES, Family, measured

timm: Any = pytest.importorskip("timm")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("without_annotation_checks")]

UNTRACED: dict[str, int] = {}
"""How many modules stay whole in the models that aren't traced whole."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(family: Family) -> None:
    found = measured(family)  # which raises if the two differ
    assert len(found.untraced) == UNTRACED.get(family.name, 0)
    assert not found.silent


def test_every_family_is_listed() -> None:
    module_of = timm.models._registry._model_to_module
    families = {module_of[name] for name in timm.list_models()}
    assert {family.name for family in FAMILIES} == families
    assert all(module_of[family.model] == family.name for family in FAMILIES)


def test_at_least_ninety_are_traced_whole() -> None:
    assert len(FAMILIES) == 98
    assert len(FAMILIES) - len(UNTRACED) >= 90


@pytest.mark.parametrize("name", ["efficientvit_m0", "mobilevit_s", "dm_nfnet_f0"])
def test_what_plain_tracing_fails_on(name: str) -> None:
    """They fold as completely as the models that need no example input."""
    model = trained(name, 224, images=4)
    x = torch.randn(1, 3, 224, 224)
    fused = reparam.compile(model, x, passes=passes.DEFAULT)
    assert isinstance(fused, fx.GraphModule)
    left = list(survivors(fused))
    assert not [survivor.path for survivor in left if survivor.kind == "batch norm"]
    assert not list(unexplained(fused, left))
    by_hand = reparam.compile(timm.utils.model.reparameterize_model(model), x, passes=())
    assert reparam.report(fused).after.total <= reparam.report(by_hand).after.total
    reparam.verify(model, fused, x).raise_if_different()
