"""Symbolic sizes agree with the numbers that they stand for."""

from hypothesis import given
from hypothesis import strategies as st

from reparam.sizes import ONE, Assignment, Size, SymbolTable, product

TABLE = SymbolTable()
FREE = [TABLE.fresh() for _ in range(3)]
NUMBERS = {size.symbols[0]: number for size, number in zip(FREE, (5, 7, 11), strict=True)}


def value(size: Size) -> int:
    return Assignment((13,), dict(NUMBERS))(size)


@st.composite
def sizes(draw: st.DrawFn) -> Size:
    parts = draw(st.lists(st.sampled_from(FREE), max_size=3))
    return Size(draw(st.integers(1, 12))) * product(tuple(parts))


@given(sizes(), sizes())
def test_products_are_products(a: Size, b: Size) -> None:
    assert value(a * b) == value(a) * value(b)
    assert a * b == b * a
    assert a * ONE == a


@given(sizes(), sizes())
def test_quotients_are_exact(a: Size, b: Size) -> None:
    assert (a * b).divided_by(b) == a
    quotient = a.divided_by(b)
    if quotient is not None:
        assert quotient * b == a


@given(sizes())
def test_a_size_is_known_if_no_symbol_is_in_it(a: Size) -> None:
    assert a.known is (not a.symbols)
    assert a.divided_by(Size(0)) is None
    assert str(value(a)) == repr(Size(value(a)))


@given(sizes(), st.integers(1, 3), st.integers(-4, 4))
def test_windows_are_counted(size: Size, stride: int, slack: int) -> None:
    windows = TABLE.windows(size, stride, slack)
    assert value(windows) == (value(size) + slack) // stride + 1
    assert TABLE.windows(size, stride, slack) == windows
    assert TABLE.windows(size, 1, -1) == size


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(-2, 2)), min_size=1, max_size=4))
def test_windows_of_windows_follow_from_the_first(layers: list[tuple[int, int]]) -> None:
    size, number = FREE[0], 97
    for stride, slack in layers:
        size, number = TABLE.windows(size, stride, slack), (number + slack) // stride + 1
    assert Assignment((1,), {FREE[0].symbols[0]: 97})(size) == number


def test_what_was_drawn_once_is_drawn_again() -> None:
    assignment = Assignment((3, 4), {})
    assert [assignment(size) for size in (*FREE, FREE[0])] == [3, 4, 4, 3]
    assert assignment(FREE[0] * FREE[1] * Size(2)) == 24


def test_a_window_over_something_unknown_is_free_itself() -> None:
    table = SymbolTable()
    assert Assignment((9,), {})(table.windows(table.fresh(), 2, 0)) == 9
