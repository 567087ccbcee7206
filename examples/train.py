"""Train a model of fastvit_models on a folder of images. Stop it at any time: it goes on.

    accelerate launch examples/train.py IMAGES runs/sa12 --model fastvit_sa12

IMAGES holds `train` and `val`, in each a folder per class. The same file runs on one processor, one
GPU or several machines, as `accelerate config` or torchrun set it up. The recipe is that of
FastViT: AdamW, warm-up and cosine, mixup and cutmix, random augmentation and erasing, stochastic
depth, averaged weights, and the predictions of a teacher where one is given.

The folder of the run gets `model.pth`, the averaged weights, which examples/evaluate.py and
`fastvit_models.load_checkpoint` read; `log.jsonl`, a line for every few steps; and the state that
a stopped run goes on from.

Sources: Vasu et al., "FastViT", ICCV 2023, appendix; Touvron et al., "Training data-efficient image
transformers & distillation through attention", ICML 2021, equation 3, for hard distillation.
"""

# timm does not say what its packages export.
# pyright: reportPrivateImportUsage=false
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import timm
import torch
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from evaluate import predict, published_size, read_images, require_one_set_of_classes
from resumable import Run
from timm.data import Mixup
from timm.models import load_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

import fastvit_models

BATCH = 1024
"""The batch that learning rates are given for; for another one they are scaled with it."""


@dataclass(frozen=True)
class Recipe:
    """What a run is made of. To go on with it takes the same, images and processes included."""

    model: str
    image_size: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: int
    drop_path: float | None
    mixup: float
    cutmix: float
    smoothing: float
    crop: float
    augment: str
    erasing: float
    ema_decay: float
    teacher: str | None
    teacher_checkpoint: str | None
    seed: int


def batches(
    images: Dataset[Any], recipe: Recipe, step: int, steps: int, accelerator: Accelerator, work: int
) -> DataLoader[Any]:
    """The batches of this process from a step on to the end of its epoch, which has `steps`."""
    epoch, done = divmod(step, steps)
    sampler = DistributedSampler(
        images,
        accelerator.num_processes,
        accelerator.process_index,
        seed=recipe.seed,
        drop_last=True,
    )
    sampler.set_epoch(epoch)
    return DataLoader(
        Subset(images, [*sampler][done * recipe.batch_size :]),
        recipe.batch_size,
        drop_last=True,
        num_workers=work,
        pin_memory=accelerator.device.type == "cuda",
        # One of its own: what training draws does not hang on where a run was resumed.
        generator=torch.Generator().manual_seed(recipe.seed + step),
    )


def total_loss(outputs: Any, targets: Tensor, taught: Tensor | None) -> Tensor:
    """Cross-entropy with the targets; with a teacher's classes half of it with them.

    They are for the distilled head, where the model has one.
    """
    logits, distilled = outputs if isinstance(outputs, tuple) else (outputs, outputs)
    loss = functional.cross_entropy(logits, targets)
    if taught is None:
        return loss
    return (loss + functional.cross_entropy(distilled, taught)) / 2


def create_student(recipe: Recipe, classes: int) -> nn.Module:
    """The model that is trained, with a distilled head for a teacher where its family has one."""
    options: dict[str, Any] = {"num_classes": classes}
    if recipe.drop_path is not None:
        options["drop_path_rate"] = recipe.drop_path
    if recipe.teacher is not None and recipe.model.startswith("repvit"):
        options["distillation"] = True
    try:
        return fastvit_models.create_model(recipe.model, **options)
    except (fastvit_models.UnknownModelError, fastvit_models.ModelOptionError) as error:
        raise typer.BadParameter(str(error)) from None


def create_teacher(recipe: Recipe, classes: int) -> nn.Module | None:
    """A model of timm's, with weights of one's own or from the Hugging Face Hub."""
    if recipe.teacher is None:
        return None
    file = recipe.teacher_checkpoint
    own: dict[str, Any] = {"pretrained": True} if file is None else {"num_classes": classes}
    try:
        teacher = timm.create_model(recipe.teacher, **own)
    except RuntimeError as error:  # a name that is not timm's, or one without weights
        raise typer.BadParameter(f"--teacher: {error}") from None
    try:
        if file is not None:
            load_checkpoint(teacher, file, weights_only=True)
    except Exception as error:  # files that are no checkpoints fail in many ways
        raise typer.BadParameter(
            f"--teacher-checkpoint: {file} holds no plain state dict of a {recipe.teacher} "
            f"with {classes} classes"
        ) from error
    if teacher.num_classes != classes:
        raise typer.BadParameter(
            f"the teacher knows {teacher.num_classes} classes, and train has {classes}: "
            "give --teacher-checkpoint"
        )
    return teacher.eval().requires_grad_(False)


