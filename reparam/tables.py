"""The tables that the command line shows beside the report's own."""

from collections.abc import Mapping, Sequence

from rich.table import Column, Table

from reparam.export import OnnxExport
from reparam.onnx.compiling import OnnxCompilation
from reparam.report import Remark


def not_fused_table(missed: Sequence[Remark]) -> Table:
    """What was not done, why, and in every place."""
    places: dict[tuple[str, str], list[str]] = {}
    for remark in missed:
        blocker = remark.blocker if remark.blocker not in (None, remark.call) else None
        place = f"{remark.call} (blocked by {blocker})" if blocker else remark.call
        places.setdefault((remark.rule, remark.message), []).append(place)
    fold = [Column(name, overflow="fold") for name in ("why not", "where")]
    table = Table("pass", *fold, title="Not fused", show_lines=True)
    for (rule, message), where in places.items():
        table.add_row(rule, message, "\n".join(where))
    return table


def _file_table(made: OnnxExport | OnnxCompilation, nodes: Mapping[str, int]) -> Table:
    table = Table(Column("ONNX file", no_wrap=True), Column(str(made.path), overflow="fold"))
    table.add_row("size", f"{made.bytes:,} bytes")
    table.add_row("opset", str(made.opset))
    counts = ", ".join(f"{count} {name}" for name, count in sorted(nodes.items()))
    table.add_row("nodes", f"{sum(nodes.values())}: {counts}")
    return table


def compiled_table(made: OnnxCompilation) -> Table:
    """What a compiled file is, and how far it was checked."""
    table, error = _file_table(made, made.report.after.operators), made.equivalence
    if error is not None:
        table.add_row(
            "largest error",
            f"{error.max_fused:.1e} in the compiled file, {error.max_model:.1e} in the original "
            f"(against float64; the largest output is {error.maximum:.1e})",
        )
    table.add_row("checked at", ", ".join(made.checked) or "no size")
    return table


def onnx_table(exported: OnnxExport) -> Table:
    """What an exported file is, and how far it was checked."""
    table, error = _file_table(exported, exported.nodes), exported.equivalence
    for name, axes in exported.dynamic.items():
        table.add_row("open axes", f"{name}: {', '.join(axes.values()) or 'none'}")
    table.add_row(
        "largest error",
        f"{error.max_fused:.1e} in ONNX Runtime, {error.max_model:.1e} in PyTorch "
        f"(against float64; the largest output is {error.maximum:.1e})",
    )
    table.add_row("checked at", ", ".join(exported.checked))
    for remark in exported.remarks:
        table.add_row("remark", remark)
    return table
