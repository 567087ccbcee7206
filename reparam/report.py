"""What a compile did and did not do, as plain data that travels with the result."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from typing import Any, Literal, cast

from rich.console import Console
from rich.table import Column, Table
from torch import fx, nn

from reparam import known
from reparam.errors import ReparamError
from reparam.proof import CLAIM, Proof

ATTRIBUTE = "reparam_report"
"""Where a compiled model keeps its report, as a plain dictionary."""

Kind = Literal["applied", "missed", "analysis"]


@dataclass(frozen=True)
class Remark:
    """One thing that a pass did, or did not do and why.

    Attributes:
        kind: "applied"; "missed", for what matched but was declined; "analysis", for the rest.
        rule: the name of the pass.
        call: the module or call that it is about.
        message: what was done, or the reason why not.
        blocker: the call that stands in the way.
        error: of an applied rewrite that was checked, the largest difference in float64, relative
            to the largest output.
        proof: what is proven of it, where that was asked for.
    """

    kind: Kind
    rule: str
    call: str
    message: str
    blocker: str | None = None
    error: float | None = None
    proof: Proof | None = None

    def inside(self, path: str) -> "Remark":
        """The same remark about a part of a model, which is at that path."""
        call = f"{path}.{self.call}".rstrip(".")
        blocker = f"{path}.{self.blocker}" if self.blocker else None
        message = f"in {path}: {self.message}" if self.kind == "applied" else self.message
        return replace(self, call=call, message=message, blocker=blocker)

    def __str__(self) -> str:
        """One line."""
        blocker = f" ({self.blocker})" if self.blocker and self.blocker != self.call else ""
        call = f"{self.call}: " if self.call else ""
        return f"{self.rule}: {call}{self.message}{blocker}"


@dataclass(frozen=True)
class Counts:
    """The size of a graph.

    Attributes:
        operators: how often each runs, by the name of the module, function or method.
        parameters: elements of all parameters that the graph reads.
    """

    operators: Mapping[str, int]
    parameters: int

    @property
    def total(self) -> int:
        """The number of calls."""
        return sum(self.operators.values())

    def with_operators(self, other: "Counts") -> "Counts":
        """Both, as one graph of so many parameters."""
        return replace(self, operators=dict(Counter(self.operators) + Counter(other.operators)))


@dataclass(frozen=True)
class Verification:
    """How far a result was checked.

    Attributes:
        mode: "unverified"; "float64" where each rewrite was checked; "proof" where, moreover, a
            proof of each was tried.
        checked: the number of rewrites that were.
        largest_error: of these, relative to the largest output.
        whole_model: what `reparam.verify` said, if there were example inputs.
        proven: the number of rewrites that are proven over a finite field.
        seconds, seconds_proving: what the compile took, and the proofs of that; both 0.0 where
            none was tried.
    """

    mode: str
    checked: int
    largest_error: float
    whole_model: str | None = None
    proven: int = 0
    seconds: float = 0.0
    seconds_proving: float = 0.0


@dataclass(frozen=True)
class Report:
    """The account of one compile. `str()` is for reading, `to_json()` for programs.

    Attributes:
        applied: what was done.
        missed: what was not, and why.
        analysis: what the result holds for.
        before: operators and parameters of the model.
        after: those of the result.
        verification: what was checked, and how.
        axes: how many axes each input has, by the example inputs.
    """

    applied: tuple[Remark, ...]
    missed: tuple[Remark, ...]
    analysis: tuple[Remark, ...]
    before: Counts
    after: Counts
    verification: Verification
    axes: dict[str, int] = field(default_factory=dict[str, int])

    def to_json(self) -> str:
        """The whole report as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        """Tables of operators, of what was done and of what was not."""
        text = StringIO()
        Console(file=text, width=110).print(self)
        return text.getvalue()

    def __rich_console__(self, console: Console, options: Any) -> Any:
        """The tables, for rich."""
        yield self.operator_table()
        yield f"{self._verified()}; made: {len(self.applied)}, declined: {len(self.missed)}."
        if self.applied:
            yield fused_table(self.applied)
        if self.verification.mode == "proof":
            yield f"Proven is: {CLAIM}."
            yield self.proof_table()
        if self.missed:
            yield self.missed_table()
        for remark in self.analysis:
            yield str(remark)

    def operator_table(self) -> Table:
        """Operators and parameters, before and after."""
        table = Table("operator", title="Operators")
        for column in ("before", "after"):
            table.add_column(column, justify="right")
        names = sorted({*self.before.operators, *self.after.operators}, key=str.lower)
        for name in names:
            counts = (self.before.operators.get(name, 0), self.after.operators.get(name, 0))
            table.add_row(name, *map(str, counts))
        table.add_section()
        table.add_row("all", str(self.before.total), str(self.after.total))
        table.add_row("parameters", f"{self.before.parameters:,}", f"{self.after.parameters:,}")
        return table

    def missed_table(self) -> Table:
        """What was declined, and why; the same reason once, with the number of places.

        Of a reason with figures, which stand behind a colon, the first place's are shown.
        """
        table = Table("pass", "reason", "where", title="Declined")
        groups: dict[tuple[str, str], list[Remark]] = {}
        for remark in self.missed:
            reason = remark.message.partition(":")[0]
            groups.setdefault((remark.rule, reason), []).append(remark)
        for (rule, _), remarks in groups.items():
            more = f" and {len(remarks) - 1} more" if len(remarks) > 1 else ""
            table.add_row(rule, remarks[0].message, f"{remarks[0].call}{more}")
        return table

    def _verified(self) -> str:
        found = self.verification
        whole = f"; whole model: {found.whole_model}" if found.whole_model else ""
        if found.mode == "unverified":
            return f"rewrites unverified{whole}"
        largest = f", largest relative error {found.largest_error:.1e} in float64"
        error = largest if found.checked else ""
        return f"rewrites checked: {found.checked}{error}{whole}{self._proven()}"

    def _proven(self) -> str:
        found = self.verification
        if found.mode != "proof":
            return ""
        rest = found.seconds - found.seconds_proving
        return (
            f"; {found.proven} of them proven over a finite field, which took "
            f"{found.seconds_proving:.1f} s beside {rest:.1f} s for all else"
        )

    def proof_table(self) -> Table:
        """What is proven of each rewrite, by pass; what is alike in several blocks, once."""
        alike: dict[tuple[str, ...], list[Proof]] = {}
        for remark in self.applied:
            if remark.proof is not None:
                proof = remark.proof
                told = [_pattern(p) for p in proof.premises] if proof.proven else [str(proof)]
                alike.setdefault((remark.rule, *told), []).append(proof)
        table = Table("pass", "times", "error probability", "premises", title="Proven")
        for (rule, *told), proofs in sorted(alike.items()):
            chance = f"{max(proof.probability for proof in proofs):.0e}"
            table.add_row(rule, str(len(proofs)), chance, "\n".join(told) or "none")
        return table


