"""What all commands share: how work is shown and how it ends, and how its result is."""

import itertools
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import typer
from rich.console import Console

from reparam.errors import ExportError, ReparamError, VerificationError
from reparam.export_graph import extra
from reparam.report import Remark, Report, fused_table
from reparam.tables import not_fused_table

FAILED = 1
DIFFERENT = 3

PIPED_WIDTH = 140
"""Columns of what is written to a file or to another program."""


@contextmanager
def work(as_json: bool) -> Generator[Callable[[str], None]]:
    """Long work: what is under way is shown on a terminal, and errors end it in one sentence.

    Yields:
        A function that says what is under way.
    """
    if not sys.warnoptions:  # third parties' warnings; `python -W` shows them
        warnings.simplefilter("ignore")
    progress = Console(stderr=True, quiet=as_json, markup=False, highlight=False)
    try:
        # Stdout is for the result: what a model prints while it is built or run goes elsewhere.
        with redirect_stdout(sys.stderr), progress.status("starting") as status:
            yield status.update
    except (ReparamError, SystemExit) as error:  # what a user's code raises to end a script
        exited = isinstance(error, SystemExit)
        told = f"what was run ended with SystemExit({error})" if exited else str(error)
        if as_json:
            described = {"type": type(error).__name__, "message": told}
            typer.echo(json.dumps({"error": described}, indent=2))
        else:
            typer.echo(f"error: {told}", err=True)
        different = (error, error.__cause__)
        code = DIFFERENT if any(isinstance(e, VerificationError) for e in different) else FAILED
        raise typer.Exit(code) from None


def counted(source: str, say: Callable[[str], None]) -> Callable[[Remark], None]:
    """What says how many rewrites of a source there are, told of each remark."""
    rewrites = itertools.count(1)

    def listen(remark: Remark) -> None:
        if remark.kind == "applied":
            say(f"fusing {source}: {next(rewrites)} rewrites")

    return listen


def check_output(path: Path) -> None:
    """Find out before the long work whether its result can be written.

    Raises:
        ExportError: if the file could not be written.
        MissingExtraError: if what writes it is not installed.
    """
    target = path.resolve()
    if path.suffix != ".onnx":
        raise ExportError(f"{path} is no ONNX file by its name: end it in .onnx")
    if not target.parent.is_dir():
        raise ExportError(f"can't write {path}: there is no folder {target.parent}")
    if target.exists() and not (target.is_file() and os.access(target, os.W_OK)):
        raise ExportError(f"can't write {path}: it is not a file that can be replaced")
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise ExportError(f"can't write {path}: {error.strerror}") from error
    for module in ("onnx", "onnxscript", "onnx_graphsurgeon", "onnxruntime"):
        extra(module)


def console() -> Console:
    """Where tables go; wide enough for names where nobody has said how wide it is."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPED_WIDTH if piped else None, markup=False, highlight=False)


def print_account(page: Console, account: Report) -> None:
    """Print what was fused, what was not and why, in every place."""
    page.print(account.operator_table())
    if account.verification.whole_model is not None:
        page.print(f"whole model: {account.verification.whole_model}")
    if account.applied:
        page.print(fused_table(account.applied))
    if account.missed:
        page.print(not_fused_table(account.missed))
    for remark in account.analysis:
        page.print(remark)