def train(
    accelerator: Accelerator,
    root: Path,
    recipe: Recipe,
    output: Path,
    workers: int,
    save_every: int,
    log_every: int,
) -> None:
    """Run all epochs, or those that are left."""
    images = read_images(
        root, "train", recipe.image_size, auto_augment=recipe.augment, re_prob=recipe.erasing
    )
    held_out = read_images(root, "val", recipe.image_size, crop_pct=recipe.crop)
    classes = len(require_one_set_of_classes(images.classes, held_out.classes))
    conditions = {
        "classes": images.classes,
        "images": len(images),
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
    }
    run = Run(output, asdict(recipe) | conditions, accelerator)
    steps = len(images) // accelerator.num_processes // recipe.batch_size
    if steps == 0:
        raise typer.BadParameter("train has fewer images than all processes take in one step")
    if len(held_out) < accelerator.num_processes:
        raise typer.BadParameter("val has fewer images than there are processes")

    set_seed(recipe.seed)
    student = create_student(recipe, classes)
    teacher = create_teacher(recipe, classes)
    averaged = ModelEmaV3(student, recipe.ema_decay, use_warmup=True, device=accelerator.device)
    accelerator.register_for_checkpointing(averaged)
    scale = recipe.batch_size * accelerator.num_processes / BATCH
    optimizer = create_optimizer_v2(
        student, "adamw", lr=recipe.learning_rate * scale, weight_decay=recipe.weight_decay
    )
    schedule, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=1e-6 * scale,
        min_lr=1e-5 * scale,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    assert schedule is not None
    mix = Mixup(
        recipe.mixup,
        recipe.cutmix,
        prob=float(recipe.mixup > 0 or recipe.cutmix > 0),
        label_smoothing=recipe.smoothing,
        num_classes=classes,
    )
    model, optimizer = accelerator.prepare(student, optimizer)
    if teacher is not None:
        teacher.to(accelerator.device)
    set_seed(recipe.seed, device_specific=True)  # each process augments its images by itself
    run.begin()

    progress = run.progress
    model.train()
    while progress.step < recipe.epochs * steps:
        for raw, labels in batches(images, recipe, progress.step, steps, accelerator, workers):
            schedule.step_update(progress.step)
            x, targets = mix(raw.to(accelerator.device), labels.to(accelerator.device))
            with torch.no_grad(), accelerator.autocast():
                taught = None if teacher is None else teacher(x).argmax(1)
            with accelerator.autocast():
                loss = total_loss(model(x), targets, taught)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            progress.step += 1
            averaged.update(accelerator.unwrap_model(model), step=progress.step)
            last, saves = progress.step % steps == 0, progress.step % save_every == 0
            if last or saves or progress.step % log_every == 0:
                mean = finite_mean(loss.detach(), accelerator, progress.step)
                run.log(loss=mean, learning_rate=optimizer.param_groups[0]["lr"])
            if saves and not last:  # an epoch is saved when it is measured
                run.save()
        top1 = measured(averaged.module, held_out, recipe.batch_size, accelerator, workers)
        run.log(top1=top1)
        epoch = progress.step // steps
        accelerator.print(f"epoch {epoch} of {recipe.epochs}: {top1:.2%} of val, averaged weights")
        if accelerator.is_main_process:
            write_weights(averaged.module, images.classes, output / "model.pth")
        run.save()
    accelerator.end_training()


def measured(
    model: nn.Module, images: Any, batch_size: int, accelerator: Accelerator, workers: int
) -> float:
    """The fraction of images that a model is right about; each process looks at its share."""
    own = range(accelerator.process_index, len(images), accelerator.num_processes)
    loader = DataLoader(Subset(images, own), batch_size, num_workers=workers)
    given, real = predict([model.eval()], loader, accelerator.device)
    correct = (given[0] == real).sum().to(accelerator.device)
    return cast("Tensor", accelerator.reduce(correct, "sum")).item() / len(images)


