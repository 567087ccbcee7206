"""Every scheme that the modules here list, compiled: its operators, and what stays with why."""

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping

import pytest
from rich.console import Console
from rich.table import Table

import reparam
import tests.schemes
from tests.fused import operators
from tests.schemes.scheme import Scheme, compiled, example, same_function

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def all_schemes() -> list[Scheme]:
    """The `SCHEMES` of every module of the package."""
    found: list[Scheme] = []
    for module in pkgutil.iter_modules(tests.schemes.__path__):
        if module.name != "test_table":
            imported = importlib.import_module(f"tests.schemes.{module.name}")
            found += getattr(imported, "SCHEMES", [])
    return found


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def shortfall(scheme: Scheme, found: Counter[str], report: reparam.Report) -> str:
    """How the result falls short of what the scheme promises; nothing if it does not."""
    lines = [str(remark) for remark in report.missed]
    reasons = Counter(f"{remark.rule}: {remark.message}" for remark in report.missed)
    told = "; ".join(f"{reason} ({times}×)" for reason, times in reasons.items()) or "nothing"
    if scheme.expected is not None and found != scheme.expected:
        return f"expected {listed(scheme.expected)}; declined: {told}"
    silent = [part for part in scheme.declined if not any(part in line for line in lines)]
    return f"no remark says {'; '.join(silent)}; declined: {told}" if silent else ""


def test_table() -> None:
    """Each scheme reaches its inference form; of what must stay, the report tells the reason."""
    table = Table("scheme", "before", "after", "remark", title="Schemes")
    short: list[str] = []
    for scheme in all_schemes():
        x = example(*scheme.shape)
        model, fused = compiled(scheme.model(), x)
        same_function(model, fused, x.double())
        found, report = operators(fused), reparam.report(fused)
        lack = shortfall(scheme, found, report)
        remark = lack or "; ".join(scheme.declined) or "minimal"
        table.add_row(scheme.name, listed(report.before.operators), listed(found), remark)
        if lack:
            short.append(f"{scheme.name}: {lack}")
    Console(width=150).print(table)
    assert not short, "\n".join(short)


def test_every_scheme_promises_something() -> None:
    schemes = all_schemes()
    assert len({scheme.name for scheme in schemes}) == len(schemes)
    assert all(scheme.expected is not None or scheme.declined for scheme in schemes)
