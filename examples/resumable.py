"""The folder of a training run: what it takes to go on after a kill, and the log."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from accelerate import Accelerator


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
            self._settings.write_text(json.dumps(dict(self._recipe), indent=2))
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
