"""The errors that this package raises: each says in one sentence what, where and what to do."""


class UnknownModelError(ValueError):
    """No model of this package has the name that was asked for."""


class ModelOptionError(ValueError):
    """An option that the model does not take, or a value that it cannot have."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model; nothing of it was loaded."""
