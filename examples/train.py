"""Train a model of fastvit_models on a folder of images. Stop it at any time: it goes on.

    accelerate launch examples/train.py IMAGES runs/sa12 --model fastvit_sa12

IMAGES holds `train` and `val`, in each a folder per class. The same file runs on one processor, one
GPU or several machines: how is what `accelerate config`, or torchrun, is for. The recipe is that of
FastViT: AdamW, warm-up and cosine, mixup and cutmix, random augmentation and erasing, stochastic
depth, averaged weights, and the predictions of a teacher where one is given.

What is left in the folder of the run: `model.pth`, the averaged weights, which
`fastvit_models.load_checkpoint` and examples/evaluate.py read; `log.jsonl`, a line for every few
steps; and all that going on takes.

Sources: Vasu et al., "FastViT", ICCV 2023, appendix; Touvron et al., "Training data-efficient image
transformers & distillation through attention", ICML 2021, equation 3, for hard distillation.
"""

# timm does not say what its packages export.
# pyright: reportPrivateImportUsage=false
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import timm
import torch
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from evaluate import CROP, predict, read_images, require_one_set_of_classes
from timm.data import Mixup
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
    """What a run is made of: going on with it takes the same."""

    processes: int
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
    augment: str
    erasing: float
    ema_decay: float
    teacher: str | None
    teacher_checkpoint: str | None
    seed: int


@dataclass
class Progress:
    """How many steps are done. accelerate saves and restores it with all else."""

    step: int = 0

    def state_dict(self) -> dict[str, int]:
        """What is saved."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take it back."""
        self.step = state["step"]


class Run:
    """The folder of a run: `step-…` holds a whole state, `partial` one that is being written."""

    def __init__(self, folder: Path, recipe: Recipe, accelerator: Accelerator) -> None:
        """Refuse a folder that holds a run by another recipe."""
        self.folder, self._recipe, self._accelerator = folder, asdict(recipe), accelerator
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.progress)
        if self._settings.exists():
            was = json.loads(self._settings.read_text())
            names = [name for name, value in self._recipe.items() if was.get(name) != value]
            if names:
                raise typer.BadParameter(f"{folder} holds a run with other {', '.join(names)}")

    def begin(self) -> None:
        """Load the latest state, if there is one, and forget what was logged after it."""
        states = sorted(self.folder.glob("step-*"))
        if states:
            self._accelerator.load_state(str(states[-1]))
            self._accelerator.print(f"going on from step {self.progress.step}")
        if self._accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._settings.write_text(json.dumps(self._recipe, indent=2))
            lines = [*self._logged()]
            self._log.write_text("".join(lines))

    def save(self) -> None:
        """Write the state of all processes; it gets its name when it is whole."""
        main, partial = self._accelerator.is_main_process, self.folder / "partial"
        whole = self.folder / f"step-{self.progress.step:09}"
        if main:
            shutil.rmtree(partial, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(partial))
        self._accelerator.wait_for_everyone()
        if main:
            shutil.rmtree(whole, ignore_errors=True)
            partial.rename(whole)
            for older in self.folder.glob("step-*"):
                if older != whole:
                    shutil.rmtree(older)
        self._accelerator.wait_for_everyone()

    def log(self, **figures: float) -> None:
        """Append a line."""
        if self._accelerator.is_main_process:
            with self._log.open("a") as lines:
                lines.write(json.dumps({"step": self.progress.step, **figures}) + "\n")

    @property
    def _settings(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def _log(self) -> Path:
        return self.folder / "log.jsonl"

    def _logged(self) -> Iterator[str]:
        """The lines up to the step that is done, but one that a kill has cut short."""
        for line in self._log.read_text().splitlines(True) if self._log.exists() else ():
            if line.endswith("\n") and json.loads(line)["step"] <= self.progress.step:
                yield line


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
    if file is None:
        teacher = timm.create_model(recipe.teacher, pretrained=True)
    else:
        teacher = timm.create_model(recipe.teacher, checkpoint_path=file, num_classes=classes)
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
    run = Run(output, recipe, accelerator)
    images = read_images(
        root, "train", recipe.image_size, auto_augment=recipe.augment, re_prob=recipe.erasing
    )
    held_out = read_images(root, "val", recipe.image_size, crop_pct=CROP)
    classes = require_one_set_of_classes(images, held_out)
    steps = len(images) // accelerator.num_processes // recipe.batch_size
    if steps == 0:
        raise typer.BadParameter("train has fewer images than all processes take in one step")

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
            if progress.step % log_every == 0:
                mean = cast("Tensor", accelerator.reduce(loss.detach(), "mean")).item()
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"the loss is {mean} at step {progress.step}: lower the learning rate"
                    )
                run.log(loss=mean, learning_rate=optimizer.param_groups[0]["lr"])
            if progress.step % save_every == 0 and progress.step % steps:
                run.save()
        top1 = measured(averaged.module, held_out, recipe.batch_size, accelerator, workers)
        run.log(top1=top1)
        epoch = progress.step // steps
        accelerator.print(f"epoch {epoch} of {recipe.epochs}: {top1:.2%} of val, averaged weights")
        if accelerator.is_main_process:
            write_weights(averaged.module, output / "model.pth")
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


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a state dict, whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save({"state_dict_ema": model.state_dict()}, partial)
    partial.replace(path)


