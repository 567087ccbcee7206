"""The tables of the command line say each thing once, and every place where it matters."""

from reparam.report import Remark, fused_table
from reparam.tables import not_fused_table


def test_what_is_done_alike_in_several_blocks_is_one_row() -> None:
    names = ("blocks.0.bn", "blocks.1.bn", "stages.2.blocks.10.mul_3", "head.bn")
    applied = [Remark("applied", "fold", name, f"{name} into conv1") for name in names]
    table = fused_table(applied)
    rows = zip(*(list(column.cells) for column in table.columns), strict=True)
    assert list(rows) == [
        ("fold", "blocks.*.bn into conv1", "2"),
        ("fold", "head.bn into conv1", "1"),
        ("fold", "stages.2.blocks.10.mul_3 into conv1", "1"),
    ]


def test_what_was_not_fused_is_listed_with_every_place_and_what_blocks_it() -> None:
    missed = [
        Remark("missed", "merge", "a", "too dear", "b"),
        Remark("missed", "merge", "c", "too dear", "c"),
        Remark("missed", "fold", "d", "read elsewhere"),
    ]
    table = not_fused_table(missed)
    rows = zip(*(list(column.cells) for column in table.columns), strict=True)
    assert list(rows) == [
        ("merge", "too dear", "a (blocked by b)\nc"),
        ("fold", "read elsewhere", "d"),
    ]
