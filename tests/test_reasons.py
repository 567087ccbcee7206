"""Each reason for which a pass or a law declines is asserted by a test.

A pass's by its own tests, a law's by any.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
LAWS = (
    "layout",
    "algebra",
    "composition",
    "operator_laws",
    "flattened",
    "terms",
    "expansion",
    "region",
    "prospect",
)
SOURCES = [
    *sorted((ROOT / "passes").glob("*.py")),
    *(ROOT / "reparam" / f"{law}.py" for law in LAWS),
]
Functions = dict[str, ast.FunctionDef]


class Reason(NamedTuple):
    """A reason, or of one that says what it met, the longest piece that is always the same."""

    text: str
    whole: bool

    def asserted_by(self, string: str) -> bool:
        return string == self.text if self.whole else self.text in string


def functions_in(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def reasons_in(tree: ast.AST, known: Functions) -> Iterator[Reason]:
    """The reason of each `require` and `Declined`; `known` functions are those that make some."""
    for function in functions_in(tree):
        for call in ast.walk(function):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            name = call.func.id
            if name in ("require", "Declined"):
                yield from resolved(call.args[name == "require"], function, known)


def resolved(reason: ast.expr, function: ast.FunctionDef, known: Functions) -> Iterator[Reason]:
    """What an expression in a function can say; nothing where it only hands a reason on."""
    match reason:
        case ast.Constant(str(text)):
            yield Reason(text, whole=True)
        case ast.JoinedStr(parts):
            pieces = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
            yield Reason(max(pieces, key=len), whole=False)
        case ast.IfExp(body=one, orelse=other):
            yield from resolved(one, function, known)
            yield from resolved(other, function, known)
        case ast.Name(name) if assigned := list(assignments(name, function)):
            for said in assigned:
                yield from resolved(said, function, known)
        case ast.Call(ast.Name(name)) if name in known:
            for node in ast.walk(known[name]):
                if isinstance(node, ast.Return) and node.value is not None:
                    yield from resolved(node.value, known[name], known)
        case ast.Attribute(attr="reason"):
            return
        case _:
            yield Reason(f"{ast.unparse(reason)}, which is not understood", whole=True)


def assignments(name: str, function: ast.FunctionDef) -> Iterator[ast.expr]:
    """What a local variable is assigned."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]:
            yield node.value


def strings_in(tree: ast.AST) -> Iterator[str]:
    """All strings but docstrings."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


@cache
def strings_of(path: Path) -> frozenset[str]:
    return frozenset(strings_in(ast.parse(path.read_text())))


def files_that_test(source: Path) -> list[Path]:
    if source.parent.name == "passes":
        return sorted((ROOT / "tests" / "passes").glob(f"test_{source.stem}*.py"))
    return [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]


def every_reason() -> Iterator[tuple[Path, Reason]]:
    trees = {source: ast.parse(source.read_text()) for source in SOURCES}
    known = {function.name: function for t in trees.values() for function in functions_in(t)}
    for source, tree in trees.items():
        for reason in dict.fromkeys(reasons_in(tree, known)):
            yield source, reason


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param(*found, id=f"{found[0].stem}: {found[1].text.strip()}")
        for found in every_reason()
    ],
)
def test_reason_is_asserted(source: Path, reason: Reason) -> None:
    strings = {text for path in files_that_test(source) for text in strings_of(path)}
    said = any(map(reason.asserted_by, strings))
    assert said, f"no test asserts {reason.text!r}"


EXAMPLE = '''
def dearer(n):
    """Not this."""
    return f"it costs {n:,.0f} operations more"

def law(x):
    require(x, "it is constant")
    reason = f"in mode {x!r} it is assigned"
    require(x, reason, blocker)
    reason = "it is assigned twice"
    require(x, reason if x else "it is the other")
    require(x, other)
    def inner():
        raise Declined(dearer(x), "blocker")
    try:
        inner()
    except Declined as declined:
        raise Declined(declined.reason)
'''


def test_reasons_and_strings_are_found() -> None:
    tree = ast.parse(EXAMPLE)
    known = {function.name: function for function in functions_in(tree)}
    assert set(reasons_in(tree, known)) == {
        Reason("it is constant", whole=True),
        Reason(" it is assigned", whole=False),
        Reason("it is assigned twice", whole=True),
        Reason("it is the other", whole=True),
        Reason("other, which is not understood", whole=True),
        Reason(" operations more", whole=False),
    }
    strings = list(strings_in(tree))
    assert "it is constant" in strings
    assert "Not this." not in strings


def test_only_a_reason_that_varies_may_be_asserted_in_part() -> None:
    assert Reason("a shape", whole=True).asserted_by("a shape")
    assert not Reason("a shape", whole=True).asserted_by("a shape that is known")
    assert Reason("a shape of ", whole=False).asserted_by("a shape of 3")
