"""The command line: `reparam compile`, `reparam explain` and `reparam check-pass`.

Exit codes: 0, done; 1, it could not be done, said in one sentence on stderr; 2, the command was
not understood; 3, the result does not compute what the model computes, or the pass is wrong; 130,
interrupted.
"""

import importlib.metadata
import itertools
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from torch import nn

from reparam.compiler import compile as compile_model
from reparam.errors import ExportError, ReparamError, VerificationError
from reparam.export import DEFAULT_OPSET, LOWEST_OPSET, OnnxExport, export_onnx
from reparam.export_graph import extra
from reparam.report import Remark, Report, fused_table, report
from reparam.sources import KINDS, Source, resolve
from reparam.tables import not_fused_table, onnx_table

FAILED = 1
DIFFERENT = 3

PIPED_WIDTH = 140
"""Columns of what is written to a file or to another program."""

EXIT_CODES = """
Exit codes: 0, done; 1, it could not be done; 2, the command was not understood; 3, the result does
not compute what the model computes, or the pass is wrong; 130, interrupted.
"""

app = typer.Typer(
    help="Fuse what a PyTorch model computes in several operators into fewer, and check it.",
    epilog=EXIT_CODES,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help=f"The model: {KINDS}.")]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FILE", help="Weights for a registered or timm model."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, and no tables.")]
InputSizeOption = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        metavar="C,H,W",
        help="Size of one input, without the batch. Default: the model's own, or 3,256,256.",
    ),
]


def main() -> None:
    """Run the command line: the console script."""
    # A terminal that lacks a character gets a question mark, not a failure after the work is done.
    cast(TextIOWrapper, sys.stdout).reconfigure(errors="replace")
    app(prog_name="reparam")


@app.command("compile", epilog=EXIT_CODES)
def compile_command(
    source: SourceArgument,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The .onnx file to write.")
    ],
    checkpoint: CheckpointOption = None,
    input_size: InputSizeOption = None,
    opset: Annotated[
        int, typer.Option("--opset", min=LOWEST_OPSET, help="Version of the ONNX operators.")
    ] = DEFAULT_OPSET,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Check each rewrite and the fused model. (The file is checked in any case.)",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Fuse a model and write it as an ONNX file, which is run and compared before it is kept."""
    size = _parse_size(input_size)
    with _work(as_json) as say:
        _check_output(output)
        found, fused = _fuse(source, checkpoint, size, verify, say)
        say(f"exporting {source} and checking it in ONNX Runtime")
        exported = export_onnx(fused, output, found.example_input, opset=opset)
    if as_json:
        _print_json(found, report(fused), exported)
        return
    console = _console()
    console.print(_heading(found))
    console.print(report(fused))
    console.print(onnx_table(exported))


@app.command(epilog=EXIT_CODES)
def explain(
    source: SourceArgument,
    checkpoint: CheckpointOption = None,
    input_size: InputSizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fuse a model, and tell what was fused, what was not and why. Nothing is written."""
    size = _parse_size(input_size)
    with _work(as_json) as say:
        found, fused = _fuse(source, checkpoint, size, True, say)
    account = report(fused)
    if as_json:
        _print_json(found, account)
        return
    console = _console()
    console.print(_heading(found))
    console.print(account.operator_table())
    if account.verification.whole_model is not None:
        console.print(f"whole model: {account.verification.whole_model}")
    if account.applied:
        console.print(fused_table(account.applied))
    if account.missed:
        console.print(not_fused_table(account.missed))
    for remark in account.analysis:
        console.print(remark)


@app.command("check-pass", epilog=EXIT_CODES)
def check_pass_command(
    name: Annotated[str, typer.Argument(metavar="PASS", help="The pass: package.module:name.")],
    max_examples: Annotated[
        int | None, typer.Option(min=1, help="How many graphs are drawn. Default: the profile's.")
    ] = None,
    min_fired: Annotated[
        int | None, typer.Option(min=0, help="On how many the pass has to fire. Default: 1 %.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="For other graphs than at every run.")
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE:FACTORY", help="A module of yours to draw too; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a pass on generated graphs. If it is wrong, print a short program that shows it."""
    with _work(as_json) as say:
        from reparam.testing.command import checked

        say(f"checking {name}")
        verdict = checked(name, max_examples, min_fired, seed, block or [])
    if as_json:
        typer.echo(json.dumps(asdict(verdict), indent=2))
    else:
        typer.echo(
            verdict.text if verdict.right else f"error: {verdict.text}", err=not verdict.right
        )
        typer.echo(verdict.program, nl=False)
    if not verdict.right:
        raise typer.Exit(DIFFERENT)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"reparam {importlib.metadata.version('reparam')}")
        raise typer.Exit


def _parse_size(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(
            f"{text!r} is no size such as 3,256,256", param_hint="--input-size"
        )
    return tuple(map(int, parts))


@contextmanager
def _work(as_json: bool) -> Generator[Callable[[str], None]]:
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


def _check_output(path: Path) -> None:
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


def _fuse(
    source: str,
    checkpoint: Path | None,
    size: tuple[int, ...] | None,
    verify: bool,
    say: Callable[[str], None],
) -> tuple[Source, nn.Module]:
    say(f"building {source}")
    found = resolve(source, checkpoint=checkpoint, input_size=size)
    say(f"fusing {source}")
    rewrites = itertools.count(1)

    def listen(remark: Remark) -> None:
        if remark.kind == "applied":
            say(f"fusing {source}: {next(rewrites)} rewrites")

    fused = compile_model(found.model, found.example_input, verify=verify, remarks=listen)
    return found, fused


def _console() -> Console:
    """Where tables go; wide enough for names where nobody has said how wide it is."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPED_WIDTH if piped else None, markup=False, highlight=False)


def _heading(found: Source) -> str:
    weights = "; weights are random: no checkpoint given" if found.random_weights else ""
    return f"{found.name}, input {'×'.join(map(str, found.example_input.shape))}{weights}"


def _print_json(found: Source, account: Report, exported: OnnxExport | None = None) -> None:
    result: dict[str, object] = {
        "source": found.name,
        "input_size": list(found.example_input.shape[1:]),
        "random_weights": found.random_weights,
        "report": json.loads(account.to_json()),
    }
    if exported is not None:
        result["onnx"] = asdict(exported)
    typer.echo(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
