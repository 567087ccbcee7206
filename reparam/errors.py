"""What can go wrong, each with a type of its own and one clear sentence."""


class ReparamError(Exception):
    """The base of every error that this library raises on purpose."""


class TrainingModeError(ReparamError):
    """The model is in training mode, in which a batch norm is not a linear map."""


class CaptureError(ReparamError):
    """The model could not be turned into a graph."""


class UntracedError(CaptureError):
    """A forward can't be traced.

    Attributes:
        reason: file, line and why.
    """

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} can't be traced: {reason}")
        self.reason = reason


class VerificationError(ReparamError):
    """Two models that should compute the same function do not."""


class PassError(ReparamError):
    """A pass, or a pipeline of passes, is not one, or could not be loaded."""


class SourceError(ReparamError):
    """A model could not be found or built from the name that was given."""


class ExportError(ReparamError):
    """A file could not be written, or the file does not compute what the model computes."""


class OnnxError(ReparamError):
    """An ONNX file could not be read, or is none, or can't be compiled."""


class MissingExtraError(ReparamError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"the module {module!r} is not installed; "
            f"install it with: pip install 'reparam[{extra}]'"
        )


class Declined(Exception):  # noqa: N818 - no error: it becomes a remark
    """A rewrite matched but is not done, with the reason. Not an error: it becomes a remark.

    Attributes:
        reason: why, as a clause that can follow "because".
        blocker: name of the call that stands in the way, if there is one.
    """

    def __init__(self, reason: str, blocker: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.blocker = blocker


class Rejected(Declined):
    """A rewrite was wrong, or the pass failed. It is told of whatever becomes of the call."""


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its type if it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def require(condition: bool, reason: str, blocker: str | None = None) -> None:
    """Decline the law or the pass at hand, with this reason, unless the condition holds.

    Raises:
        Declined: if it does not hold.
    """
    if not condition:
        raise Declined(reason, blocker)
