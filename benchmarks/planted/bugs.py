"""The planted bugs: small replacements in one source file each, kept in the TOML files beside."""

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

Kind = Literal["functional", "other"]


@dataclass(frozen=True)
class Bug:
    """One wrong line.

    Attributes:
        id: a short name, unique among all.
        file: the source file, from the root of the project.
        what: what is wrong, in one line.
        kind: "functional" if some legal model computes something else through it; "other" if it is
            about what a proof says nothing of: memory, writes, dtypes, rounding.
        passes: the default passes through which it shows, the likeliest first.
        old: a text that stands once in the file.
        new: what stands there instead.
    """

    id: str
    file: str
    what: str
    kind: Kind
    passes: tuple[str, ...]
    old: str
    new: str

    def planted(self, source: str) -> str:
        """The source with the bug in it.

        Raises:
            ValueError: if its text does not stand there just once, or nothing changes.
        """
        found = source.count(self.old)
        if found != 1 or self.old == self.new:
            raise ValueError(f"{self.id}: its text stands {found} times in {self.file}")
        return source.replace(self.old, self.new)

    @property
    def key(self) -> str:
        """What a result is kept by."""
        text = repr((self.file, self.old, self.new, self.passes))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def load() -> tuple[Bug, ...]:
    """All bugs, file by file.

    Raises:
        ValueError: if two have one name.
    """
    bugs: list[Bug] = []
    for page in sorted(Path(__file__).parent.glob("*.toml")):
        for section in _sections(tomllib.loads(page.read_text())):
            for entry in section["bug"]:
                kind = entry.get("kind", "functional")
                passes = tuple(entry.get("passes", section.get("passes", ())))
                texts = (entry["old"], entry["new"])
                bugs.append(Bug(entry["id"], section["file"], entry["what"], kind, passes, *texts))
    names = [bug.id for bug in bugs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"two bugs are called {twice}")
    return tuple(bugs)


def _sections(page: dict[str, Any]) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", page["source"])
