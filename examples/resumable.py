"""The folder of a training run: what it takes to go on after a kill, and the log."""

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from accelerate import Accelerator
from accelerate.utils import load

ANEW = "start anew in another folder"
"""What is left to do where a run can't go on to the same weights."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and only where that changes something."""
    if not path.exists() or path.read_bytes() != content:
        partial = path.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(path)


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

    def __init__(self, folder: Path, recipe: Mapping[str, Any], accelerator: Accelerator) -> None:
        """Refuse a folder that holds a run by another recipe."""
        self.folder, self._recipe, self._accelerator = folder, recipe, accelerator
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.progress)
        if self._settings.exists():
            was = self._begun_with()
            names = [name for name, value in self._recipe.items() if was.get(name) != value]
            if names:
                raise typer.BadParameter(f"{folder} holds a run with other {', '.join(names)}")
        elif self._states():
            raise typer.BadParameter(f"{self._settings} is missing: {ANEW}")

    def begin(self) -> None:
        """Load the latest state, if there is one, and forget what was logged after it."""
        if states := self._states():
            self._load(states[-1])
            self._accelerator.print(f"going on from step {self.progress.step}")
        if self._accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._settings, json.dumps(dict(self._recipe), indent=2).encode())
            write_whole(self._log, b"".join(self._logged()))

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

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _begun_with(self) -> dict[str, Any]:
        """The recipe that the folder says its run has."""
        try:
            was = json.loads(self._settings.read_bytes())
        except ValueError:
            was = None
        if not isinstance(was, dict):
            raise typer.BadParameter(f"{self._settings} is damaged: {ANEW}")
        return was

    def _load(self, state: Path) -> None:
        """Load a state, of which no part may be missing."""
        random = state / f"random_states_{self._accelerator.process_index}.pkl"
        try:
            if "torch_manual_seed" not in load(random):  # accelerate would go on without it
                raise KeyError(random.name)
            for part in (*state.glob("*.bin"), *state.glob("*.pkl")):
                with zipfile.ZipFile(part) as archive:  # torch.load compares no checksums
                    if archive.testzip() is not None:
                        raise zipfile.BadZipFile(part.name)
            self._accelerator.load_state(str(state))
        except (MemoryError, PermissionError, torch.OutOfMemoryError):
            raise  # of the machine, not of the state: it may be read another time
        except Exception as error:  # each part has its own way to be damaged
            name = type(error).__name__
            raise typer.BadParameter(f"{state} is damaged ({name}): {ANEW}") from error

    def _logged(self) -> Iterator[bytes]:
        """The lines up to the step that is done, but one that a kill has cut short."""
        lines = self._log.read_bytes().splitlines(True) if self._log.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                if line.endswith(b"\n") and json.loads(line)["step"] <= self.progress.step:
                    yield line
            except (ValueError, TypeError, KeyError):
                raise typer.BadParameter(
                    f"line {number} of {self._log} is damaged: delete it to go on"
                ) from None
