"""examples/train.py and evaluate.py, on scikit-learn's digits as a folder of images."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import typer
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import fastvit_models
from tests.randomised import randomised

# timm's data sets close their files when they are forgotten.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

ROOT = Path(__file__).parents[2]
SMALL = ("--image-size", "32", "--batch-size", "32", "--workers", "0")
RECIPE = (
    *SMALL, "--epochs", "5", "--warmup-epochs", "1", "--learning-rate", "0.03",
    "--drop-path", "0.1", "--mixup", "0.1", "--cutmix", "0", "--augment", "", "--erasing", "0",
    "--ema-decay", "0.9", "--log-every", "1", "--save-every", "4",
)  # fmt: skip
STEPS = 5 * 10
SHORT = ("--epochs", "1", "--warmup-epochs", "0")


def write_digits(root: Path, count: int) -> Path:
    digits: Any = load_digits()
    for number, digit in enumerate(digits.target[:count]):
        folder = root / ("val" if number % 5 == 0 else "train") / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((digits.images[number] * 15).astype("uint8"))
        image.resize((32, 32)).save(folder / f"{number:04}.png")
    return root


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """640 images and some to train on, 10 steps of two processes; 161 to look at."""
    return write_digits(tmp_path_factory.mktemp("digits"), 805)


def launch(script: str, *arguments: object, processes: int = 2) -> subprocess.Popen[str]:
    """A launch by accelerate, as the example says, on CPUs."""
    launcher = [
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", "-m", "tests.with_torchvision",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, f"examples/{script}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def logged(run: Path) -> list[dict[str, float]]:
    lines = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []
    return [json.loads(line) for line in lines]


def kill(process: subprocess.Popen[str]) -> None:
    """All at once, without warning."""
    parent = psutil.Process(process.pid)
    for each in [*parent.children(recursive=True), parent]:
        each.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.long
def test_a_killed_run_goes_on_as_if_nothing_had_happened(digits: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ("--model", "fastvit_t8", *RECIPE)
    finished(launch("train.py", digits, whole, *options))
    losses = [line["loss"] for line in logged(whole) if "loss" in line]
    assert len(losses) == STEPS
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])

    process = launch("train.py", digits, cut, *options)
    while len(logged(cut)) < 18:
        assert process.poll() is None
        time.sleep(0.02)
    kill(process)
    (state,) = cut.glob("step-*")
    step = int(state.name.removeprefix("step-"))
    assert step < STEPS
    assert f"going on from step {step}\n" in finished(launch("train.py", digits, cut, *options))
    assert logged(cut) == logged(whole)
    weights = [torch.load(run / "model.pth")["state_dict_ema"] for run in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    command = [sys.executable, "-m", "tests.with_torchvision", "examples/evaluate.py", digits]
    told = subprocess.run(
        [*map(str, command), "--model", "fastvit_t8", "--checkpoint", cut / "model.pth", *SMALL],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "0 of 161 images are given another class" in told
    top1 = f"{logged(cut)[-1]['top1']:.2%}"
    assert told.count(top1) == 2


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import an example by its name, as they import each other."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return __import__


@pytest.fixture
def run(example: Any) -> Any:
    """Call an example in this process."""

    def call(script: str, *arguments: object) -> Any:
        module = example(script)
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(module.main)
        return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})

    return call


@pytest.mark.long
def test_a_distilled_head_learns_from_a_teacher(digits: Path, tmp_path: Path, run: Any) -> None:
    import timm

    teacher = timm.create_model("mobilenetv3_small_050", num_classes=10)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    options = ("--model", "repvit_m0_6", *SMALL, *SHORT, "--log-every", "5")
    taught = (
        "--teacher",
        "mobilenetv3_small_050",
        "--teacher-checkpoint",
        tmp_path / "teacher.pth",
    )
    result = run("train", digits, tmp_path / "run", *options, *taught)
    assert result.exit_code == 0, result.output
    assert [line["step"] for line in logged(tmp_path / "run")] == [5, 10, 15, 20, 20]
    result = run("train", digits, tmp_path / "run", *options, *taught)
    assert "going on from step 20" in result.output
    result = run("train", digits, tmp_path / "run", *options, "--seed", 1)
    assert result.exit_code == 2
    assert "holds a run with other teacher, teacher_checkpoint, seed" in result.output
    weights = ("--model", "repvit_m0_6", "--checkpoint", tmp_path / "run" / "model.pth", *SMALL)
    result = run("evaluate", digits, *weights, "--distilled")
    assert result.exit_code == 0
    assert "0 of 161 images are given another class" in result.output
    result = run("evaluate", digits, *weights)
    assert result.exit_code == 2
    assert "does not fit this RepViT" in result.output
    assert "give --distilled" in " ".join(result.output.replace("│", " ").split())
    (digits / "val" / "3").rename(digits / "val" / "three")
    result = run("evaluate", digits, *weights, "--distilled")
    (digits / "val" / "three").rename(digits / "val" / "3")
    assert "val has not the classes that were trained: ['3', 'three']" in result.output


def test_what_a_run_refuses(tmp_path: Path, run: Any) -> None:
    root = write_digits(tmp_path / "digits", 300)
    options = ("--model", "fastvit_t8", *SMALL)

    def said(*arguments: object) -> str:
        result = run("train", *arguments)
        assert result.exit_code == 2, result.output
        return " ".join(result.output.replace("│", " ").split())

    assert "batch-size is odd" in said(root, tmp_path / "a", "--batch-size", 3)
    assert "no model is named 'fastvit_t9': did you mean" in said(
        root, tmp_path / "a", *options, "--model", "fastvit_t9"
    )
    assert "has no folder 'train'" in said(root / "val", tmp_path / "b", *options)
    too_few = (*options, "--batch-size", 256)
    assert "train has fewer images than all processes take in one step" in said(
        root, tmp_path / "c", *too_few
    )
    assert not any((tmp_path / name).exists() for name in "abc")
    (root / "val" / "3").rename(root / "val" / "three")
    assert "val has not the classes that were trained: ['3', 'three'] differ" in said(
        root, tmp_path / "d", *options
    )
    (root / "train" / "four").mkdir()
    assert "Found no valid file for the classes four" in said(root, tmp_path / "d", *options)
    assert "--warmup-epochs leaves no epochs" in said(root, tmp_path / "d", "--epochs", 5)
    assert "--seed" in said(root, tmp_path / "d", *options, "--seed", -1)
    (tmp_path / "empty.pth").touch()
    assert "give --teacher" in said(
        root, tmp_path / "d", *options, "--teacher-checkpoint", tmp_path / "empty.pth"
    )


def test_a_loss_that_is_no_number_leaves_nothing_behind(tmp_path: Path, run: Any) -> None:
    root = write_digits(tmp_path / "digits", 300)
    wild = ("--model", "repvgg_a0", *SMALL, *SHORT, "--learning-rate", "1e30")
    result = run("train", root, tmp_path / "run", *wild)
    assert result.exit_code == 1
    (said,) = [line for line in result.output.splitlines() if "step" in line]
    assert re.fullmatch(r"the loss is (nan|inf) at step \d+: lower the learning rate", said)
    assert "Traceback" not in result.output
    assert not [*(tmp_path / "run").glob("step-*"), *(tmp_path / "run").glob("*.pth")]


def test_a_damaged_image_is_not_passed_over(tmp_path: Path, run: Any) -> None:
    root = write_digits(tmp_path / "digits", 300)
    damaged = next((root / "val" / "3").iterdir())
    damaged.write_text("no image")
    result = run("train", root, tmp_path / "run", "--model", "fastvit_t8", *SMALL, *SHORT)
    assert result.exit_code == 2
    assert damaged.name in result.output


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_an_image_that_is_cut_short_is_named(
    tmp_path: Path, example: Any, ending: str, workers: int
) -> None:
    evaluate = example("evaluate")
    file = tmp_path / "val" / "a" / f"0.{ending}"
    file.parent.mkdir(parents=True)
    Image.effect_noise((64, 64), 100).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    images = DataLoader(evaluate.read_images(tmp_path, "val", 32), num_workers=workers)
    with pytest.raises(typer.BadParameter) as raised:
        evaluate.predict([torch.nn.Flatten()], images, torch.device("cpu"))
    assert re.fullmatch(
        rf"{re.escape(str(file))} can't be read: image file is truncated.*", raised.value.message
    )


@pytest.fixture
def begun(tmp_path: Path, example: Any) -> Any:
    """The folder of a run that was stopped behind step 2, and what starts it again."""
    folder = tmp_path / "run"

    def begin() -> Any:
        accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        layer = torch.nn.Linear(2, 2)
        accelerator.prepare(layer, torch.optim.SGD(layer.parameters()))
        run = example("resumable").Run(folder, {"seed": 0}, accelerator)
        run.begin()
        return run

    first = begin()
    for step in (1, 2, 3):
        first.progress.step = step
        first.log(loss=1 / step)
        if step == 2:
            first.save()
    return folder, begin


def test_a_run_that_starts_again_keeps_its_files_whole(
    begun: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, again = begun
    was = {name: (folder / name).read_bytes() for name in ("recipe.json", "log.jsonl")}

    def disk_is_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", disk_is_full)
        with pytest.raises(OSError, match="No space"):
            again()
    assert was == {name: (folder / name).read_bytes() for name in was}
    again()
    assert [line["step"] for line in logged(folder)] == [1, 2]
    assert not [*folder.glob("*.partial")]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", disk_is_full)
        again()  # there is nothing to write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", b"{"),
        ("recipe.json", b"[]"),
        ("recipe.json", b"\xff"),
        ("recipe.json", None),
        ("log.jsonl", b"junk\n"),
        ("log.jsonl", b"[]\n"),
        ("log.jsonl", b'{"loss": 1}\n'),
        ("step-000000002/model.safetensors", b"cut"),
        ("step-000000002/model.safetensors", None),
        ("step-000000002/custom_checkpoint_0.pkl", b"garbage"),
        ("step-000000002/custom_checkpoint_0.pkl", None),
        ("step-000000002/optimizer.bin", b""),
        ("step-000000002/optimizer.bin", None),
        ("step-000000002/random_states_0.pkl", b"garbage"),
        ("step-000000002/random_states_0.pkl", pickle.dumps({}, 2)),
        ("step-000000002/random_states_0.pkl", None),
    ],
)
def test_a_run_whose_state_is_damaged_is_refused(
    begun: Any, name: str, content: bytes | None
) -> None:
    folder, again = begun
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(typer.BadParameter) as raised:
        again()
    assert str(folder / name.partition("/")[0]) in raised.value.message
    advice = "delete it to go on" if name == "log.jsonl" else "start anew in another folder"
    assert raised.value.message.endswith(advice)
    assert "\n" not in raised.value.message


def test_a_state_that_was_damaged_in_place_is_refused(begun: Any) -> None:
    """Where torch's own reader would not notice: in the numbers of a record."""
    folder, again = begun
    file = folder / "step-000000002" / "custom_checkpoint_0.pkl"
    with zipfile.ZipFile(file) as archive:
        record = next(each for each in archive.infolist() if each.filename.endswith("data.pkl"))
    content = bytearray(file.read_bytes())
    content[content.index(b"step", record.header_offset)] ^= 1
    file.write_bytes(content)
    with pytest.raises(typer.BadParameter, match="is damaged"):
        again()


