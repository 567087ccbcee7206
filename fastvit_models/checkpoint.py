"""Load a checkpoint whole, or not at all."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from fastvit_models import fused
from fastvit_models.checkpoint_file import read_state_dict
from fastvit_models.errors import CheckpointError

WRAPPERS = r"^(?:module\.|_orig_mod\.)+"
"""What DistributedDataParallel and torch.compile put in front of a name."""

BACKBONE = "backbone."
"""What detection and segmentation frameworks put in front of the names of a model like ours."""

AVERAGED = "n_averaged"
"""What `torch.optim.swa_utils.AveragedModel` keeps beside a model: how many it is the mean of."""

LISTED = 5
"""How many of the offending tensors a message names."""


@runtime_checkable
class ReleasedElsewhere(Protocol):
    """A model whose original implementation has released weights, under other names."""

    def convert_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """The model's own name of each tensor; a name that is its own already stays as it is."""
        ...


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy every tensor of a checkpoint into `model`, in the model's dtype and on its device.

    The file (safetensors, or a pickle) holds a state dict under the names of this package or of the
    released checkpoints, at its top or nested under `state_dict_ema`, `model_ema`, `state_dict` or
    `model`. Of the file of a detector or a segmenter, the backbone is meant; into what is wrapped
    for several processors or by `torch.compile`, the model inside.
    Only `num_batches_tracked` may be missing. A file of the training form goes into the model, one
    of the fused form into what the compiler made of it. What a compiled model has saved is for
    models that the same passes compiled: others may have the same names and shapes for weights that
    mean something else, which nothing in the file tells.

    Warns of NaN, infinity and variances below 0, and loads them.
    Raises `CheckpointError`, and leaves the model as it was, if the file cannot be read, is
    damaged, holds more than tensors, is of the other form, or if a tensor is missing, left over or
    of another shape than the model's.
    """
    path, model = Path(path), _unwrapped(model)
    released = read_state_dict(path)
    mark = fused.marked(released)
    if mark and not isinstance(model, fx.GraphModule):
        raise CheckpointError(
            f"{path} is the fused form of a model ({mark}), which cannot be taken apart again: "
            "compile the model and load it into the result, or fetch the training form"
        )
    tensors: Mapping[str, Tensor] = _rename(model, released, path)
    targets: dict[str, Tensor] = model.state_dict()
    if isinstance(model, fx.GraphModule):
        if fused.normalised(tensors) and not mark and not fused.normalised(targets):
            raise CheckpointError(
                f"{path} is the training form of a model, and this one is compiled: load it before"
            )
        try:
            tensors = _unique(fused.fitted(tensors, model), path)
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} holds a batch norm that does not fit the layer beside it: fetch it again"
            ) from error
    _check_fit(tensors, targets, path, type(model).__name__)
    with torch.no_grad():
        # All converted before any is copied: a conversion that fails leaves the model as it was.
        try:
            staged = {
                name: torch.empty_like(targets[name]).copy_(tensors[name]) for name in tensors
            }
        except RuntimeError as error:
            raise CheckpointError(f"{path} holds no plain dense tensors: save such") from error
        lost = [n for n, value in staged.items() if _overflows(tensors[n], value)]
        if lost:
            raise CheckpointError(
                f"{path} holds numbers that {staged[lost[0]].dtype} has not, in {_listing(lost)}: "
                "load it into the model in float32; nothing was loaded"
            )
        if broken := [name for name, value in staged.items() if _is_broken(name, value)]:
            warnings.warn(
                f"{path} holds NaN, infinity or a variance below 0, in {_listing(broken)}: check "
                "the training that it is from; it is loaded all the same",
                stacklevel=2,
            )
        for name, value in staged.items():
            targets[name].copy_(value)


def rename_keys(keys: Iterable[str], rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each key under the name that the (pattern, replacement) rows give it, applied in order."""
    renamed: dict[str, str] = {}
    for key in keys:
        name = key
        for pattern, replacement in rows:
            name = re.sub(pattern, replacement, name)
        renamed[key] = name
    return renamed


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what trains it on several processors, or of `torch.compile`."""
    while True:
        parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = getattr(model, "module" if parallel else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _rename(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors under the model's names."""
    bare = [(re.sub(WRAPPERS, "", key), value) for key, value in tensors.items()]
    if AVERAGED not in model.state_dict():
        bare = [(key, value) for key, value in bare if key != AVERAGED]
    if any(key.startswith(BACKBONE) for key, _ in bare):
        bare = [(key.removeprefix(BACKBONE), v) for key, v in bare if key.startswith(BACKBONE)]
    keys = [key for key, _ in bare]
    if isinstance(model, ReleasedElsewhere) and not isinstance(model, fx.GraphModule):
        own = model.convert_keys(keys)
    else:  # a compiled model has the rows, and no methods
        own = rename_keys(keys, getattr(model, "checkpoint_keys", ()))
    return _unique([(own[key], value) for key, value in bare], path)


