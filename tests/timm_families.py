"""One model of each of timm's families, its smallest by parameters: what compiling leaves of it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

import passes
import reparam
from tests.test_timm_zoo import MORE_IMAGES, Survivor, silent, survivors, trained

FILE = Path(__file__).with_name("timm_families.json")
"""The families, each with a model and the size of the images that it is run on."""


@dataclass(frozen=True)
class Family:
    """A module of timm's, the name of its smallest model, and height and width of images."""

    name: str
    model: str
    size: int


FAMILIES = [Family(*row) for row in json.loads(FILE.read_text())]


@dataclass(frozen=True)
class Found:
    """What compiling a family's model with an example input gave.

    Attributes:
        before, after: calls of the traced and of the compiled graph.
        norms: batch norms that are left.
        untraced: modules that stay whole, since they can't be traced.
        asserted: branches on sizes that the result asserts to be taken.
        silent: what is left without a remark.
        ratio: of the errors against float64 of the compiled model and the original.
    """

    before: int
    after: int
    norms: int
    untraced: list[str]
    asserted: int
    silent: list[str]
    ratio: float


def measured(family: Family) -> Found:
    """Compile the family's model and look at what is left.

    Raises:
        VerificationError: if the result computes something else.
    """
    torch.manual_seed(0)
    images = 16 if family.model in MORE_IMAGES else 4
    model = trained(family.model, family.size, images)
    x = torch.randn(1, 3, family.size, family.size)
    fused = reparam.compile(model, passes=passes.DEFAULT, example_inputs=x)
    equivalence = reparam.verify(model, fused, x)
    equivalence.raise_if_different()
    report = reparam.report(fused)
    left = list(survivors(fused)) if isinstance(fused, fx.GraphModule) else []
    named = {name for remark in report.missed for name in (remark.call, remark.blocker) if name}
    unexplained = [s.path for s in silent(left, named) if _is_scale(fused, s)]
    return Found(
        report.before.total,
        report.after.total,
        sum(survivor.kind == "batch norm" for survivor in left),
        [remark.call for remark in report.missed if remark.rule == "capture"],
        report.after.operators.get("_assert", 0),
        unexplained,
        equivalence.rmse_fused / equivalence.rmse_model,
    )


def _is_scale(fused: nn.Module, survivor: Survivor) -> bool:
    """Whether a survivor is learned: a table that positions are computed from is no scale."""
    return survivor.kind != "scale" or survivor.path in dict(fused.named_parameters())
