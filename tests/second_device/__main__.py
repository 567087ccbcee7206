"""Compile generated graphs on another device, and compare with what the CPU makes of them.

    python -m tests.second_device [--device cuda]

Without a device, it is the one of `device.cpp`, which needs a C++ compiler and ninja.
"""

import copy
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import passes
import reparam
from reparam.testing import graphs
from reparam.testing.profiles import sample

SECOND = "second"
"""What the device of `device.cpp` is called."""


def register(folder: Path) -> None:
    """Compile the device and register it, with what torch asks of the module of one."""
    from torch.utils import backend_registration as backend
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_name("device.cpp")
    folder.mkdir(parents=True, exist_ok=True)
    load("second_device", [str(source)], build_directory=str(folder)).register_hooks()
    backend.rename_privateuse1_backend(SECOND)
    module: Any = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        manual_seed_all=lambda _: None,
        _is_in_bad_fork=lambda: False,
    )
    torch._register_device_module(SECOND, module)
    backend.generate_methods_for_privateuse1_backend(for_storage=True)


class Numbers(nn.Module):
    """Numbers on the CPU, which go with tensors on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu() * torch.tensor(0.5) + torch.tensor(0.25)


class Position(nn.Module):
    """A layer of a constant, and a table that is moved to where the input is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.position = nn.Parameter(torch.randn(4, 4))
        self.table = torch.randn(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x + self.norm(self.position), self.table.to(x.device))


def compared(build: Callable[[], nn.Module], example: Any, device: str) -> str | None:
    """Compile a model on both devices, each against itself; in what the results differ."""
    plain = reparam.compile(build(), example, passes=passes.DEFAULT)
    moved = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), example)
    fused = reparam.compile(build().to(device), moved, passes=passes.DEFAULT)
    if str(getattr(fused, "code", "")) != str(getattr(plain, "code", "")):
        missed = {str(each) for each in reparam.report(plain).missed}
        more = [str(each) for each in reparam.report(fused).missed if str(each) not in missed]
        return f"other code; {more}"
    state, parameters = plain.state_dict(), dict(fused.named_parameters())
    for name, tensor in fused.state_dict().items():
        if tensor.device.type != device and name in parameters:
            return f"{name} is on {tensor.device}"
        if not torch.allclose(tensor.cpu(), state[name], rtol=1e-5, atol=1e-6, equal_nan=True):
            return f"{name} differs"
    return None


def main(
    device: Annotated[str, typer.Option(help="The device.")] = SECOND,
    count: Annotated[int, typer.Option(help="How many graphs.")] = 60,
    seed: Annotated[int, typer.Option(help="Which graphs.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where device.cpp is built.")] = Path(
        "build/second_device"
    ),
) -> None:
    """Compare, and exit with 1 if anything differs."""
    torch.set_num_threads(1)
    if device == SECOND:
        register(folder.absolute())
    found = Counter[str]()
    image, tokens = torch.randn(2, 4, 7, 6), torch.randn(2, 4, 4)
    own = [(Numbers().eval(), image), (Position().eval(), tokens)]
    models = [(partial(copy.deepcopy, model), (example,), model) for model, example in own]
    drawn = sample(graphs(), count, seed=seed)
    models += [(graph.build, graph.example(), graph.source) for graph in drawn]
    for build, example, source in models:
        how = compared(build, example, device)
        if how is not None:
            print(f"{how}\n{source}")
        found["same" if how is None else "different"] += 1
    print(dict(found))
    sys.exit(found["different"] > 0)


if __name__ == "__main__":
    typer.run(main)
