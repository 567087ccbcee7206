"""Sizes that are not known yet: products of integers and symbols.

`flatten(2)` of a feature map has height times width tokens, and a reshape back must be
recognised as splitting just these; a strided convolution halves a size and rounds it down.
Monomials over interned symbols are all the algebra that takes.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any


class Symbol:
    """A size that is free, or `floor((size + slack) / stride) + 1` of another size."""

    def __init__(self, serial: int, window: tuple["Size", int, int] | None = None) -> None:
        """Make a symbol; only `SymbolTable` does."""
        self.serial = serial
        self.window = window

    def __repr__(self) -> str:
        """Short, for messages."""
        return f"s{self.serial}"


@dataclass(frozen=True)
class Size:
    """A product of an integer and symbols (sorted; a symbol may stand more than once)."""

    factor: int
    symbols: tuple[Symbol, ...] = ()

    @property
    def known(self) -> bool:
        """Whether it is a plain integer."""
        return not self.symbols

    def __mul__(self, other: "Size") -> "Size":
        """The product."""
        symbols = sorted(self.symbols + other.symbols, key=lambda symbol: symbol.serial)
        return Size(self.factor * other.factor, tuple(symbols))

    def divided_by(self, other: "Size") -> "Size | None":
        """The exact quotient, or None where there is none for all values of the symbols."""
        ours, theirs = Counter(self.symbols), Counter(other.symbols)
        if theirs - ours or other.factor == 0 or self.factor % other.factor:
            return None
        symbols = sorted((ours - theirs).elements(), key=lambda symbol: symbol.serial)
        return Size(self.factor // other.factor, tuple(symbols))

    def __repr__(self) -> str:
        """As a product."""
        return "*".join(
            [str(self.factor)] * (self.factor != 1 or self.known) + [*map(repr, self.symbols)]
        )


ONE = Size(1)


def product(sizes: tuple[Size, ...]) -> Size:
    """The product of all."""
    total = ONE
    for size in sizes:
        total = total * size
    return total


class SymbolTable:
    """The symbols of one graph. The same window over the same size is the same symbol."""

    def __init__(self) -> None:
        """Start without any."""
        self._count = 0
        self._windows: dict[tuple[Size, int, int], Size] = {}
        self._derived: dict[tuple[Any, ...], Size] = {}

    def fresh(self) -> Size:
        """A size of which nothing is known."""
        self._count += 1
        return Size(1, (Symbol(self._count),))

    def derived(self, key: tuple[Any, ...]) -> Size:
        """A size that follows in some way from what the key says: the same key, the same size."""
        if key not in self._derived:
            self._derived[key] = self.fresh()
        return self._derived[key]

    def windows(self, size: Size, stride: int, slack: int) -> Size:
        """How many windows fit: `floor((size + slack) / stride) + 1`."""
        if stride == 1 and slack == -1:
            return size
        inner = size.symbols[0].window if len(size.symbols) == 1 and size.factor == 1 else None
        if inner is not None and inner[1] == 1:  # all it did is to add a constant
            return self.windows(inner[0], stride, inner[2] + 1 + slack)
        if size.known:
            return Size((size.factor + slack) // stride + 1)
        key = (size, stride, slack)
        if key not in self._windows:
            self._count += 1
            self._windows[key] = Size(1, (Symbol(self._count, key),))
        return self._windows[key]


class Assignment:
    """Numbers for symbols. What follows from a symbol that has one already is computed."""

    def __init__(self, candidates: tuple[int, ...], numbers: dict[Symbol, int]) -> None:
        """Start from the numbers that some symbols have.

        Free symbols get `candidates` in turn, those beyond them the last.
        """
        self._candidates = list(candidates)
        self._numbers = numbers

    def __call__(self, size: Size) -> int:
        """The number of a size."""
        return size.factor * prod(self.number(symbol) for symbol in size.symbols)

    def number(self, symbol: Symbol) -> int:
        """The number of a symbol, which it keeps."""
        if symbol not in self._numbers:
            if symbol.window is not None and self._follows(symbol.window[0]):
                size, stride, slack = symbol.window
                self._numbers[symbol] = (self(size) + slack) // stride + 1
            else:
                left = self._candidates
                self._numbers[symbol] = left.pop(0) if len(left) > 1 else left[0]
        return self._numbers[symbol]

    def _follows(self, size: Size) -> bool:
        """Whether every symbol of the size has a number, or follows from some that have."""
        return all(
            symbol in self._numbers
            or (symbol.window is not None and self._follows(symbol.window[0]))
            for symbol in size.symbols
        )
