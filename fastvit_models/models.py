"""Every model by its name."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from fastvit_models import fastvit, mobileone, repvgg, repvit
from fastvit_models.errors import ModelOptionError, UnknownModelError

FAMILIES = (
    (fastvit.create_fastvit, fastvit.VARIANTS),
    (repvit.create_repvit, repvit.VARIANTS),
    (mobileone.create_mobileone, mobileone.VARIANTS),
    (repvgg.create_repvgg, repvgg.VARIANTS),
)

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    name: functools.partial(create, config)
    for create, variants in FAMILIES
    for name, config in variants.items()
}
"""Name → factory, which takes the model's options by keyword."""


def create_model(name: str, **options: object) -> nn.Module:
    """Build the model of that name, with fresh weights, in train mode.

    All take `num_classes` (1000), `in_channels` (3) and `features_only` (False); FastViT and RepViT
    `drop_path_rate`, RepViT `distillation`: see `fastvit_models.repvit.create_repvit` and its like.

    Raises `UnknownModelError`, which suggests the nearest names, and `ModelOptionError`.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name.lower(), MODELS)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UnknownModelError(f"no model is named {name!r}: {hint}list_models() lists them all")
    factory = MODELS[name]
    known = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in known:
            raise ModelOptionError(f"{name} takes no option {option!r}, only {', '.join(known)}")
    return factory(**options)


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell-style pattern such as `"*_sa*"`, by family and then by size."""
    return [name for name in MODELS if fnmatchcase(name, pattern)]
