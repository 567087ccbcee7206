"""Proofs of all that the default passes do to generated blocks of each motif."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.testing import MOTIFS, blocks, randomised
from reparam.testing.profiles import sample

EACH = 24
"""Graphs of each motif."""


class Bordered(nn.Module):
    """A branch of ECB's: the image is padded with what the first layer makes of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert self.first.bias is not None
        border = self.first.bias[:, None, None]
        return self.second(F.pad(self.first(x) - border, [1, 1, 1, 1]) + border)


def scaled(*between: nn.Module) -> nn.Module:
    """A batch norm by positive scales, and a convolution behind something else."""
    model = randomised(
        nn.Sequential(nn.BatchNorm2d(4), *between, nn.Conv2d(4, 4, 3)).double(),
        torch.zeros(2, 4, 14, 14, dtype=torch.float64),
    )
    with torch.no_grad():
        model[0].weight.abs_()
        if isinstance(between[0], nn.ReLU | nn.LeakyReLU | nn.PReLU):
            model[0].bias.zero_()
            model[0].running_mean.zero_()
    return model


def without_bias() -> nn.Module:
    """A bias that is zero lets two kernels merge in spite of the padding between them."""
    model = randomised(
        nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 3, padding=1)).double(),
        torch.zeros(2, 4, 14, 14, dtype=torch.float64),
    )
    nn.init.zeros_(model[0].bias)
    return model


def special() -> Iterator[nn.Module]:
    """Models over (2, 4, 14, 14) in which more is taken for granted, or has no counterpart."""
    yield randomised(Bordered().double(), torch.zeros(2, 4, 14, 14, dtype=torch.float64))
    yield without_bias()
    for between in (nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(4), nn.AdaptiveAvgPool2d(5)):
        yield scaled(between)
    yield scaled(nn.MaxPool2d(2))
    yield scaled(nn.AdaptiveMaxPool2d(5))
    for mode in ("nearest", "bilinear", "bicubic"):
        yield scaled(nn.Upsample(scale_factor=2, mode=mode))


@dataclass
class Proofs:
    """What is proven of one pass.

    Attributes:
        proven: how many rewrites are.
        probability: with which a wrong one would have passed, at most.
        degree: of the difference of both sides, at most.
        premises: kinds of premises, and how many proofs have each.
        unproven: why others are checked in float64 only, and how many for each reason.
        refuted: what was refused because its proof fails.
    """

    proven: int = 0
    probability: float = 0.0
    degree: int = 0
    premises: Counter[str] = field(default_factory=Counter[str])
    unproven: Counter[str] = field(default_factory=Counter[str])
    refuted: list[str] = field(default_factory=list[str])

    def join(self, other: "Proofs") -> None:
        """Add what is proven elsewhere."""
        self.proven += other.proven
        self.probability = max(self.probability, other.probability)
        self.degree = max(self.degree, other.degree)
        self.premises += other.premises
        self.unproven += other.unproven
        self.refuted += other.refuted


def proofs(each: int = EACH, run: Callable[..., Iterable[Any]] = map) -> dict[str, Proofs]:
    """Compile blocks of all motifs, and collect the proofs by pass.

    Args:
        each: how many of each motif.
        run: calls a function of each motif: `map`, or that of a pool of processes.
    """
    found: dict[str, Proofs] = {}
    for part in run(partial(proofs_of, each=each), [None, *MOTIFS]):
        for name, one in part.items():
            found.setdefault(name, Proofs()).join(one)
    return found


def proofs_of(motif: str | None, each: int) -> dict[str, Proofs]:
    """The proofs for blocks of one motif; for None, of special models."""
    found: dict[str, Proofs] = {}
    models: list[tuple[nn.Module, Any]] = []
    if motif is None:
        models += [(model, torch.zeros(2, 4, 14, 14).double()) for model in special()]
    else:
        # A proof knows of no dtype; in the others, the whole may have bad luck with its roundings.
        graphs = sample(blocks(MOTIFS[motif], dtypes=("float64",)), each)
        models += [(g.build(), g.example() if g.given else None) for g in graphs]
    for model, example in models:
        told = reparam.report(reparam.compile(model, example, verify="proof"))
        for remark in told.applied:
            _add(found.setdefault(remark.rule, Proofs()), remark)
        for remark in told.missed:
            if "its proof fails" in remark.message:
                found.setdefault(remark.rule, Proofs()).refuted.append(str(remark))
    return found


def _add(found: Proofs, remark: reparam.Remark) -> None:
    proof = remark.proof
    assert proof is not None, "each rewrite has a proof, or a reason why not"
    if proof.reason is not None:
        found.unproven[proof.reason] += 1
        return
    found.proven += 1
    found.probability = max(found.probability, proof.probability)
    found.degree = max(found.degree, proof.degree)
    found.premises.update({_kind(premise) for premise in proof.premises})


def _kind(premise: str) -> str:
    """A premise without the names of the weights that it is about."""
    words = re.sub(r"\b[\w.]+\.(weight|bias|mean|variance|border|content)\b", r"a \1", premise)
    words = re.sub(r"what is compared of .* comes", "what is compared comes", words)
    return re.sub(r"the border of \S+ is what \S+ makes", "a border is what a layer makes", words)
