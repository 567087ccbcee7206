"""What is inferred without running the model is what the model does."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam.facts import Facts, TensorFacts
from reparam.probe import PRIMES, probe
from reparam.sizes import ONE, Assignment, Size, SymbolTable


class Probed:
    """A graph of inputs that facts are given of."""

    def __init__(self) -> None:
        self.symbols = SymbolTable()
        self.graph = fx.Graph()
        self.facts: dict[fx.Node, Facts] = {}

    def given(self, facts: Facts) -> fx.Node:
        node = self.graph.placeholder(f"x{len(self.facts)}")
        self.facts[node] = facts
        return node

    def tensor(self, *axes: Size | int, dtype: torch.dtype | None = torch.float32) -> fx.Node:
        sizes = tuple(Size(axis) if isinstance(axis, int) else axis for axis in axes)
        return self.given(TensorFacts(sizes, True, dtype))

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        return probe(target, args, kwargs, self.facts.__getitem__, self.symbols)


MONOMIALS: list[tuple[Any, tuple[Any, ...], dict[str, Any], Callable[..., tuple[Any, ...]]]] = [
    (torch.flatten, (2,), {}, lambda b, h, w: (b, 6, h * w)),
    ("flatten", (1,), {}, lambda b, h, w: (b, Size(6) * h * w)),
    ("unflatten", (1, (2, 3)), {}, lambda b, h, w: (b, 2, 3, h, w)),
    ("permute", (0, 3, 1, 2), {}, lambda b, h, w: (b, w, 6, h)),
    (torch.unsqueeze, (-1,), {}, lambda b, h, w: (b, 6, h, w, 1)),
    (F.pixel_shuffle, (1,), {}, lambda b, h, w: (b, 6, h, w)),
    (torch.sum, (1,), {"keepdim": True}, lambda b, h, w: (b, 1, h, w)),
    (torch.amax, ((2, 3),), {}, lambda b, h, w: (b, 6)),
    ("repeat", (1, 2, 1, 3), {}, lambda b, h, w: (b, 12, h, w * Size(3))),
    (F.adaptive_max_pool2d, (5,), {}, lambda b, h, w: (b, 6, 5, 5)),
    (F.interpolate, (), {"scale_factor": 2}, lambda b, h, w: (b, 6, Size(2) * h, Size(2) * w)),
    (nn.Upsample(scale_factor=4), (), {}, lambda b, h, w: (b, 6, Size(4) * h, Size(4) * w)),
    (nn.MaxPool2d(3, 1, 1), (), {}, lambda b, h, w: (b, 6, h, w)),
    (nn.LocalResponseNorm(2), (), {}, lambda b, h, w: (b, 6, h, w)),
    (nn.Conv2d(6, 9, 3, padding=1), (), {}, lambda b, h, w: (b, 9, h, w)),
]


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "axes"),
    MONOMIALS,
    ids=[getattr(case[0], "__name__", str(case[0])) for case in MONOMIALS],
)
def test_products_of_sizes_are_recognised(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], axes: Callable[..., tuple[Any, ...]]
) -> None:
    p = Probed()
    b, h, w = (p.symbols.fresh() for _ in range(3))
    found = p(target, p.tensor(b, 6, h, w), *args, **kwargs)
    expected = tuple(Size(a) if isinstance(a, int) else a for a in axes(b, h, w))
    assert found == TensorFacts(expected, True, torch.float32)


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.data())
def test_a_reshape_has_the_sizes_that_torch_gives_it(sizes: list[int], data: st.DataObject) -> None:
    """Groups of neighbouring axes, each made one: their sizes multiply, whatever they are."""
    p = Probed()
    symbols = [p.symbols.fresh() for _ in sizes]
    axes: list[Size] = [symbols[0], Size(4), symbols[1], Size(3), symbols[2]]
    first = data.draw(st.integers(0, 4))
    last = data.draw(st.integers(first, 4))
    found = p(torch.flatten, p.tensor(*axes), first, last)
    numbers = {s.symbols[0]: n for s, n in zip(symbols, sizes, strict=True)}
    value = Assignment((1,), numbers)
    real = torch.zeros([value(axis) for axis in axes]).flatten(first, last)
    assert tuple(map(value, found.axes)) == tuple(real.shape)


def test_what_is_no_product_follows_from_the_call() -> None:
    """The same call of the same sizes gives the same size, and any other call another one."""
    p = Probed()
    b, h, w = (p.symbols.fresh() for _ in range(3))
    one, other = p.tensor(b, 6, h, w), p.tensor(b, 6, h, w)
    halved = [p(F.max_pool2d, x, 2) for x in (one, other)]
    assert halved[0] == halved[1]
    assert halved[0].axes[:2] == (b, Size(6))
    assert not {*halved[0].axes[2:]} & {h, w}
    assert halved[0].axes[2] != halved[0].axes[3]
    assert not any(size.known for size in halved[0].axes[2:])
    assert p(F.max_pool2d, one, 3).axes[2] != halved[0].axes[2]
    assert p(F.max_pool2d, p.tensor(b, 6, w, h), 2) != halved[0]


def test_nothing_is_allocated() -> None:
    """Of primes as sizes a tensor of six axes would have 10^14 elements."""
    p = Probed()
    axes = [p.symbols.fresh() for _ in PRIMES[0]]
    x = p.tensor(*axes)
    assert p("transpose", x, 0, 5).axes == (axes[5], *axes[1:5], axes[0])
    assert p(torch.matmul, x, p("mT", x)) is None
    assert p("add", x, torch.ones(1)) == TensorFacts(tuple(axes), True, torch.float32)
    weights = nn.Linear(5, 7)
    assert p(weights, p.tensor(axes[0], 5)).axes == (axes[0], Size(7))
    assert weights.weight.device.type == "cpu"


def test_more_symbols_than_primes_are_too_many() -> None:
    p = Probed()
    axes = [p.symbols.fresh() for _ in range(len(PRIMES[0]) + 1)]
    assert p(torch.relu, p.tensor(*axes)) is None
    assert p(torch.relu, p.tensor(*axes[1:])) is not None


def test_a_known_size_is_no_symbol_though_it_be_one_of_the_primes() -> None:
    p = Probed()
    b = p.symbols.fresh()
    for prime in (*PRIMES[0], *PRIMES[1]):
        assert p(torch.flatten, p.tensor(b, prime, 2)).axes == (Size(2 * prime) * b,)
    square = p(torch.flatten, p.tensor(b, b))
    assert square.axes == (b * b,)


class Counted(nn.Module):
    """A user's layer: its forward must not run while facts are looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x