def _unique(tensors: list[tuple[str, Tensor]], path: Path) -> dict[str, Tensor]:
    """The tensors by name, if none stands there twice."""
    twice = [name for name, count in Counter(name for name, _ in tensors).items() if count > 1]
    if twice:
        raise CheckpointError(
            f"{path} holds {_listing(twice)} more than once, under different names: keep one; "
            "nothing was loaded"
        )
    return dict(tensors)


def _overflows(tensor: Tensor, converted: Tensor) -> bool:
    """Whether numbers became too large for the model's dtype."""
    if not converted.is_floating_point() or bool(converted.isfinite().all()):
        return False
    return bool(tensor.double().isfinite().all())


def _is_broken(name: str, value: Tensor) -> bool:
    """Whether it holds what makes a model return NaN, as a training that diverged leaves it."""
    if not value.is_floating_point():
        return False
    negative = name.endswith("running_var") and bool((value < 0).any())
    return negative or not bool(value.isfinite().all())


def _is_whole(tensor: Tensor) -> bool:
    """Whether it holds integers alone, of whatever dtype."""
    try:
        return not tensor.is_complex() and bool((tensor.double() % 1 == 0).all())
    except RuntimeError:  # of a dtype that torch converts to no other
        return False


def _check_fit(
    tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], path: Path, model: str
) -> None:
    """Refuse a state dict that would leave a tensor of the model unset, or not be used whole."""
    shared = [name for name in targets if name in tensors]
    differences = {
        "missing": [
            name
            for name in targets
            if name not in tensors and not name.endswith("num_batches_tracked")
        ],
        "unexpected": sorted(name for name in tensors if name not in targets),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} for {tuple(targets[name].shape)}"
            for name in shared
            if tensors[name].shape != targets[name].shape
        ],
        "not of floating point": [
            f"{name} ({tensors[name].dtype})"
            for name in shared
            if targets[name].is_floating_point() and not tensors[name].is_floating_point()
        ],
        "not of integers": [
            name
            for name in shared
            if not (targets[name].is_floating_point() or targets[name].is_complex())
            and not _is_whole(tensors[name])
        ],
    }
    found = [
        f"{len(names)} {what}: {_listing(names)}" for what, names in differences.items() if names
    ]
    if found:
        other = "create the variant, with the options, that it was saved from"
        if fused.normalised(targets) and not fused.normalised(tensors):
            other = "it has no batch norm: if it is the fused form, compile the model first"
        if any(re.match(WRAPPERS, name) for name in targets):
            other = "this is a wrapper: load it into the model inside"
        raise CheckpointError(
            f"{path} does not fit this {model}: {'; '.join(found)}; {other}; nothing was loaded"
        )
    if any(target.is_meta for target in targets.values()):
        raise CheckpointError(
            f"{path} cannot be loaded into a model on the meta device: call "
            "model.to_empty(device='cpu') first"
        )


def _listing(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
