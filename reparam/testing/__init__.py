"""Test passes and models: generated graphs, `check_pass`, and assertions about compiled models.

It needs Hypothesis: pip install 'reparam[test]'.
"""

import importlib.util

from reparam.errors import MissingExtraError

if importlib.util.find_spec("hypothesis") is None:
    raise MissingExtraError("hypothesis", "test")

from reparam.testing import layers
from reparam.testing.check_graph import check_graph
from reparam.testing.check_model import Outcome, check_model
from reparam.testing.check_pass import PassCheck, check_pass
from reparam.testing.equivalence import assert_compiles, assert_equivalent
from reparam.testing.failures import CheckFailed
from reparam.testing.graph import Graph, Input, Layer, Step
from reparam.testing.programs import program
from reparam.testing.randomised import randomised
from reparam.testing.strategies import MOTIFS, blocks, graphs
from reparam.testing.values import batch_norms, convs, pairs_in_series, pairs_of_branches

__all__ = [
    "MOTIFS",
    "CheckFailed",
    "Graph",
    "Input",
    "Layer",
    "Outcome",
    "PassCheck",
    "Step",
    "assert_compiles",
    "assert_equivalent",
    "batch_norms",
    "blocks",
    "check_graph",
    "check_model",
    "check_pass",
    "convs",
    "graphs",
    "layers",
    "pairs_in_series",
    "pairs_of_branches",
    "program",
    "randomised",
]
