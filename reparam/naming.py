"""The names of what rewrites make, and what remarks say of them."""

from reparam.graph import Call
from reparam.operators import ConvTranspose, Norm
from reparam.values import BatchNorm, Conv

HOLDERS = (Conv, BatchNorm, Norm, ConvTranspose)
"""The values that hold weights of layers."""


def _holders(calls: list[Call]) -> list[Call]:
    """The calls that hold weights."""
    return [call for call in calls if isinstance(call.value, HOLDERS)]


def _layers(calls: list[Call]) -> list[Call]:
    """The calls that hold weights and stood as modules in the model, or are new."""
    return [call for call in _holders(calls) if call.node.meta.get("module", True)]


def layer_name(root: Call, gone: list[Call]) -> str:
    """A name for what replaces some calls.

    It is that of the one convolution among them, whose weights it continues; of several, what the
    names of all that held weights begin with.
    """
    holders = _layers(gone)
    convs = [call for call in holders if isinstance(call.value, Conv)]
    if len(convs) == 1:
        return convs[0].name
    shared: list[str] = []
    for parts in zip(*(call.name.split(".") for call in holders), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or next((call.name for call in holders), root.name)


def layer_names(gone: list[Call]) -> list[str]:
    """The names of the convolutions among calls, which as many new layers go by."""
    return [layer.name for layer in _layers(gone) if isinstance(layer.value, Conv)]


def effect(root: Call, name: str, gone: list[Call]) -> str:
    """What a rewrite did, by the names of what it took in."""
    held = [call.name for call in _holders(gone)]
    others = dict.fromkeys([*held, *(call.name for call in gone)])
    taken = [other for other in others if other != name]
    if len(gone) == 1:
        return f"{root.name} is gone"
    more = f" and {len(taken) - 3} more" if len(taken) > 3 else ""
    return f"{', '.join(taken[:3])}{more} into {name}"
