"""A campaign of generated graphs through the compiler: what was fused, what was wrong, what failed.

Half of the shards compile without checks, so that a pass that is wrong shows in the result; the
other half with them, so that a check that refuses what is right shows.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

import passes
import reparam
from reparam.runs import error_of_roundings
from reparam.testing import Graph, graphs
from reparam.testing.check_graph import compiled
from reparam.testing.equivalence import difference
from reparam.testing.failures import went_wrong
from reparam.testing.profiles import sample
from reparam.testing.sameness import shared_memory
from reparam.verify import FARTHER

SHARD = 500
"""Graphs of one shard."""


@dataclass
class Shard:
    """What came of the graphs of one seed.

    Attributes:
        graphs: how many there were.
        matched: on how many of them some pass did something.
        rewrites: how many rewrites were made.
        fired: for each pass, on how many graphs it did something.
        wrong: programs of which the result differs, with how.
        failed: programs that a compile fails on, with the error.
        unlucky: how often a result was refused for its roundings: among few numbers, of less than
            float64, there are unlucky ones.
        rejected: rewrites that a check refused, with the program.
    """

    graphs: int = 0
    matched: int = 0
    rewrites: int = 0
    fired: dict[str, int] = field(default_factory=dict[str, int])
    wrong: list[str] = field(default_factory=list[str])
    failed: list[str] = field(default_factory=list[str])
    unlucky: int = 0
    rejected: list[str] = field(default_factory=list[str])


def shard(seed: int, count: int = SHARD) -> Shard:
    """Compile the graphs of a seed, and compare each with its original at several sizes."""
    found, fired = Shard(), Counter[str]()
    for graph in sample(graphs(), count, seed=seed):
        found.graphs += 1
        try:
            told = _compared(graph, seed % 2 == 0, found)
        except Exception as error:
            found.failed.append(f"{type(error).__name__}: {error}\n{graph.source}")
            continue
        fired.update({remark.rule for remark in told.applied})
        found.matched += bool(told.applied)
        found.rewrites += len(told.applied)
        wrong = filter(went_wrong, told.missed)
        found.rejected += [f"{remark}\n{graph.source}" for remark in wrong]
    found.fired = dict(fired)
    return found


def _compared(graph: Graph, verify: bool, found: Shard) -> reparam.Report:
    """Compile a graph, and note in what the result differs."""
    model = graph.build()
    fused, unlucky = compiled(graph, model, passes.DEFAULT, verify)
    found.unlucky += unlucky
    how = shared_memory(model, fused, graph.example())
    for inputs in graph.examples():
        differs = difference(model, fused, inputs)
        if differs is not None and by_roundings(graph, model, fused, inputs):
            found.unlucky += 1
        else:
            how = how or differs
    if how is not None:
        found.wrong.append(f"{how}\n{graph.source}")
    return reparam.report(fused)


def by_roundings(graph: Graph, model: nn.Module, fused: nn.Module, inputs: Any) -> bool:
    """Whether a difference is one of roundings: other ones of the weights make as much of it.

    A norm of two numbers that are nearly the same multiplies any. In float64, the same graph has to
    be compiled to the same function.
    """
    if graph.dtype == "float64":
        return False
    exact = replace(graph, dtype="float64")
    plain = exact.build()
    result, _ = compiled(exact, plain, passes.DEFAULT, False)
    if any(difference(plain, result, each) for each in exact.examples()):
        return False
    try:
        found = reparam.verify(model, fused, inputs)
    except reparam.VerificationError:  # of other shapes or dtypes
        return False
    dtype: torch.dtype = getattr(torch, graph.dtype)
    others = (error_of_roundings(each, inputs, dtype) for each in (model, fused))
    return found.rmse_fused <= FARTHER * max(others)


def fused_by_torch(seed: int, count: int = SHARD) -> Counter[str]:
    """What PyTorch's own fuser does to the same graphs: how often it is right, wrong, or fails."""
    found = Counter[str]()
    for graph in sample(graphs(), count, seed=seed):
        model: Any = graph.build()
        try:
            fused: nn.Module = fuse(model)
            with torch.no_grad():
                differs = difference(model, fused, graph.example())
        except Exception as error:
            found[f"fails with {type(error).__name__}"] += 1
        else:
            found["wrong" if differs else "right"] += 1
    return found
