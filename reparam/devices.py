"""Numbers are folded and checked in the memory of the CPU, whatever device a model is on.

Not every device has float64 (Apple's has not), and what is random is drawn on the CPU. The weights
of the result go to the device of those that they were folded from.
"""

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
"""To be said wherever a tensor is made: a user may have set another default."""

STAYS = ("cpu", "meta")
"""The devices whose tensors stay where they are; those on "meta" hold no numbers."""

V = TypeVar("V")


def on_cpu(tensor: Tensor) -> Tensor:
    """A tensor in the memory of the CPU: the same one, if it is there or nowhere."""
    return tensor if tensor.device.type in STAYS else tensor.detach().cpu()


def module_on_cpu(module: nn.Module) -> nn.Module:
    """A module, in place, with its tensors in the memory of the CPU."""
    held = (*module.parameters(), *module.buffers())
    return module.cpu() if any(tensor.device.type not in STAYS for tensor in held) else module


def held_on_cpu(value: V) -> V:
    """A dataclass with the tensors in its fields in the memory of the CPU."""
    held = {each.name: getattr(value, each.name) for each in fields(value)}  # type: ignore[arg-type]
    tensors = {name: tensor for name, tensor in held.items() if isinstance(tensor, Tensor)}
    moved = {name: on_cpu(t) for name, t in tensors.items() if t.device.type not in STAYS}
    return replace(value, **moved) if moved else value  # type: ignore[type-var]


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU, if it has none."""
    held = next((t for tensors in (module.parameters(), module.buffers()) for t in tensors), None)
    return CPU if held is None else held.device


def seed(number: int) -> None:
    """Seed the generators of all devices that there are.

    torch's own function writes down the stack for each kind of GPU that there is not, which takes
    longer than a small model does.
    """
    seeded: Any = torch if torch.accelerator.is_available() else torch.default_generator
    seeded.manual_seed(number)
