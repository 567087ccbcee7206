"""The commands on a model that exists only as an ONNX file."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from reparam.onnx.compiling import OnnxCompilation, compile_onnx
from reparam.tables import compiled_table
from reparam.terminal import check_output, console, counted, print_account, work


def compile_file(source: str, output: Path, verify: bool, as_json: bool) -> None:
    """Compile a file into another one."""
    with work(as_json) as say:
        check_output(output)
        say(f"reading {source}")
        made = compile_onnx(source, output, verify=verify, remarks=counted(source, say))
    if as_json:
        _print_json(source, made, onnx=asdict(made))
        return
    page = console()
    page.print(source)
    page.print(made.report)
    page.print(compiled_table(made))


def explain_file(source: str, as_json: bool) -> None:
    """Compile a file, tell what became of it, and keep nothing."""
    with work(as_json) as say, tempfile.TemporaryDirectory() as folder:
        say(f"reading {source}")
        made = compile_onnx(source, Path(folder) / "fused.onnx", remarks=counted(source, say))
    if as_json:
        _print_json(source, made)
        return
    page = console()
    page.print(source)
    print_account(page, made.report)


def _print_json(source: str, made: OnnxCompilation, **more: dict[str, Any]) -> None:
    account = json.loads(made.report.to_json())
    for part in more.values():
        part.pop("report")
    typer.echo(json.dumps({"source": source, "report": account, **more}, indent=2, default=str))
