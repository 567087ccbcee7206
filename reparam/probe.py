"""Infer the sizes of a call's result by running it on tensors without memory.

Symbolic sizes are given distinct primes, twice. A size of the result that both times is the same
product of them is that product; whatever else it is, it is a size that follows from the same
call of the same sizes.
"""

from collections.abc import Callable, Iterator
from functools import partial
from math import isqrt, prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from reparam import known
from reparam.arguments import found, mapped
from reparam.facts import Facts, TensorFacts
from reparam.sizes import Size, Symbol, SymbolTable
from reparam.values import Opaque

PRIMES = ((211, 223, 227, 229, 233, 239), (337, 331, 317, 313, 311, 307))
"""Sizes for up to six symbols, twice: larger than most kernels, and small enough to multiply.

They rise and they fall, so that the smaller of two is not always the same one.
"""

SMALL = ((2, 3, 5, 7, 11, 13), (1,) * 6)
"""Sizes that bounds do not cut to what they allow; a kernel may not fit into them.

An axis of one is shorter than any cut, and is one that `squeeze` removes.
"""

MOST_PIECES = 4096
"""Of an axis that is longer, nobody wants to know all the pieces."""

NO_SIZE = 2**31 - 1
"""From here on, a bound stands for the end: no axis is as long."""


class _UnknownError(Exception):
    """Something that the result depends on is not known."""


def probe(
    target: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    facts: Callable[[Any], Facts],
    symbols: SymbolTable,
) -> Facts:
    """What is known of a call's result: a tensor, or a tuple or list of them.

    Args:
        target: a function of torch's, one of torch's modules, or the name of a method.
        args: with nodes in them.
        kwargs: likewise.
        facts: of a node.
        symbols: where new sizes come from.

    """
    if not known.torchs_own(target) or isinstance(target, nn.RNNBase):
        return None  # without memory, a recurrent layer takes each step of a sequence by itself
    given = [facts(node) for node in found((args, kwargs), fx.Node)]
    tensors = found(given, TensorFacts)
    free = _symbols(tensors, found(given, Size))
    if len(free) > len(PRIMES[0]):
        return None

    run = partial(_run, target, args, kwargs, facts, free)
    # A bound cuts what is larger than it.
    bounds = [abs(number) for number in found((args, kwargs), int)]
    bounds = [bound for bound in bounds if bound < NO_SIZE]
    large = primes_above(max(bounds, default=0), len(free))
    longest = max((_at(size, free, large) for t in tensors for size in t.axes), default=0)
    if known.kind(target) in ("split", "unbind") and longest > MOST_PIECES:
        return None
    first = run(PRIMES[0])
    made = found(first, Tensor)
    others = [(numbers, found(run(numbers), Tensor)) for numbers in (PRIMES[1], large, *SMALL)]
    # Sizes too small for a kernel, or for so many pieces, are no evidence.
    others = [at for at in others if at[0] not in SMALL or len(at[1]) == len(made)]
    if any([t.ndim for t in result] != [t.ndim for t in made] for _, result in others):
        return None
    name = target if isinstance(target, str) else repr(target)
    call = (name, repr(mapped((args, kwargs), fx.Node, facts)))
    certain = all(tensor.dtype is not None for tensor in tensors)
    described: list[TensorFacts] = []
    for index, tensor in enumerate(made):
        axes: list[Size] = []
        for axis, length in enumerate(tensor.shape):
            lengths = [(numbers, result[index].shape[axis]) for numbers, result in others]
            size = _monomial((length, lengths[0][1]), free)
            if size is not None and any(_at(size, free, n) != length for n, length in lengths):
                size = None
            axes.append(size or symbols.derived((*call, index, axis)))
        dtype = tensor.dtype if certain or not tensor.is_floating_point() else None
        described.append(TensorFacts(tuple(axes), True, dtype))
    return _arranged(first, iter(described))


def primes_above(least: int, count: int) -> tuple[int, ...]:
    """So many primes above a number and all of `PRIMES`, the largest first."""
    primes: list[int] = []
    number = max(least, *PRIMES[0], *PRIMES[1])
    while len(primes) < count:
        number += 1
        if all(number % divisor for divisor in range(2, isqrt(number) + 1)):
            primes.insert(0, number)
    return tuple(primes)


def _at(size: Size, free: list[Symbol], numbers: tuple[int, ...]) -> int:
    """A size where the symbols have these numbers."""
    values = dict(zip(free, numbers, strict=False))
    return size.factor * prod(values[symbol] for symbol in size.symbols)


def _arranged(result: Any, described: Iterator[TensorFacts]) -> Facts:
    """The facts of the tensors in a result, nested as these are."""
    if isinstance(result, Tensor):
        return next(described)
    if isinstance(result, tuple | list):
        parts = cast("tuple[Any, ...]", result)
        return tuple(_arranged(part, described) for part in parts)
    return None


def _symbols(tensors: list[TensorFacts], sizes: list[Size]) -> list[Symbol]:
    """The symbols in facts, in the order in which they were made."""
    every = [*sizes, *(size for tensor in tensors for size in tensor.axes)]
    return sorted({s for size in every for s in size.symbols}, key=lambda symbol: symbol.serial)


def _run(
    target: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    facts: Callable[[Any], Facts],
    free: list[Symbol],
    numbers: tuple[int, ...],
) -> Any:
    """The result on tensors without memory; None if there is none."""
    example = _Example(facts, dict(zip(free, numbers, strict=False)))
    try:
        return _result(target, args, kwargs, example)
    except Exception:  # whatever it is, nothing is known of the result
        return None


class _Example:
    """What stands for calls: tensors without memory, and numbers."""

    def __init__(self, facts: Callable[[Any], Facts], numbers: dict[Symbol, int]) -> None:
        self.facts, self.numbers = facts, numbers

    def __call__(self, node: fx.Node) -> Any:
        given = self.facts(node)
        if given is None:
            raise _UnknownError
        return mapped(given, (TensorFacts, Size), self.part)

    def part(self, fact: TensorFacts | Size) -> Any:
        if isinstance(fact, Size):
            return fact.factor * prod(self.numbers[symbol] for symbol in fact.symbols)
        if not fact.exact:
            raise _UnknownError
        sizes = [self.part(size) for size in fact.axes]
        return torch.empty(sizes, dtype=fact.dtype or torch.float32, device="meta")


def _result(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], concrete: _Example) -> Any:
    args, kwargs = mapped((args, kwargs), fx.Node, concrete)
    args, kwargs = mapped((args, kwargs), Tensor, lambda tensor: tensor.to("meta"))
    with torch.no_grad():
        if isinstance(target, nn.Module):
            state = {**dict(target.named_parameters()), **dict(target.named_buffers())}
            empty = {name: tensor.to("meta") for name, tensor in state.items()}
            return functional_call(target, empty, args, kwargs)
        return Opaque(target)(*args, **kwargs)


def _monomial(sizes: tuple[int, int], free: list[Symbol]) -> Size | None:
    """The product of an integer and symbols that both sizes are, if there is one."""
    first, second = sizes
    symbols: list[Symbol] = []
    for symbol, one, other in zip(free, *PRIMES, strict=False):
        while first and first % one == 0 and second % other == 0:
            first, second = first // one, second // other
            symbols.append(symbol)
    return Size(first, tuple(symbols)) if first == second else None
