"""Latency of FastViT: the training form, what reparam.compile makes of it, and timm's own merge.

    python -m tests.with_torchvision benchmarks/latency.py

It needs the extra `reparam[bench]`. All forms of a model take turns in one process, and what counts
is the ratio within a turn: the milliseconds are those of this machine, under whatever else it does.
The weights are random.
"""

import random
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import onnxruntime
import timm
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

import fastvit_models
import reparam

Size = Annotated[int, typer.Option(min=32, help="Height and width of the image.")]
Rounds = Annotated[int, typer.Option(min=1, help="Turns that each form takes.")]
Threads = Annotated[int, typer.Option(min=1, help="Of each runtime.")]

TRAINING_FORM = "training form"
TIMM_MERGED = "timm, reparameterize_model"


def build_forms(name: str) -> dict[str, nn.Module]:
    """The forms of a model by what they are called in the table."""
    model = fastvit_models.create_model(name).eval()
    timm_model = timm.create_model(name).eval()
    return {
        TRAINING_FORM: model,
        "reparam.compile": reparam.compile(model),
        TIMM_MERGED: reparameterize_model(timm_model),
        "timm, reparam.compile": reparam.compile(timm_model),
    }


def prepare_torch(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A call that runs the model in eager torch."""
    return lambda: model(images)


def prepare_onnxruntime(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A call that runs the exported model in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        reparam.export_onnx(model, path, images, dynamic=False)
        return prepare_file(path, images)


def prepare_file(path: Path, images: Tensor) -> Callable[[], object]:
    """A call that runs a file in ONNX Runtime, at its own default optimisations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Threads that wait in a loop for work would slow down whoever's turn is next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


@torch.inference_mode()
def measure(
    calls: Mapping[str, Callable[[], object]], rounds: int, label: str
) -> dict[str, Tensor]:
    """Milliseconds of each call in each round, `(rounds,)`; the order within a round is random."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    warm_up = 3
    shuffled = random.Random(0)
    for _ in track(range(warm_up + rounds), label):
        for name in shuffled.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: torch.tensor(values[warm_up:]) for name, values in times.items()}


def format_ratio(slow: Tensor, fast: Tensor) -> str:
    """How many times as fast: the median over the rounds, and the quartiles."""
    if fast is slow:
        return "1"
    low, median, high = (slow / fast).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return f"{median:.2f}× ({low:.2f}–{high:.2f})"


def conditions(size: int, rounds: int, threads: int) -> str:
    """What the figures of a table are of."""
    return f"One {size}×{size} image, {threads} thread(s): medians of {rounds} rounds (quartiles)"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Models, by timm's names.")] = None,
    size: Size = 256,
    rounds: Rounds = 50,
    threads: Threads = 1,
) -> None:
    """Measure the forms of each model side by side, one image at a time."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = torch.randn(1, 3, size, size)
    columns = ("model", "runtime", "form", "ms", "speed-up over\ntraining form")
    title = conditions(size, rounds, threads)
    table = Table(*columns, f"speed-up over\n{TIMM_MERGED}", title=title)
    for name in names or ("fastvit_t8", "fastvit_sa12"):
        forms = build_forms(name)
        for runtime, prepare in (("torch", prepare_torch), ("ONNX Runtime", prepare_onnxruntime)):
            calls = {form: prepare(model, images) for form, model in forms.items()}
            times = measure(calls, rounds, f"{name}, {runtime}")
            for form, values in times.items():
                ratios = [
                    format_ratio(times[base], values) for base in (TRAINING_FORM, TIMM_MERGED)
                ]
                table.add_row(name, runtime, form, f"{values.median():.1f}", *ratios)
            table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
