"""The original networks by their figures: weights under the original names, input, logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.vectors.fill import fill, image

HERE = Path(__file__).parent


def summary(name: str) -> dict[str, Any]:
    """The `resolution`, the number of `parameters` and more of the original `name`."""
    return json.loads((HERE / "summary.json").read_text())[name]


def state_dict(name: str) -> dict[str, Tensor]:
    """The original's state dict, in float64."""
    keys = json.loads((HERE / "keys" / f"{name}.json").read_text())
    return {key: torch.from_numpy(np.asarray(fill(key, tuple(shape)))) for key, shape in keys}


def inputs(name: str) -> Tensor:
    """The input `(1, 3, resolution, resolution)`, in float64, that `logits` belongs to."""
    return torch.from_numpy(image(name, summary(name)["resolution"]))


def logits(name: str) -> Tensor:
    """What the original network computes in eval mode: `(1, 1000)`, in float64."""
    return torch.from_numpy(np.load(HERE / f"{name}.npy"))