def finite_mean(loss: Tensor, accelerator: Accelerator, step: int) -> float:
    """The loss of all processes.

    Raises:
        FloatingPointError: if it is no number: what was learned is lost, and not to be saved.
    """
    mean = cast("Tensor", accelerator.reduce(loss, "mean")).item()
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss is {mean} at step {step}: lower the learning rate")
    return mean


def write_weights(model: nn.Module, classes: list[str], path: Path) -> None:
    """Write a state dict and what its classes are called, whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save({"state_dict_ema": model.state_dict(), "classes": classes}, partial)
    partial.replace(path)


def main(
    images: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    output: Annotated[Path, typer.Argument(file_okay=False, help="The folder of the run.")],
    model: Annotated[str, typer.Option(help="As list_models() names it.")] = "fastvit_sa12",
    image_size: Annotated[
        int | None, typer.Option(min=32, help="Height and width; as published if not given.")
    ] = None,
    crop: Annotated[float, typer.Option(min=0.1, max=1, help="Part of a val image seen.")] = 0.9,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 300,
    batch_size: Annotated[int, typer.Option(min=2, help="Of each process; even.")] = 128,
    learning_rate: Annotated[
        float, typer.Option(min=0, help=f"For a batch of {BATCH}; scaled with the real one.")
    ] = 1e-3,
    weight_decay: Annotated[float, typer.Option(min=0, help="As in AdamW.")] = 0.05,
    warmup_epochs: Annotated[int, typer.Option(min=0, help="With a rising learning rate.")] = 5,
    drop_path: Annotated[
        float | None, typer.Option(min=0, max=1, help="Stochastic depth of the last block.")
    ] = None,
    mixup: Annotated[float, typer.Option(min=0, help="α of mixup; 0 for none.")] = 0.2,
    cutmix: Annotated[float, typer.Option(min=0, help="α of cutmix; 0 for none.")] = 1.0,
    smoothing: Annotated[float, typer.Option(min=0, max=1, help="Of labels.")] = 0.1,
    # Without mmax9 timm asks for colours of 0 bits at times, which Pillow refuses.
    augment: Annotated[
        str, typer.Option(help="A policy, in timm's words; empty for none.")
    ] = "rand-m9-mstd0.5-mmax9-inc1",
    erasing: Annotated[float, typer.Option(min=0, max=1, help="Of how many images.")] = 0.25,
    ema_decay: Annotated[
        float, typer.Option(min=0, max=1, help="Of the averaged weights.")
    ] = 0.9995,
    teacher: Annotated[str | None, typer.Option(help="A model of timm's, to learn from.")] = None,
    teacher_checkpoint: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Its weights.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Of weights, order and augmentation.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Reading processes, for each.")] = 4,
    save_every: Annotated[int, typer.Option(min=1, help="Steps from state to state.")] = 1000,
    log_every: Annotated[int, typer.Option(min=1, help="Steps from line to line.")] = 50,
) -> None:
    """Train a model on IMAGES/train, measure it on IMAGES/val, and keep all in OUTPUT."""
    if batch_size % 2:
        raise typer.BadParameter("--batch-size is odd: mixup mixes pairs")
    if warmup_epochs >= epochs:
        raise typer.BadParameter("--warmup-epochs leaves no epochs: give fewer than --epochs")
    if teacher is None and teacher_checkpoint is not None:
        raise typer.BadParameter("--teacher-checkpoint is of no use alone: give --teacher")
    # Processes of one launch would not find each other on CPUs if it were not said.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if accelerator.gradient_accumulation_steps != 1:
        raise typer.BadParameter("gradients are not accumulated here: give a larger --batch-size")
    recipe = Recipe(
        model=model,
        image_size=image_size or published_size(model),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        drop_path=drop_path,
        mixup=mixup,
        cutmix=cutmix,
        smoothing=smoothing,
        crop=crop,
        augment=augment,
        erasing=erasing,
        ema_decay=ema_decay,
        teacher=teacher,
        teacher_checkpoint=None if teacher_checkpoint is None else str(teacher_checkpoint),
        seed=seed,
    )
    try:
        train(accelerator, images, recipe, output, workers, save_every, log_every)
    except FloatingPointError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    typer.run(main)
