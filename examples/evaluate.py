"""Measure a model of fastvit_models on a folder of images: as it was trained, and compiled.

    python examples/evaluate.py IMAGES --model fastvit_sa12 --checkpoint runs/sa12/model.pth

IMAGES holds `val`, in it a folder per class. Without a checkpoint, the published weights are
fetched. The path of every image to which the two give different classes is printed.
"""

# timm does not say what its packages export.
# pyright: reportPrivateImportUsage=false
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.data import create_dataset, create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fastvit_models
import reparam


class UnreadableImageError(typer.BadParameter):
    """Names an image in one sentence, also when a worker sends it on inside a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def published_size(model: str) -> int:
    """Height and width, in pixels, of the images that a family was published with."""
    return 256 if model.startswith("fastvit") else 224


def read_image(path: str) -> Image.Image:
    """The colours of an image."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises errors of many types
        raise UnreadableImageError(f"{path} can't be read: {error}") from error


def read_images(root: Path, split: str, size: int, **augmentation: Any) -> Any:
    """The images of a split, a folder per class, as timm reads and resizes them."""
    if not (root / split).is_dir():
        raise typer.BadParameter(f"{root} has no folder {split!r}")
    try:
        # torchvision's reader: timm's own takes the neighbour of an image that is damaged.
        images: Any = create_dataset("torch/image_folder", str(root / split), search_split=False)
    except FileNotFoundError as error:  # no folders, or one without images
        raise typer.BadParameter(str(error)) from None
    images.loader = read_image
    try:
        images.transform = create_transform(
            size, is_training=split == "train", interpolation="bicubic", **augmentation
        )
    except AssertionError:
        raise typer.BadParameter("--augment is no policy that timm knows") from None
    return images


def require_one_set_of_classes(trained: list[str], given: list[str]) -> list[str]:
    """The classes of two sets of images, if these are the same ones."""
    if trained != given:
        others = sorted({*trained} ^ {*given})[:5]
        how = f"not the classes that were trained: {others} differ"
        if not others:
            how = "the classes that were trained in another order"
        raise typer.BadParameter(f"val has {how}")
    return trained


def require_classes_of(checkpoint: Path, given: list[str]) -> None:
    """Refuse images of other classes than examples/train.py wrote beside the weights."""
    with checkpoint.open("rb") as file:
        if file.read(9).endswith(b"{"):  # safetensors, which hold tensors alone
            return
    names = torch.load(checkpoint, map_location="cpu", weights_only=True).get("classes", given)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise typer.BadParameter(f"'classes' in {checkpoint} is no list of names: leave it out")
    require_one_set_of_classes([*names], given)


@torch.inference_mode()
def predict(
    models: Sequence[nn.Module], images: DataLoader[Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The class that each model gives each image, (models, N), and the one it has, (N,)."""
    given: list[Tensor] = []
    real: list[Tensor] = []
    for x, labels in images:
        classes = [model(x.to(device)).argmax(1) for model in models]
        given.append(torch.stack(classes).cpu())
        real.append(labels)
    return torch.cat(given, 1), torch.cat(real)


def load(name: str, checkpoint: Path | None, classes: int, distilled: bool) -> nn.Module:
    """The model in training form, in evaluation mode."""
    options: dict[str, Any] = {"distillation": True} if distilled else {}
    try:
        if checkpoint is None:
            model = fastvit_models.create_model(name, pretrained=True, **options)
        else:
            model = fastvit_models.create_model(name, num_classes=classes, **options)
            fastvit_models.load_checkpoint(model, checkpoint)
    except ValueError as error:  # as all errors of fastvit_models are
        second = " (give --distilled)" if "head.distilled" in str(error) and not distilled else ""
        raise typer.BadParameter(f"{error}{second}") from None
    if model.num_classes != classes:
        raise typer.BadParameter(
            f"val has {classes} classes, and the published weights know {model.num_classes}"
        )
    return model.eval()


def main(
    images: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    model: Annotated[str, typer.Option(help="As list_models() names it.")] = "fastvit_sa12",
    checkpoint: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Of the training form.")
    ] = None,
    distilled: Annotated[bool, typer.Option(help="RepViT with a second head.")] = False,
    image_size: Annotated[
        int | None, typer.Option(min=32, help="Height and width; as published if not given.")
    ] = None,
    crop: Annotated[float, typer.Option(min=0.1, max=1, help="Part of an image seen.")] = 0.9,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    workers: Annotated[int, typer.Option(min=0, help="That read images.")] = 4,
) -> None:
    """Compare both forms of a model on IMAGES/val."""
    held_out = read_images(images, "val", image_size or published_size(model), crop_pct=crop)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load(model, checkpoint, len(held_out.classes), distilled).to(device)
    if checkpoint is not None:
        require_classes_of(checkpoint, held_out.classes)
    fused = reparam.compile(trained)
    loader = DataLoader(held_out, batch_size, num_workers=workers)
    progress = track(loader, "Images", console=Console(stderr=True))
    given, real = predict((trained, fused), cast("Any", progress), device)
    report = reparam.report(fused)
    table = Table("", "training form", "compiled", title=f"{model}, {len(real):,} images")
    table.add_row("top-1", *(f"{right:.2%}" for right in (given == real).double().mean(1)))
    for name in ("total", "parameters"):
        sizes = (getattr(report.before, name), getattr(report.after, name))
        table.add_row(name.replace("total", "operators"), *(f"{size:,}" for size in sizes))
    Console().print(table)
    differ = (given[0] != given[1]).nonzero().flatten().tolist()
    print(f"{len(differ)} of {len(real)} images are given another class")
    for number in differ:
        print(held_out.samples[number][0])


if __name__ == "__main__":
    typer.run(main)