def test_only_torchs_own_code_is_run() -> None:
    p, layer = Probed(), Counted()
    x = p.tensor(2, 3)
    assert p(layer, x) is None
    assert p(layer.forward, x) is None
    assert layer.runs == 0


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (torch.reshape, ((7, 11),)),  # no such number of elements, as a rule
        (nn.Conv2d(5, 4, 3), ()),  # fed with other channels
        ("nonzero", ()),  # a size that depends on the content
        ("item", ()),
        ("no_such_method", ()),
        ("dim", ()),  # no tensor
        ("size", (0,)),
        (torch.is_tensor, ()),
        ("split", (2, 2)),  # into a number of pieces that depends on a size
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_where_it_fails_nothing_is_known(target: Any, args: tuple[Any, ...]) -> None:
    p = Probed()
    b, h, w = (p.symbols.fresh() for _ in range(3))
    assert p(target, p.tensor(b, 6, h, w), *args) is None


def test_what_depends_on_something_unknown_is_unknown() -> None:
    p = Probed()
    h = p.symbols.fresh()
    known, unknown = p.tensor(2, h), p.given(None)
    trailing = p.given(TensorFacts((Size(4), h), False, torch.float32))
    assert p(torch.relu, unknown) is None
    assert p(torch.relu, trailing) is None
    assert p(torch.cat, [known, unknown], 1) is None
    assert p("reshape", known, p.given(ONE), p.given(None)) is None
    assert p("reshape", known, p.given(ONE), -1).axes == (ONE, Size(2) * h)
    assert p("view", known, p.given((h, Size(2)))).axes == (h, Size(2))