def test_what_the_machine_lacks_is_no_damage(begun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(Accelerator, "load_state", full)
    with pytest.raises(torch.OutOfMemoryError, match="no memory is left"):
        begun[1]()


def test_an_empty_state_is_refused(begun: Any) -> None:
    folder, again = begun
    shutil.rmtree(folder / "step-000000002")
    (folder / "step-000000002").mkdir()
    with pytest.raises(typer.BadParameter, match="start anew in another folder"):
        again()


class Hostile:
    """Pickled, it asks for a function to be called."""

    def __reduce__(self) -> Any:
        return print, ("called",)


@pytest.mark.parametrize("content", ["", "text", "hostile", "others", "list"])
def test_a_teachers_file_that_can_not_be_taken_is_named(
    tmp_path: Path, example: Any, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train, file = example("train"), tmp_path / "teacher.pth"
    contents: dict[str, Any] = {
        "hostile": Hostile(),
        "others": torch.nn.Linear(2, 2).state_dict(),
        "list": [1],
    }
    if content in contents:
        torch.save(contents[content], file)
    else:
        file.write_text(content)
    fields: dict[str, Any] = dict.fromkeys(train.Recipe.__dataclass_fields__)
    fields |= {"teacher": "mobilenetv3_small_050", "teacher_checkpoint": str(file)}
    with pytest.raises(typer.BadParameter) as raised:
        train.create_teacher(train.Recipe(**fields), 10)
    assert raised.value.message == (
        f"--teacher-checkpoint: {file} holds no plain state dict of a mobilenetv3_small_050 "
        "with 10 classes"
    )
    assert "called" not in capsys.readouterr().out


def test_weights_alone_tell_no_classes_whatever_the_file_is_called(
    tmp_path: Path, example: Any
) -> None:
    file = tmp_path / "own.pth"
    save_file(torch.nn.Linear(2, 2).state_dict(), file)
    example("evaluate").require_classes_of(file, ["cat", "dog"])


def test_classes_in_a_file_are_looked_at(tmp_path: Path, example: Any) -> None:
    require, file = example("evaluate").require_classes_of, tmp_path / "model.pth"

    def refused(classes: Any) -> str:
        torch.save({"state_dict": {}, "classes": classes}, file)
        with pytest.raises(typer.BadParameter) as raised:
            require(file, ["a", "b"])
        return raised.value.message

    assert refused(["b", "a"]) == "val has the classes that were trained in another order"
    assert refused(("b", "a")) == "val has the classes that were trained in another order"
    assert "classes that were trained: ['b', 'c'] differ" in refused(["a", "c"])
    for wrong in (5, torch.zeros(2), [0, 1], None):
        assert refused(wrong) == f"'classes' in {file} is no list of names: leave it out"
    for right in (["a", "b"], ("a", "b")):
        torch.save({"classes": right}, file)
        require(file, ["a", "b"])
    torch.save({}, file)
    require(file, ["a", "b"])


def test_published_weights_are_for_their_own_classes(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_digits(tmp_path / "digits", 300)
    file = tmp_path / "weights.pth"
    model = randomised(fastvit_models.create_model("fastvit_t8").eval(), torch.randn(1, 3, 64, 64))
    torch.save(model.state_dict(), file)
    monkeypatch.setattr("fastvit_models.hub.fetch", lambda name: file)
    result = run("evaluate", root, "--model", "fastvit_t8", *SMALL)
    assert result.exit_code == 2
    assert "val has 10 classes, and the published weights know 1000" in result.output
