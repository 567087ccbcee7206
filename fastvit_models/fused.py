"""Checkpoints of the fused form, for models that were compiled.

What the originals and timm publish as fused has each block's convolution under a name of its own,
and FastViT's still has batch norms and layer scales, which its authors do not fold.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx

from fastvit_models.fastvit_blocks import HEAD_WIDTH

MARKS = ("reparam_conv.", "lkb_reparam.", "rbr_reparam.")
"""What the names of released fused checkpoints hold, FastViT's, MobileOne's and RepVGG's."""

SCALED = {"layer_scale": "ffn.fc2", "layer_scale_1": "token_mixer.proj", "layer_scale_2": "ffn.fc2"}
"""The layer scales of a block, and the layers that they scale."""

QUERY_SCALE = HEAD_WIDTH**-0.5
"""What FastViT's attention multiplies queries by."""

EPSILON = 1e-5
"""Of every batch norm here, and torch's default."""


def marked(keys: Iterable[str]) -> str | None:
    """The first name that only a fused checkpoint has."""
    return next((key for key in keys if any(mark in key for mark in MARKS)), None)


def normalised(keys: Iterable[str]) -> bool:
    """Whether there are batch norms among these."""
    return any(key.endswith("running_var") for key in keys)


def fitted(tensors: Mapping[str, Tensor], model: fx.GraphModule) -> list[tuple[str, Tensor]]:
    """The tensors of a fused checkpoint under the names of a compiled model.

    One of another name goes where just one place is left below the module that it is of; if there
    is none, it keeps its name. What a compiled model like this one has saved is as it is; so is
    what one of other passes has saved under the same names, whose weights may mean something else.
    """
    if tensors.keys() == model.state_dict().keys():
        return [*tensors.items()]
    # What the compiler took into the rows of the queries, no node multiplies by any more.
    multiplied = any(QUERY_SCALE in node.args for node in model.graph.nodes)
    tensors = _folded(tensors, 1.0 if multiplied else QUERY_SCALE)
    left = [name for name in model.state_dict() if name not in tensors]
    return [(_place(key, left) or key, tensor) for key, tensor in tensors.items()]


def _place(key: str, left: list[str]) -> str | None:
    module, _, kind = key.rpartition(".")
    module = re.sub(r"\.(reparam_conv|rbr_reparam)$", "", module)
    places = [name for name in left if name.startswith(module + ".") and name.endswith("." + kind)]
    return places[0] if len(places) == 1 else None


def _folded(tensors: Mapping[str, Tensor], query_scale: float) -> dict[str, Tensor]:
    """The same, what FastViT's release does not fold taken in by the layer that it is beside."""
    folded = dict(tensors)
    for key in tensors:
        block, _, name = key.rpartition(".")
        if name == "layer_scale_1" and f"{block}.norm.running_var" not in tensors:
            continue  # half folded by other means: what of its attention is, nothing tells
        if name in SCALED and f"{block}.{SCALED[name]}.weight" in folded:
            _scale(folded, f"{block}.{SCALED[name]}", folded.pop(key).double().flatten())
        elif name == "running_var":
            _fold_norm(folded, block, query_scale)
    return folded


def _fold_norm(tensors: dict[str, Tensor], norm: str, query_scale: float) -> None:
    """Fold a batch norm into the convolution before it, or attention's into its first layer."""
    owner, _, name = norm.rpartition(".")
    layer = f"{owner}.conv" if name == "bn" else f"{owner}.token_mixer.qkv"
    if name not in ("bn", "norm") or f"{layer}.weight" not in tensors:
        return
    tensors.pop(f"{norm}.num_batches_tracked", None)
    gamma, beta, mean, variance = (
        tensors.pop(f"{norm}.{part}").double()
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / torch.sqrt(variance + EPSILON)
    shift = beta - mean * scale
    if name == "bn":
        _scale(tensors, layer, scale)
        tensors[f"{layer}.bias"] = tensors.get(f"{layer}.bias", 0) + shift
    else:
        weight = tensors[f"{layer}.weight"].double()
        tensors[f"{layer}.weight"], tensors[f"{layer}.bias"] = weight * scale, weight @ shift
        queries = weight.new_ones(len(weight))
        queries[: len(weight) // 3] = query_scale
        _scale(tensors, layer, queries)


def _scale(tensors: dict[str, Tensor], layer: str, scale: Tensor) -> None:
    """Scale the rows of a layer."""
    for part in ("weight", "bias"):
        if (tensor := tensors.get(f"{layer}.{part}")) is not None:
            rows = scale.reshape(-1, *(1,) * (tensor.ndim - 1))
            tensors[f"{layer}.{part}"] = tensor.double() * rows
