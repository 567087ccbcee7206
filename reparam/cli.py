"""The command line: `reparam compile`, `reparam explain` and `reparam check-pass`.

Exit codes: 0, done; 1, it could not be done, said in one sentence on stderr; 2, the command was
not understood; 3, the result does not compute what the model computes, or the pass is wrong; 130,
interrupted.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, cast

import typer
from torch import nn

from reparam.cli_files import compile_file, explain_file
from reparam.compiler import compile as compile_model
from reparam.export import DEFAULT_OPSET, LOWEST_OPSET, OnnxExport, export_onnx
from reparam.report import Report, report
from reparam.sources import KINDS, Source, is_onnx, resolve
from reparam.tables import onnx_table
from reparam.terminal import DIFFERENT, check_output, console, counted, print_account, work

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
        int | None,
        typer.Option(
            "--opset",
            min=LOWEST_OPSET,
            help=f"Version of the ONNX operators. Default: {DEFAULT_OPSET}; a file keeps its own.",
        ),
    ] = None,
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
    if is_onnx(source):
        _refuse(checkpoint=checkpoint, input_size=size, opset=opset)
        compile_file(source, output, verify, as_json)
        return
    with work(as_json) as say:
        check_output(output)
        found, fused = _fuse(source, checkpoint, size, verify, say)
        say(f"exporting {source} and checking it in ONNX Runtime")
        exported = export_onnx(fused, output, found.example_input, opset=opset)
    if as_json:
        _print_json(found, report(fused), exported)
        return
    page = console()
    page.print(_heading(found))
    page.print(report(fused))
    page.print(onnx_table(exported))


@app.command(epilog=EXIT_CODES)
def explain(
    source: SourceArgument,
    checkpoint: CheckpointOption = None,
    input_size: InputSizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fuse a model, and tell what was fused, what was not and why. Nothing is written."""
    size = _parse_size(input_size)
    if is_onnx(source):
        _refuse(checkpoint=checkpoint, input_size=size)
        explain_file(source, as_json)
        return
    with work(as_json) as say:
        found, fused = _fuse(source, checkpoint, size, True, say)
    account = report(fused)
    if as_json:
        _print_json(found, account)
        return
    page = console()
    page.print(_heading(found))
    print_account(page, account)


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
    with work(as_json) as say:
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


def _refuse(**options: object) -> None:
    """Refuse options that are for models, where the source is a file.

    Raises:
        typer.BadParameter: if one is given.
    """
    for name, value in options.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter("it does not go with an ONNX file", param_hint=option)


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
    heard = counted(source, say)
    fused = compile_model(found.model, found.example_input, verify=verify, remarks=heard)
    return found, fused


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
