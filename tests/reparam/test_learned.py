"""What the readers of a tensor tell of it, with and without example inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import passes
import reparam
from reparam.capture import capture
from reparam.facts import TensorFacts
from reparam.graph import Call
from reparam.learned import given_facts, keeps_axes, keeps_dtype, refined
from reparam.lift import lift_graph
from reparam.operators import Cat
from reparam.sizes import Size, SymbolTable
from reparam.values import IDENTITY, Conv, Layout, Opaque, Value
from tests.fused import operators
from tests.strategies import drawn

Forward = Callable[[Any, Any], Any]


class Net(nn.Module):
    """Any forward, with layers of four channels in and six out."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.body = forward
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.linear, self.tokens = nn.Linear(4, 6), nn.LayerNorm(4)
        self.line, self.line_norm = nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def calls_of(forward: Forward, example: Tensor | None = None, dtype: Any = None) -> list[Call]:
    model = Net(forward).to(dtype or torch.float32).eval()
    return list(lift_graph(capture(model, example), example).calls())


def asserted(m: Any, x: Any) -> Any:
    y = m.conv(x)
    torch._assert(y.dim() == 4, "a batch of images")
    return y


# (the forward, what is known of its input: None stands for any size, and whether that is all)
KNOWN: list[tuple[Forward, tuple[int | None, ...] | None, bool]] = [
    (lambda m, x: m.conv(x), (4, None, None), False),
    (lambda m, x: m.norm(m.conv(x)), (None, 4, None, None), True),
    (lambda m, x: m.norm(m.conv(x).relu().clamp(0, 1)), (None, 4, None, None), True),
    (lambda m, x: m.norm(x), (None, 6, None, None), True),
    (lambda m, x: m.line(x), (4, None), False),
    (lambda m, x: m.line_norm(m.line(x)), (4, None), False),  # of two axes, or three
    (lambda m, x: m.linear(x), (4,), False),
    (lambda m, x: m.tokens(x), (4,), False),
    (lambda m, x: x.permute(0, 2, 3, 1), (None,) * 4, True),
    (lambda m, x: x.permute((0, 2, 1)), (None,) * 3, True),
    (lambda m, x: m.conv(x).permute(0, 2, 3, 1), (None, 4, None, None), True),
    (asserted, (None, 4, None, None), True),
    (lambda m, x: m.conv(x).shape[3], (None, 4, None, None), True),
    (lambda m, x: m.conv(x).shape[2], (4, None, None), False),  # an image may have that many
    (lambda m, x: m.tokens(x) + m.linear(x).mean(), (4,), False),
    (lambda m, x: x * 2, None, False),
    (lambda m, x: m.conv(x.relu()), None, False),  # known of the result, not of what it is of
]


@pytest.mark.parametrize(("forward", "axes", "exact"), KNOWN)
def test_readers_tell_channels_and_axes(
    forward: Forward, axes: tuple[int | None, ...] | None, exact: bool
) -> None:
    facts = calls_of(forward)[0].shape
    if axes is None:
        assert facts is None
        return
    assert facts is not None
    assert tuple(size.factor if size.known else None for size in facts.axes) == axes
    assert facts.exact is exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (lambda m, x: m.conv(x), True),
        (lambda m, x: m.linear(x), True),
        (lambda m, x: m.linear(m.tokens(x)), True),
        (lambda m, x: m.conv(m.conv(x).relu()[:, :4]), True),
        (lambda m, x: m.tokens(x), False),  # which takes more dtypes than that of its weights
        (lambda m, x: x.permute(0, 2, 3, 1), False),
    ],
)
def test_a_convolution_tells_the_dtype(forward: Forward, told: bool, dtype: torch.dtype) -> None:
    facts = calls_of(forward, dtype=dtype)[0].shape
    assert facts is not None
    assert facts.dtype == (dtype if told else None)


def test_what_is_learned_of_a_result_holds_for_what_leads_to_it() -> None:
    """A batch norm over images takes four axes, so all that led there by one kind of step had."""
    calls = calls_of(lambda m, x: m.norm(m.conv(x.sigmoid()).relu().tanh()).relu())
    known = {call.name: call.shape for call in calls[1:]}
    shapes = [shape for shape in known.values() if shape is not None]
    assert len(shapes) == len(known) == 6
    assert all(shape.exact and len(shape.axes) == 4 for shape in shapes)
    assert len({shape.axes[0] for shape in shapes}) == 1
    assert [shape.channels(2) for shape in shapes] == [4, *[6] * 5]