def test_several_results_are_known_one_by_one() -> None:
    p = Probed()
    b, h = (p.symbols.fresh() for _ in range(2))
    x = p.tensor(b, 5, h)
    assert [part.axes[1] for part in p("chunk", x, 3, 1)] == [Size(2), Size(2), ONE]
    assert [part.axes for part in p(torch.split, x, [1, 4], dim=1)] == [
        (b, ONE, h),
        (b, Size(4), h),
    ]
    values, places = p(torch.max, x, -1)
    assert (values.axes, values.dtype) == ((b, Size(5)), torch.float32)
    assert (places.axes, places.dtype) == ((b, Size(5)), torch.int64)
    attended, weights = p(nn.MultiheadAttention(6, 2), *(p.tensor(4, b, 6) for _ in range(3)))
    assert attended.axes == (Size(4), b, Size(6))
    assert weights.axes == (b, Size(4), Size(4))


def test_results_within_results_keep_their_places() -> None:
    p = Probed()
    b, t = (p.symbols.fresh() for _ in range(2))
    found = p(nn.LSTM(4, 5), p.tensor(t, b, 4))
    assert found is None or [isinstance(part, TensorFacts) for part in found] == [True, False]


@pytest.mark.parametrize("target", [operator.getitem, "__getitem__"])
def test_a_bound_on_a_size_is_not_the_size(target: Any) -> None:
    """Of a tensor of four rows the first ten are four."""
    p = Probed()
    found = p(target, p.tensor(p.symbols.fresh(), 3), slice(None, 10))
    assert found is None or not found.axes[0].known


@pytest.mark.parametrize("bound", [slice(2), slice(-2, None), slice(1, 3)])
def test_an_axis_of_any_length_may_be_shorter_than_a_cut(bound: slice) -> None:
    """Of an axis of one element the last two are one."""
    p = Probed()
    found = p(operator.getitem, p.tensor(3, p.symbols.fresh()), (slice(None), bound))
    assert found.axes[0] == Size(3)
    assert not found.axes[1].known


def test_an_axis_that_may_be_squeezed_away_leaves_the_rank_unknown() -> None:
    p = Probed()
    b, h = (p.symbols.fresh() for _ in range(2))
    assert p(torch.squeeze, p.tensor(3, b, 1, h)) is None
    assert p(torch.squeeze, p.tensor(3, b, 1, h), 2).axes == (Size(3), b, h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int32, None])
def test_a_dtype_is_known_where_those_of_all_inputs_are(dtype: torch.dtype | None) -> None:
    p = Probed()
    b = p.symbols.fresh()
    x, y = p.tensor(b, 3, dtype=dtype), p.tensor(b, 3, dtype=torch.float32)
    assert p(torch.add, x, x).dtype == dtype
    expected = None if dtype is None else torch.promote_types(dtype, torch.float32)
    assert p(torch.add, x, y).dtype == expected
    assert p("argmax", x, 1).dtype == torch.int64  # whatever the dtype
    assert p("double", y).dtype == torch.float64


@given(st.permutations(range(4)), st.lists(st.integers(1, 6), min_size=4, max_size=4))
def test_a_permutation_moves_the_sizes(order: list[int], sizes: list[int]) -> None:
    p = Probed()
    axes = [p.symbols.fresh() if n % 2 else Size(n) for n in sizes]
    found = p(torch.permute, p.tensor(*axes), order)
    assert found.axes == tuple(axes[place] for place in order)