def count(root: nn.Module, graph: fx.Graph, lookup: Callable[[str], nn.Module]) -> Counts:
    """Count the calls of a graph, and the parameters of the model whose modules it calls."""
    operators: Counter[str] = Counter()
    asserting = known.asserted(graph)
    for node in graph.nodes:
        if node in asserting:
            continue
        if node.op == "call_module":
            operators[type(lookup(str(node.target))).__name__] += 1
        elif node.op in ("call_function", "call_method"):
            name = getattr(node.target, "__name__", None) or str(node.target)
            operators[name.removeprefix("__").removesuffix("__")] += 1
    parameters = sum(parameter.numel() for parameter in root.parameters())
    return Counts(dict(sorted(operators.items())), parameters)


def attach(module: nn.Module, report: Report) -> None:
    """Keep a report with a model, as plain data that survives pickling without this library."""
    data = asdict(report)
    setattr(module, ATTRIBUTE, data)
    if isinstance(module, fx.GraphModule):
        module.meta.setdefault("_user_preserved_attributes", {})[ATTRIBUTE] = data


def report(fused: nn.Module) -> Report:
    """The report of a compiled model: what was fused, what was not and why, sizes, checks.

    Raises:
        ReparamError: if the model does not come from `reparam.compile`.
    """
    data: dict[str, Any] | None = getattr(fused, ATTRIBUTE, None)
    if data is None:
        raise ReparamError(
            f"this {type(fused).__name__} has no report; only what reparam.compile returns has one"
        )
    return _rebuilt(data)


def axes_told(model: nn.Module, now: Counts) -> dict[str, int]:
    """How many axes the inputs of a compiled model have, by its report; of another, nothing.

    Nor of one that has other operators now than when it was compiled.
    """
    kept = vars(model).get(ATTRIBUTE)
    data = cast("dict[str, Any]", kept) if isinstance(kept, dict) else {}
    same = data.get("after", {}).get("operators") == now.operators
    return data.get("axes", {}) if same else {}


def _rebuilt(data: dict[str, Any]) -> Report:
    applied, missed, analysis = (
        tuple(map(_remark, data[kind])) for kind in ("applied", "missed", "analysis")
    )
    before, after = Counts(**data["before"]), Counts(**data["after"])
    verification = Verification(**data["verification"])
    return Report(applied, missed, analysis, before, after, verification, data.get("axes", {}))


def _remark(data: dict[str, Any]) -> Remark:
    proof = data.get("proof")
    plain: dict[str, Any] = {**data, "proof": None}
    remark = Remark(**plain)
    return remark if proof is None else replace(remark, proof=Proof(**proof))


def fused_table(applied: Sequence[Remark]) -> Table:
    """What was done, by pass; what was done alike in several blocks, once."""
    alike: dict[tuple[str, str], list[str]] = {}
    for remark in applied:
        alike.setdefault((remark.rule, _pattern(remark.message)), []).append(remark.message)
    table = Table("pass", Column("what", overflow="fold"), title="Fused")
    table.add_column("times", justify="right")
    for rule, group in itertools.groupby(sorted(alike.items()), lambda item: item[0][0]):
        for (_, pattern), messages in group:
            what = pattern if len(messages) > 1 else messages[0]
            table.add_row(rule, what, str(len(messages)))
        table.add_section()
    return table


def _pattern(message: str) -> str:
    """A message without the numbers in dotted names: `stages.*.blocks.*.conv`, `blocks.*.mul_*`."""
    return re.sub(r"(?<=\.)\d+\b|\b\d+(?=\.)|(?<=_)\d+\b", "*", message)
