"""ONNX files in training form: nodes and latency of what each optimizer makes of them.

    python -m tests.with_torchvision benchmarks/onnx_files.py

It needs the extra `reparam[bench]`. Each model is exported as it is trained, by both of torch's
exporters. All files of a model take turns in one process, each in a session of ONNX Runtime at its
default optimisations; what counts is the ratio within a turn. The weights are random.

Nodes are those of the file and, behind the arrow, those that ONNX Runtime makes of it as it loads
it. What it writes itself is of two kinds: at its basic level a file for any runtime, and at its
default level one with operators of its own, for machines like the one that it was written on.
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
from benchmarks.latency import (
    Rounds,
    Size,
    Threads,
    conditions,
    format_ratio,
    measure,
    prepare_file,
)
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


def basic(source: Path, target: Path) -> None:
    """What ONNX Runtime makes of a file, offline, in ONNX's own operators."""
    optimised(source, target, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)


def optimised(source: Path, target: Path, level: Any = None) -> None:
    """What ONNX Runtime makes of a file, offline."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level or onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, ["CPUExecutionProvider"])


def compiled(source: Path, target: Path) -> None:
    """What reparam makes of a file."""
    reparam.compile_onnx(source, target)


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "onnxsim": simplified,
    "onnxslim": slimmed,
    "ONNX Runtime, basic": basic,
    "ONNX Runtime": optimised,
    "reparam": compiled,
}


def nodes(path: Path) -> str:
    """How many nodes a file has, and how many ONNX Runtime makes of them."""
    with tempfile.TemporaryDirectory() as folder:
        optimised(path, loaded := Path(folder) / "loaded.onnx")
        return " → ".join(str(len(onnx.load(each).graph.node)) for each in (path, loaded))


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Models; timm's as timm:NAME.")] = None,
    size: Size = 224,
    rounds: Rounds = 30,
    threads: Threads = 1,
    latency: Annotated[bool, typer.Option(help="Whether to run the files.")] = True,
) -> None:
    """Measure what each tool makes of training-form files, side by side."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    image = torch.randn(1, 3, size, size)
    columns = ("model", "exporter", "file", "nodes → loaded", "ms", "speed-up over\nthe raw file")
    table = Table(*columns, title=conditions(size, rounds, threads) if latency else None)
    for name in names or MODELS:
        model = build(name, image)
        for exporter in EXPORTERS:
            with tempfile.TemporaryDirectory() as folder:
                files = {"raw": Path(folder) / "raw.onnx"}
                export(model, image, files["raw"], exporter)
                for number, (tool, run) in enumerate(TOOLS.items()):
                    files[tool] = Path(folder) / f"{number}.onnx"
                    run(files["raw"], files[tool])
                counts = {tool: nodes(path) for tool, path in files.items()}
                calls = {tool: prepare_file(path, image) for tool, path in files.items() if latency}
                times = measure(calls, rounds, f"{name}, {exporter}") if latency else {}
            for tool, count in counts.items():
                told = ("", "")
                if latency:
                    values = times[tool]
                    told = (f"{values.median():.1f}", format_ratio(times["raw"], values))
                table.add_row(name, exporter, tool, count, *told)
            table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
