"""What every test can rely on: fixed seeds, deterministic examples, an importable timm.

(That annotations are checked at run time is set in pyproject.toml, which pytest reads before it
imports anything of ours.)
"""

import os
import random
from collections.abc import Iterator

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch

from tests.with_torchvision import import_torchvision

import_torchvision()

collect_ignore = ["plugin"]  # a distribution of its own, which testing/test_plugin_installed runs

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # each worker is a process: more threads than cores only wait


class _TorchGenerator:
    """Torch's default generator, in the form that Hypothesis seeds before each example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


# Hypothesis keeps no reference of its own, so this one has to stay.
_torch_generator = _TorchGenerator()
hypothesis.register_random(_torch_generator)

# The same examples on every machine, and no verdict from a clock: a busy machine fails nothing.
hypothesis.settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# New examples at every run, and many: pytest --hypothesis-profile=nightly
hypothesis.settings.register_profile(
    "nightly",
    hypothesis.settings.get_profile("deterministic"),
    derandomize=False,
    max_examples=2000,
)
hypothesis.settings.load_profile("deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option of our own; it is known wherever the tests are named on the command line."""
    parser.addoption(
        "--update-goldens", action="store_true", help="write the graphs in tests/goldens anew"
    )


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The generators that a test without Hypothesis draws from."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def without_annotation_checks() -> Iterator[None]:
    """For whole models, which take ten times as long under them; parts of models have them on."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