def main(
    images: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    output: Annotated[Path, typer.Argument(file_okay=False, help="The folder of the run.")],
    model: Annotated[str, typer.Option(help="As list_models() names it.")] = "fastvit_sa12",
    image_size: Annotated[int, typer.Option(min=32, help="Height and width, in pixels.")] = 256,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 300,
    batch_size: Annotated[int, typer.Option(min=2, help="Of each process; even.")] = 128,
    learning_rate: Annotated[float, typer.Option(help=f"For a batch of {BATCH}.")] = 1e-3,
    weight_decay: float = 0.05,
    warmup_epochs: Annotated[int, typer.Option(min=0, help="At the beginning.")] = 5,
    drop_path: Annotated[float | None, typer.Option(help="Stochastic depth, last block.")] = None,
    mixup: Annotated[float, typer.Option(help="α of mixup; 0 for none.")] = 0.2,
    cutmix: Annotated[float, typer.Option(help="α of cutmix; 0 for none.")] = 1.0,
    smoothing: Annotated[float, typer.Option(help="Of labels.")] = 0.1,
    # Without mmax9 timm asks for colours of 0 bits at times, which Pillow refuses.
    augment: Annotated[str, typer.Option(help="As timm names it.")] = "rand-m9-mstd0.5-mmax9-inc1",
    erasing: Annotated[float, typer.Option(help="Probability of random erasing.")] = 0.25,
    ema_decay: Annotated[float, typer.Option(help="Of the averaged weights.")] = 0.9995,
    teacher: Annotated[str | None, typer.Option(help="A model of timm's, to learn from.")] = None,
    teacher_checkpoint: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Its weights.")
    ] = None,
    seed: int = 0,
    workers: Annotated[int, typer.Option(min=0, help="That read images, per process.")] = 4,
    save_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 1000,
    log_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 50,
) -> None:
    """Train a model on IMAGES/train, measure it on IMAGES/val, and keep all in OUTPUT."""
    if batch_size % 2:
        raise typer.BadParameter("--batch-size is odd: mixup mixes pairs")
    # Processes of one launch would not find each other on CPUs if it were not said.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    recipe = Recipe(
        accelerator.num_processes, model, image_size, epochs, batch_size, learning_rate,
        weight_decay, warmup_epochs, drop_path, mixup, cutmix, smoothing, augment, erasing,
        ema_decay, teacher, None if teacher_checkpoint is None else str(teacher_checkpoint), seed,
    )  # fmt: skip
    train(accelerator, images, recipe, output, workers, save_every, log_every)


if __name__ == "__main__":
    typer.run(main)