def test_an_assertion_of_what_is_learned_is_true() -> None:
    verdicts = [c.facts for c in calls_of(asserted) if c.value.__name__ == "eq"]
    assert verdicts == [True]

    def of_anything(m: Any, x: Any) -> Any:
        torch._assert(x.dim() == 4, "it could be any")
        return x + 1

    assert [c.facts for c in calls_of(of_anything) if c.value.__name__ == "eq"] == [None]


@given(st.lists(st.integers(1, 5), max_size=5), st.sampled_from((torch.float16, torch.int64)))
def test_examples_tell_axes_and_dtypes_but_no_sizes(shape: list[int], dtype: torch.dtype) -> None:
    graph, symbols = fx.Graph(), SymbolTable()
    x, y, z = (graph.placeholder(name) for name in "xyz")
    tensor = torch.zeros(shape, dtype=dtype)
    for example in ((tensor, 2, tensor), {"x": tensor, "z": tensor}):
        known = given_facts(graph, example, symbols)
        assert known.keys() == {x, z}
        assert y not in known
        for facts in known.values():
            assert (facts.exact, facts.dtype, len(facts.axes)) == (True, dtype, len(shape))
            assert not any(size.known for size in facts.axes)
        every = [size for facts in known.values() for size in facts.axes]
        assert len(set(every)) == len(every), "two sizes that are equal by chance"
    assert given_facts(graph, tensor, symbols).keys() == {x}
    assert given_facts(graph, None, symbols) == {}


@st.composite
def facts_and_demands(draw: st.DrawFn) -> tuple[TensorFacts, int, dict[str, Any]]:
    symbols = SymbolTable()
    known = st.integers(1, 9).map(Size)
    axes = draw(st.lists(st.one_of(known, st.builds(symbols.fresh)), min_size=1, max_size=4))
    dtypes = st.sampled_from((None, torch.float32, torch.bfloat16))
    have = TensorFacts(tuple(axes), draw(st.booleans()), draw(dtypes))
    demand = {
        "channels": draw(st.sampled_from((None, 4, 6))),
        "dtype": draw(dtypes),
        "exact": draw(st.booleans()),
        "fresh": symbols.fresh,
    }
    return have, draw(st.integers(0, 3)), demand


@given(facts_and_demands())
def test_what_is_known_is_added_to_and_stays(case: tuple[TensorFacts, int, dict[str, Any]]) -> None:
    have, n, demand = case
    new = refined(have, n, **demand)
    lead = len(new.axes) - len(have.axes)
    grown = demand["exact"] and not have.exact and len(have.axes) == n + 1
    assert lead == grown
    assert new.exact is (have.exact or grown)
    assert new.dtype == (demand["dtype"] if have.dtype is None else have.dtype)
    for place, (old, size) in enumerate(zip(have.axes, new.axes[lead:], strict=True)):
        told = demand["channels"] is not None and place == len(have.axes) - n - 1
        assert size == (Size(demand["channels"]) if told and not old.known else old)
    assert refined(new, n, **demand) == new


def test_which_calls_keep_axes_and_dtypes() -> None:
    conv, relu = Conv(torch.ones(4, 4)), Opaque(torch.relu)
    layout = Layout("flatten", kind="reshape")
    graph = fx.Graph()
    x = graph.placeholder("x")
    for kind, axes, dtype in (
        (conv, True, False),  # its dtype is that of its weights too, where it is a product
        (relu, True, True),
        (nn.GELU(), True, True),
        (layout, False, True),
        (Cat(1), False, False),
        (IDENTITY, False, False),
        (torch.add, False, False),
    ):
        value = kind if isinstance(kind, Value) else Opaque(kind)
        call = Call(graph.call_function(value, (x,)))
        assert (keeps_axes(call), keeps_dtype(call)) == (axes, dtype)


@pytest.mark.parametrize("first", [nn.ReLU(), nn.MaxPool2d(2), nn.Identity(), nn.Dropout()])
def test_an_example_is_no_hindrance(first: nn.Module) -> None:
    """Without one, the batch norm of this model is folded."""
    model = nn.Sequential(first, nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    for example in (None, drawn(0, 2, 3, 9, 9).float()):
        fused = reparam.compile(model, example, passes=passes.DEFAULT)
        assert "BatchNorm2d" not in operators(fused)


def test_an_axis_that_a_window_moves_over_is_another_one_before() -> None:
    """An image without a batch, whose height a batch norm of sequences takes for channels."""

    def forward(net: Any, x: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(x, 2, 2, 1)
        return net.line_norm(pooled).chunk(2, 1)[1]

    model, x = Net(forward).eval(), drawn(0, 2, 10, 8).float()
    fused = reparam.compile(model, x, passes=passes.DEFAULT, verify=False)
    assert torch.equal(fused(x), model(x))
