"""Every model by its name."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import cast

from torch import nn

from fastvit_models import fastvit, hub, mobileone, repvgg, repvit
from fastvit_models.backbone import Classifier
from fastvit_models.checkpoint import load_checkpoint
from fastvit_models.errors import ModelOptionError, UnknownModelError
from fastvit_models.options import check_options

FAMILIES = (
    (fastvit.create_fastvit, fastvit.VARIANTS),
    (repvit.create_repvit, repvit.VARIANTS),
    (mobileone.create_mobileone, mobileone.VARIANTS),
    (repvgg.create_repvgg, repvgg.VARIANTS),
)

CLASSES, CHANNELS = 1000, 3
"""Of the published weights."""

Factory = Callable[..., nn.Module]

MODELS: Mapping[str, Factory] = {
    name: functools.partial(create, config)
    for create, variants in FAMILIES
    for name, config in variants.items()
}
"""Name → factory, which takes the model's options by keyword."""


def create_model(name: str, *, pretrained: bool = False, **options: object) -> nn.Module:
    """Build the model of that name, in train mode, with fresh weights or published ones.

    With `pretrained`, those of ImageNet-1k are fetched from the Hugging Face Hub. The head is
    theirs for 1000 classes, and fresh for any other number; of a feature extractor, only the batch
    norms behind FastViT's stages are fresh. RepViT's come with their distilled head.

    All take `num_classes` (1000), `in_channels` (3) and `features_only` (False); FastViT and RepViT
    `drop_path_rate`, RepViT `distillation`: see `fastvit_models.repvit.create_repvit` and its like.

    Raises `UnknownModelError`, which suggests the nearest names, `ModelOptionError`, and
    `CheckpointError` for weights that can't be fetched.
    """
    if name not in list_models():  # a list, which any object can be looked up in
        close = difflib.get_close_matches(str(name).lower(), MODELS)
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
    return _pretrained(name, factory, options) if pretrained else factory(**options)


def _pretrained(name: str, factory: Factory, options: dict[str, object]) -> nn.Module:
    """The model with published weights, as far as they fit what the options ask for."""
    if options.get("in_channels", CHANNELS) != CHANNELS:
        raise ModelOptionError(
            f"pretrained weights take {CHANNELS} channels; leave in_channels out"
        )
    if name.startswith("repvit") and not options.setdefault("distillation", True):
        raise ModelOptionError("pretrained weights have a distilled head: leave distillation out")
    classes, features_only = (
        options.pop("num_classes", CLASSES),
        options.pop("features_only", False),
    )
    check_options(num_classes=classes)  # before anything is fetched
    model = cast("Classifier", factory(**options))
    load_checkpoint(model, hub.fetch(name))
    if features_only:
        extractor = factory(features_only=True, **options)
        own = extractor.state_dict().keys()
        shared = {key: tensor for key, tensor in model.state_dict().items() if key in own}
        extractor.load_state_dict(shared, strict=False)
        return extractor
    if classes != CLASSES:
        model.reset_classifier(cast("int", classes))
    return model


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell-style pattern such as `"*_sa*"`, by family and then by size."""
    return [name for name in MODELS if fnmatchcase(name, pattern)]
