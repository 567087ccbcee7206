"""How many graphs are drawn, and which: the same at every run, or other ones each time."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase

from reparam.errors import ReparamError

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
    """

    max_examples: int
    random: bool = False

    def settings(self, max_examples: int | None = None, *, shrink: bool = True) -> Settings:
        """What Hypothesis is told."""
        phases = [Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if shrink else [])]
        return settings(
            ALWAYS,
            max_examples=max_examples or self.max_examples,
            derandomize=not self.random,
            database=database() if self.random else None,
            phases=phases,
        )


PROFILES = {PR: Profile(200), NIGHTLY: Profile(5000, random=True)}


def database() -> ExampleDatabase:
    """Where failures are kept: a folder, which several processes may share."""
    return DirectoryBasedExampleDatabase(Path(os.environ.get(DATABASE, FOLDER)))


def profile(name: str | None = None) -> Profile:
    """The profile of that name, or the one that the environment names; else Hypothesis's own.

    Where that is none of ours, it is the one for pull requests.

    Raises:
        ReparamError: if there is none.
    """
    current = settings.get_current_profile_name()
    name = name or os.environ.get(VARIABLE) or (current if current in PROFILES else PR)
    if name not in PROFILES:
        raise ReparamError(f"no profile is named {name!r}; there are {' and '.join(PROFILES)}")
    return PROFILES[name]


def register() -> None:
    """Make the profiles known to Hypothesis, for tests of a user's own that draw graphs."""
    for name, chosen in PROFILES.items():
        settings.register_profile(name, chosen.settings())
