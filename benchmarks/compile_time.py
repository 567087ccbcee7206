"""How long reparam.compile takes, and how much memory, beside torch.fx.symbolic_trace.

    python -m tests.with_torchvision benchmarks/compile_time.py

It needs the extra `reparam[bench]`. What is compared takes turns in one process, and what counts is
the ratio within a turn, of processor time: the milliseconds are those of this machine. Memory is
the largest resident set of a process of its own, above what it was with the model loaded.
"""

import copy
import gc
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from timm.utils.model import reparameterize_model
from torch import Tensor, fx, nn

import fastvit_models
import reparam

TRACE = "torch.fx.symbolic_trace"
UNCHECKED = "reparam.compile, verify=False"
CHECKED = "reparam.compile"
TIMM = "timm, reparameterize_model of a copy"
NODES_PER_BLOCK = 8


class Block(nn.Module):
    """RepVGG's block: eight calls that become two."""

    def __init__(self, channels: int) -> None:
        """Make a block that keeps the number of channels."""
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to images, (batch, channels, height, width)."""
        wide, narrow, skip = self.norms
        return self.activation(wide(self.wide(x)) + narrow(self.narrow(x)) + skip(x))


def create_model(name: str) -> nn.Module:
    """A chain of so many nodes, a model of timm's (`timm:NAME`) or one of our own."""
    if name.isdigit():
        return nn.Sequential(*(Block(8) for _ in range(int(name) // NODES_PER_BLOCK))).eval()
    if name.startswith("timm:"):
        return timm.create_model(name.removeprefix("timm:")).eval()
    return fastvit_models.create_model(name).eval()


def candidates(name: str) -> dict[str, Callable[[], object]]:
    """What is timed, by what it is called in the table."""
    model = create_model(name)
    calls: dict[str, Callable[[], object]] = {
        TRACE: lambda: fx.symbolic_trace(model),
        UNCHECKED: lambda: reparam.compile(model, verify=False),
        CHECKED: lambda: reparam.compile(model),
    }
    if name.startswith("timm:"):
        calls[TIMM] = lambda: reparameterize_model(copy.deepcopy(model))
    return calls


def measure(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each call in each round, the first round left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            gc.collect()  # of what the one before has left
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in times.items()}


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_memory(name: str, verify: bool) -> tuple[float, float]:
    """Mebibytes of a model, and what compiling it takes at most, as a multiple of that."""
    torch.set_num_threads(1)
    reparam.compile(create_model("16"))  # imports and the like
    model = create_model(name)
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    before = resident()
    seen, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen[0] = max(seen[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    reparam.compile(model, verify=verify)
    done.set()
    watcher.join()
    return size / 2**20, (seen[0] - before) / size


def time_table(names: list[str], rounds: int) -> Table:
    """The time that each model takes."""
    columns = ("model", "what", "ms", "µs per node", "times a trace")
    table = Table(*columns, title=f"Processor time: medians of {rounds} rounds")
    for name in names:
        nodes = len(fx.symbolic_trace(create_model(name)).graph.nodes)
        times = measure(candidates(name), rounds)
        for what, values in times.items():
            ratios = [own / trace for own, trace in zip(values, times[TRACE], strict=True)]
            median = statistics.median(values)
            figures = (f"{1e3 * median:.0f}", f"{1e6 * median / nodes:.0f}")
            table.add_row(name, what, *figures, f"{statistics.median(ratios):.2f}×")
        table.add_section()
    return table


def memory_table(names: list[str]) -> Table:
    """The memory that each model takes, each in a process of its own."""
    table = Table("model", "verify", "MiB", "peak above the model", title="Memory")
    context = multiprocessing.get_context("fork")
    for name in names:
        for verify in (False, True):
            with context.Pool(1) as pool:
                size, factor = pool.apply(peak_memory, (name, verify))
            table.add_row(name, str(verify), f"{size:.0f}", f"{factor:.2f}× its size")
    return table


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Numbers of nodes, and names of models.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each takes.")] = 5,
) -> None:
    """Measure compile time and memory."""
    torch.set_num_threads(1)
    timed = ["1000", "3000", "10000", "fastvit_sa36", "timm:fastvit_sa36", "timm:repvgg_b0"]
    console = Console(width=120)
    large = [name for name in names or ["fastvit_ma36", "timm:repvgg_b3"] if not name.isdigit()]
    if large:  # first, while there is no freed memory to fork and use again
        console.print(memory_table(large))
    console.print(time_table(names or timed, rounds))


if __name__ == "__main__":
    typer.run(main)
