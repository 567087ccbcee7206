"""What `reparam check-pass` does."""

from dataclasses import dataclass
from typing import Any

from reparam.errors import SourceError
from reparam.sources import find
from reparam.testing.check_pass import check_pass
from reparam.testing.failures import CheckFailed


@dataclass(frozen=True)
class Verdict:
    """What came of checking a pass.

    Attributes:
        right: whether nothing was found.
        text: how often it fired and what was checked, or what is wrong, in one sentence.
        program: that shows what is wrong, if there is one.
        nodes: how many steps the model in that program has.
    """

    right: bool
    text: str
    program: str = ""
    nodes: int = 0


def checked(
    name: str,
    max_examples: int | None,
    min_fired: int | None,
    seed: int | None,
    blocks: list[str],
) -> Verdict:
    """Check the pass that `package.module:name` names; a module is looked for here first.

    Raises:
        SourceError: if there is no such pass or block.
        PassError: if it is no pass.
    """
    rule = _found(name)
    own = [_found(block) for block in blocks]
    try:
        found = check_pass(
            rule, max_examples=max_examples, min_fired=min_fired, seed=seed, blocks=own
        )
    except CheckFailed as failed:
        return Verdict(False, failed.finding, failed.program, failed.nodes)
    return Verdict(True, str(found))


def _found(name: str) -> Any:
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise SourceError(f"{name!r} is not of the form package.module:name")
    return find(module, path)
