"""How many graphs are drawn, and which: the same at every run, or other ones each time."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase

from reparam.errors import ReparamError
from reparam.testing.graph import Graph

if TYPE_CHECKING:
    Settings = settings
else:
    Settings = object  # its class has another name than it goes by, which checkers can't tell

PR = "reparam-pr"
"""For pull requests: the same graphs at every run, few, nothing kept."""

NIGHTLY = "reparam-nightly"
"""For nightly runs: other graphs each time, many; what failed is kept, and tried first."""

VARIABLE = "REPARAM_PROFILE"
"""The environment variable that names the profile."""

DATABASE = "REPARAM_DATABASE"
"""The environment variable that says in which folder failures are kept."""

FOLDER = ".hypothesis/reparam"

ALWAYS = settings(
    deadline=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
        HealthCheck.nested_given,
        HealthCheck.filter_too_much,
    ],
)
"""No verdict from a clock: a busy machine fails nothing."""


@dataclass(frozen=True)
class Profile:
    """How a pass is checked.

    Attributes:
        max_examples: how many graphs are drawn.
        random: whether they are other ones at every run.
        kept: whether what failed is kept, and tried first; only where they are random.
        shrink: whether a graph that shows something is made smaller.
    """

    max_examples: int
    random: bool = False
    kept: bool = False
    shrink: bool = True

    def settings(self, max_examples: int | None = None, key: str = "") -> Settings:
        """What Hypothesis is told.

        Args:
            max_examples: how many graphs, where it is not the profile that says.
            key: of the failures that are kept.
        """
        phases = [Phase.explicit, Phase.reuse, Phase.generate]
        return settings(
            ALWAYS,
            max_examples=max_examples or self.max_examples,
            derandomize=not self.random,
            database=database(key) if self.kept else None,
            phases=[*phases, Phase.shrink] if self.shrink else phases,
        )


PROFILES = {PR: Profile(200), NIGHTLY: Profile(5000, random=True, kept=True)}


def database(key: str = "") -> ExampleDatabase:
    """Where the failures under a key are kept: a folder, which several processes may share.

    Hypothesis tells tests apart by their source, which is the same for all passes that are checked,
    and deletes what no longer fails: so each check needs a folder of its own.
    """
    folder = Path(os.environ.get(DATABASE, FOLDER))
    return DirectoryBasedExampleDatabase(folder / re.sub(r"[^\w-]", "_", key))


def profile(name: str | None = None) -> Profile:
    """The profile of that name, or the one that the environment names; else Hypothesis's own.

    Where that is none of ours, it is the one for pull requests.

    Raises:
        ReparamError: if there is none.
    """
    if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ReparamError(f"profile_name is {' or '.join(PROFILES)}, not {name!r}")
    current = settings.get_current_profile_name()
    name = name or os.environ.get(VARIABLE) or (current if current in PROFILES else PR)
    if name not in PROFILES:
        raise ReparamError(f"no profile is named {name!r}; there are {' and '.join(PROFILES)}")
    return PROFILES[name]


def register() -> None:
    """Make the profiles known to Hypothesis, for tests of a user's own that draw graphs."""
    for name, chosen in PROFILES.items():
        settings.register_profile(name, chosen.settings())


def sample(
    strategy: st.SearchStrategy[Graph], count: int, *, seed: int | None = None
) -> list[Graph]:
    """So many graphs, the same for the same seed, and at every run where there is none.

    Fewer if the strategy has no more.
    """
    found: list[Graph] = []

    def keep(graph: Graph) -> None:
        found.append(graph)

    test = hypothesis.given(strategy)(keep)
    told = settings(
        ALWAYS,
        max_examples=count,
        derandomize=seed is None,
        database=None,
        phases=[Phase.generate],
    )
    told(test if seed is None else hypothesis.seed(seed)(test))()
    return found
