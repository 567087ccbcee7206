"""Build a model from the name that the command line is given."""

import difflib
import functools
import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from reparam.devices import CPU
from reparam.errors import MissingExtraError, SourceError
from reparam.pipelines import describe, load, load_module

GROUP = "reparam.models"
"""The entry point group in which a distribution registers a mapping of names to factories."""

INPUT_SIZE = (3, 256, 256)
"""Channels, height and width for a model that does not say what it takes."""

KINDS = "a registered name, timm:NAME, module:factory or a file that ends in .onnx"


@dataclass(frozen=True)
class Source:
    """A model and what it is run on.

    Attributes:
        name: as it was given.
        model: in evaluation mode.
        example_input: `(1, channels, height, width)`, or as it was asked for.
        random_weights: whether the model is as it was initialised: known for registered models
            and timm's; a factory of the user's own may well load weights.
    """

    name: str
    model: nn.Module
    example_input: Tensor
    random_weights: bool


@dataclass(frozen=True)
class RegisteredModel:
    """A model that an entry point registers.

    Attributes:
        factory: takes no argument that it needs, and returns the model.
        module: that the entry point names. If it has a function `load_checkpoint(model, path)`,
            which raises ValueError where a file does not fit, that one loads `--checkpoint`.
        origin: the entry point and its distribution, for messages.
    """

    factory: Callable[..., nn.Module]
    module: ModuleType
    origin: str


def is_onnx(source: str) -> bool:
    """Whether a source is the name of an ONNX file, which there is no model to build from."""
    return source.lower().endswith(".onnx")


def resolve(
    source: str, *, checkpoint: Path | None = None, input_size: tuple[int, ...] | None = None
) -> Source:
    """Build the model of that name and an input that it takes.

    Args:
        source: a registered name; `timm:NAME`; or `module:factory`, of a function or class that
            is called without arguments, the module being looked for in the current folder first.
        checkpoint: a file of weights, for a registered model or one of timm's.
        input_size: of one input, without the batch; the model's own if None.

    Raises:
        SourceError: if there is no such model, or it cannot be built, loaded or run.
        MissingExtraError: if it needs timm, which is not installed.
    """
    if checkpoint is not None and not checkpoint.is_file():
        raise SourceError(f"there is no checkpoint {checkpoint}")
    kind, colon, name = source.partition(":")
    if not colon:
        model = _build_registered(source, checkpoint)
    elif kind == "timm":
        model = _build_timm(name, checkpoint)
    elif checkpoint is not None:
        raise SourceError(f"a checkpoint can't be loaded into {source}; let the factory load it")
    else:
        model = _build_own(kind, name)
    model = model.eval()
    own = colon != "" and kind != "timm"
    example_input = _example_input(source, model, input_size)
    return Source(source, model, example_input, checkpoint is None and not own)


def registered_models() -> dict[str, RegisteredModel]:
    """Every model that an installed distribution registers, by its name.

    Raises:
        SourceError: if what a distribution registers cannot be loaded or is no mapping, or if
            two register the same name.
    """
    models: dict[str, RegisteredModel] = {}
    for entry_point in entry_points(group=GROUP):
        origin = describe(entry_point)
        module = load_module(entry_point, SourceError)
        found = load(entry_point, SourceError)
        if not isinstance(found, Mapping):
            raise SourceError(f"{origin} is no mapping of names to factories")
        for name, factory in cast("Mapping[str, Callable[..., nn.Module]]", found).items():
            if name in models:
                raise SourceError(
                    f"two models are named {name!r}, in {models[name].origin} and in {origin}; "
                    "uninstall one of these distributions"
                )
            models[name] = RegisteredModel(factory, module, origin)
    return models


def _build_registered(name: str, checkpoint: Path | None) -> nn.Module:
    models = registered_models()
    if name not in models:
        hint = _suggestion(name, models) or f"; SOURCE is {KINDS}"
        raise SourceError(f"no model is named {name!r}{hint}")
    registered = models[name]
    model = _call(registered.factory, name)
    if checkpoint is not None:
        load_checkpoint = getattr(registered.module, "load_checkpoint", None)
        if load_checkpoint is None:
            raise SourceError(f"{registered.origin} has no load_checkpoint, so {name} takes none")
        _load(load_checkpoint, model, checkpoint)
    return model


def _build_timm(name: str, checkpoint: Path | None) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "timm", "timm") from error
    except Exception as error:
        hint = "; is torchvision the build for this torch?" if "torchvision" in str(error) else ""
        raise SourceError(f"timm can't be imported: {_sentence(error)}{hint}") from error
    if not timm.is_model(name):
        raise SourceError(f"timm has no model {name!r}{_suggestion(name, timm.list_models())}")
    model = _call(functools.partial(timm.create_model, name, pretrained=False), f"timm:{name}")
    if checkpoint is not None:
        load_checkpoint = importlib.import_module("timm.models").load_checkpoint
        _load(functools.partial(load_checkpoint, weights_only=True), model, checkpoint)
    return model


def _build_own(module_name: str, path: str) -> nn.Module:
    """Call a factory of the user's."""
    source, factory = f"{module_name}:{path}", find(module_name, path)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise SourceError(
            f"{source} is a {type(factory).__name__}, not a function or class that builds a model"
        )
    return _call(factory, source)


def find(module_name: str, path: str) -> object:
    """Something of the user's, its module found as `python -m` would find it.

    Raises:
        SourceError: if the module can't be imported, or does not have it.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises, or a script's exit
        raise SourceError(
            f"the module {module_name!r} can't be imported: {_sentence(error)}"
        ) from error
    try:
        return functools.reduce(getattr, path.split("."), module)
    except AttributeError as error:
        close = _suggestion(path, vars(module))
        raise SourceError(f"the module {module_name!r} has no {path!r}{close}") from error


def _call(factory: Callable[[], object], name: str) -> nn.Module:
    try:
        model = factory()
    except (Exception, SystemExit) as error:
        raise SourceError(f"{name} can't be built: {_sentence(error)}") from error
    if not isinstance(model, nn.Module):
        raise SourceError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _load(
    load_checkpoint: Callable[[nn.Module, str], object], model: nn.Module, path: Path
) -> None:
    try:
        load_checkpoint(model, os.fspath(path))
    except ValueError as error:
        raise SourceError(f"the checkpoint was not loaded: {error}") from error
    except Exception as error:
        raise SourceError(f"{path} was not loaded: {_sentence(error)}") from error


def _example_input(name: str, model: nn.Module, size: tuple[int, ...] | None) -> Tensor:
    """One random input, the same each time, that the model was seen to take."""
    if size is None:
        config: object = getattr(model, "default_cfg", None)
        declared = (
            cast("Mapping[str, object]", config).get("input_size")
            if isinstance(config, Mapping)
            else None
        )
        size = cast("tuple[int, ...]", declared or INPUT_SIZE)
    like = next(
        (p for p in model.parameters() if p.is_floating_point()), torch.empty(0, device=CPU)
    )
    generator = torch.Generator().manual_seed(0)
    try:
        example = torch.randn(1, *size, generator=generator, device=CPU).to(like)
        with torch.no_grad():
            model(example)
    except Exception as error:
        shape = "×".join(map(str, (1, *size)))
        raise SourceError(
            f"{name} can't take an input of size {shape}: {_sentence(error)}; "
            "choose another with --input-size"
        ) from error
    return example


def _suggestion(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), names)
    return f": did you mean {' or '.join(close)}?" if close else ""


def _sentence(error: BaseException) -> str:
    """An exception in one line, cut where it goes on and on."""
    text = textwrap.shorten(str(error), 300, placeholder=" …").rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
