"""Deterministic weights and inputs, so that a parity test needs no checkpoint file.

Every tensor of an upstream state dict is drawn from its own *name*, so two implementations that
agree on the mapping between their parameter names hold the same weights. Nothing here depends on
torch.
"""

import zlib

import numpy as np


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of the upstream tensor `name` (float64; int64 zeros for `num_batches_tracked`)."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    if leaf == "running_var":
        return random.uniform(0.5, 1.5, shape)
    if leaf == "running_mean":
        return 0.1 * random.standard_normal(shape)
    if leaf.startswith("layer_scale"):
        return random.uniform(0.1, 0.3, shape)
    if leaf == "bias":
        return 0.1 * random.standard_normal(shape)
    if len(shape) == 1:
        return random.uniform(0.5, 1.5, shape)
    return random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))


def image(model: str, resolution: int) -> np.ndarray:
    """The float64 input (1, 3, resolution, resolution) whose logits `<model>.npy` holds."""
    random = np.random.RandomState(zlib.crc32(model.encode()))
    return random.standard_normal((1, 3, resolution, resolution))
