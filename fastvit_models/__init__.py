"""Vision backbones made of re-parameterizable blocks, each defined once, in training form."""

from fastvit_models.checkpoint import load_checkpoint
from fastvit_models.errors import CheckpointError, ModelOptionError, UnknownModelError
from fastvit_models.models import MODELS, create_model, list_models

__all__ = [
    "MODELS",
    "CheckpointError",
    "ModelOptionError",
    "UnknownModelError",
    "create_model",
    "list_models",
    "load_checkpoint",
]
