"""The tests, and what checks annotations while they run (see addopts in pyproject.toml)."""

from typing import Any


def check_annotations(function: Any) -> Any:
    """As beartype, but an int passes for a float, as it does for type checkers (PEP 484)."""
    from beartype import BeartypeConf, beartype

    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
