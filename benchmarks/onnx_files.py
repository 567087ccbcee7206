"""ONNX files in training form: nodes and latency of what each optimizer makes of them.

    python -m tests.with_torchvision benchmarks/onnx_files.py

It needs the extra `reparam[bench]`. Each model is exported as it is trained, by both of torch's
exporters. All files of a model take turns in one process, each in a session of ONNX Runtime at its
default optimisations; what counts is the ratio within a turn. The weights are random.
"""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import onnx
import onnxruntime
import onnxsim
import onnxslim
import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fastvit_models
import reparam
from benchmarks.latency import format_ratio, measure
from reparam.testing.randomised import randomised

EXPORTERS = ("torchscript", "dynamo")
MODELS = (
    *("fastvit_t8", "fastvit_sa12", "timm:repvgg_a0", "timm:mobileone_s0", "timm:repvit_m0_9"),
    *("timm:resnet18", "timm:mobilenetv3_small_050", "timm:efficientnet_b0", "timm:levit_128s"),
    *("timm:repghostnet_050", "timm:convnext_atto", "timm:regnety_002"),
)


def build(name: str, image: Tensor) -> nn.Module:
    """A model in evaluation mode, with statistics at which a wrong fold shows."""
    make = timm.create_model if name.startswith("timm:") else fastvit_models.create_model
    return randomised(make(name.removeprefix("timm:")).eval(), image)


def export(model: nn.Module, image: Tensor, path: Path, exporter: str) -> None:
    """Write a model as it is, nothing folded."""
    quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
    with quiet[0], quiet[1], warnings.catch_warnings(action="ignore"):
        if exporter == "dynamo":
            torch.onnx.export(
                model, (image,), path, dynamo=True, optimize=False, verbose=False,
                opset_version=20, external_data=False, input_names=["x"],
            )  # fmt: skip
        else:
            torch.onnx.export(
                model, (image,), path, dynamo=False, do_constant_folding=False, opset_version=17,
                training=torch.onnx.TrainingMode.PRESERVE, input_names=["x"],
            )  # fmt: skip


def simplified(source: Path, target: Path) -> None:
    """What onnxsim makes of a file."""
    onnx.save(onnxsim.simplify(onnx.load(source))[0], target)


def slimmed(source: Path, target: Path) -> None:
    """What onnxslim makes of a file."""
    slim: Any = onnxslim.slim
    onnx.save(slim(str(source)), target)


def optimised(source: Path, target: Path) -> None:
    """What ONNX Runtime makes of a file, offline."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, ["CPUExecutionProvider"])


def compiled(source: Path, target: Path) -> None:
    """What reparam makes of a file."""
    reparam.compile_onnx(source, target)


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "onnxsim": simplified,
    "onnxslim": slimmed,
    "ONNX Runtime, offline": optimised,
    "reparam": compiled,
}


def prepare(path: Path, image: Tensor, threads: int) -> Callable[[], object]:
    """A call that runs a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait in a loop for work would slow down whoever's turn is next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Any = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Models; timm's as timm:NAME.")] = None,
    size: Annotated[int, typer.Option(min=32, help="Height and width of the image.")] = 224,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each file takes.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Of each session.")] = 1,
) -> None:
    """Measure what each tool makes of training-form files, side by side."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    image = torch.randn(1, 3, size, size)
    title = f"One {size}×{size} image, {threads} thread(s): medians of {rounds} rounds (quartiles)"
    columns = ("model", "exporter", "file", "nodes", "ms", "speed-up over\nthe raw file")
    table = Table(*columns, title=title)
    for name in names or MODELS:
        model = build(name, image)
        for exporter in EXPORTERS:
            with tempfile.TemporaryDirectory() as folder:
                files = {"raw": Path(folder) / "raw.onnx"}
                export(model, image, files["raw"], exporter)
                for number, (tool, run) in enumerate(TOOLS.items()):
                    files[tool] = Path(folder) / f"{number}.onnx"
                    run(files["raw"], files[tool])
                nodes = {tool: len(onnx.load(path).graph.node) for tool, path in files.items()}
                calls = {tool: prepare(path, image, threads) for tool, path in files.items()}
                times = measure(calls, rounds, f"{name}, {exporter}")
            for tool, values in times.items():
                ratio = format_ratio(times["raw"], values)
                told = (str(nodes[tool]), f"{values.median():.1f}", ratio)
                table.add_row(name, exporter, tool, *told)
            table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
