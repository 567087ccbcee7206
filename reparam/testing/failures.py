"""What it means that a pass or a model does not pass."""

from reparam.errors import ReparamError
from reparam.report import Remark

WRONG = (
    "its replacement differs",
    "its replacement fails",
    "its proof fails",
    "the pass failed with",
    "rolled back",
)
"""How the messages begin of what a check refused, and of what a pass raised."""

UNCHECKED = "rolled back: it can't be checked"
"""How one begins that says nothing about the pass."""


def went_wrong(remark: Remark) -> bool:
    """Whether a remark is of a pass that was wrong or failed, and did not decline."""
    message = remark.message
    told = remark.kind == "missed" and message.startswith(WRONG)
    return told and not message.startswith(UNCHECKED)


class CheckFailed(ReparamError, AssertionError):  # noqa: N818 - a verdict, as an assertion's is
    """A pass, or a compiled model, is not what it should be.

    Attributes:
        finding: what is wrong, in one sentence.
        program: a short program that shows it, if there is one.
        nodes: how many steps the model in that program has.
    """

    def __init__(self, finding: str, program: str = "", nodes: int = 0) -> None:
        """Put the finding first, then the program."""
        text = f"{finding}\n\nThis program shows it:\n\n{program}" if program else finding
        super().__init__(text)
        self.finding, self.program, self.nodes = finding, program, nodes
