"""Train a small FastViT on scikit-learn's digits, compile it, and compare the two.

    python examples/digits.py

It takes about a minute, and downloads nothing: the images come with scikit-learn.
"""

import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import reparam
from fastvit_models.blocks import MobileOneBlock
from fastvit_models.fastvit import FastViTConfig, create_fastvit


def load_images(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, held-out images `(N, 1, 8, 8)` in [-1, 1], and the labels `(N,)` of each."""
    digits: Any = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(digits.target)
    train, test = train_test_split(
        range(len(labels)), test_size=0.25, stratify=labels, random_state=seed
    )
    return images[train], images[test], labels[train], labels[test]


def upsample(images: Tensor, shift: float = 0.0) -> Tensor:
    """`(N, 1, 8, 8)` → `(N, 1, 32, 32)`, each image moved at random by up to `shift` halves."""
    transform = torch.eye(2, 3).repeat(len(images), 1, 1)
    transform[:, :, 2].uniform_(-shift, shift)
    grid = functional.affine_grid(transform, [len(images), 1, 32, 32], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def build_model() -> nn.Module:
    """A narrow FastViT: three stages of RepMixer, one of attention.

    Its layer scales start at 0.1 instead of 1e-5, so that every block learns within a minute.
    """
    config = FastViTConfig((1, 1, 2, 1), width=8, mlp_ratio=2, attention=True, layer_scale=0.1)
    model = create_fastvit(config, num_classes=10, in_channels=1)
    # As usual for small images, the first layer keeps their size: the last stage has 2×2 pixels
    # then. With one pixel, attention would have nothing to choose from.
    model.set_submodule("stem.0", MobileOneBlock(1, config.width, 3, activation=nn.GELU))
    return model


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Run AdamW, with a learning rate that warms up and then falls along a cosine."""
    batches = DataLoader(TensorDataset(images, labels), 64, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * len(batches), pct_start=0.2)
    model.train()
    for _ in track(range(epochs), "Training"):
        for small_images, targets in batches:
            logits = model(upsample(small_images, shift=0.2))
            loss = functional.cross_entropy(logits, targets, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def measure_latency(model: nn.Module, fused: nn.Module, images: Tensor, runs: int) -> list[float]:
    """Median milliseconds of `model` and of `fused`, and the median ratio of the two.

    They take turns, so that whatever else the machine does slows both.
    """
    times: list[list[float]] = []
    for _ in range(runs):
        clock = [time.perf_counter()]
        for module in (model, fused):
            module(images)
            clock.append(time.perf_counter())
        times.append([1000 * (end - start) for start, end in pairwise(clock)])
    first, second = torch.tensor(times[runs // 10 :]).unbind(1)  # the first runs are a warm-up
    return [values.median().item() for values in (first, second, first / second)]


@torch.inference_mode()
def compare(model: nn.Module, fused: nn.Module, images: Tensor, labels: Tensor) -> Table:
    """Accuracy, size and latency of both."""
    table = Table("", title="Before and after compiling (latency: medians, one thread)")
    for column in ("training form", "fused", "ratio"):
        table.add_column(column, justify="right")
    accuracies = [(m(images).argmax(1) == labels).double().mean() for m in (model, fused)]
    table.add_row("accuracy, held-out images", *(f"{accuracy:.2%}" for accuracy in accuracies))
    before, after = reparam.report(fused).before, reparam.report(fused).after
    for name, old, new in (
        ("operators", before.total, after.total),
        ("parameters", before.parameters, after.parameters),
    ):
        table.add_row(name, f"{old:,}", f"{new:,}", f"{old / new:.2f}×")
    for batch, runs in ((1, 200), (64, 40)):
        old, new, ratio = measure_latency(model, fused, images[:batch], runs)
        table.add_row(f"latency, batch {batch}", f"{old:.2f} ms", f"{new:.2f} ms", f"{ratio:.2f}×")
    return table


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the split, the weights and the training.")] = 0,
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also write the fused model here, as ONNX.")
    ] = None,
) -> None:
    """Train a small FastViT on scikit-learn's digits, compile it, and compare the two."""
    if output and not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}", param_hint="--output")
    torch.set_num_threads(1)  # with layers as small as these, a second thread mostly waits
    torch.manual_seed(seed)
    train_images, test_images, train_labels, test_labels = load_images(seed)
    model = build_model()
    train(model, train_images, train_labels, epochs)

    model.eval()
    images = upsample(test_images)
    fused = reparam.compile(model, images)  # given images, it also compares the two on them

    console = Console()
    console.print(compare(model, fused, images, test_labels))
    console.print(reparam.report(fused).missed_table())
    with torch.inference_mode():
        differing = int((model(images).argmax(1) != fused(images).argmax(1)).sum())
    console.print(f"{differing} of {len(images)} predictions differ.")
    if output:
        reparam.export_onnx(fused, output, images[:2])
        console.print(f"Wrote {output}.")
    if differing:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
