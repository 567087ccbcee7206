"""What Python asks of stand-ins: recorded where that goes, else answered by the example inputs."""

import collections
import copy
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from reparam.known import HELD
from reparam.proxies import AttributeProxy, TensorProxy
from tests.bad_inputs.outcomes import compiled, same
from tests.passes.alone import Net
from tests.strategies import drawn

X = drawn(0, 2, 4, 6)
LARGER_BATCH, NARROWER = drawn(1, 5, 4, 6), drawn(2, 2, 4, 3)
OTHER_RANK, MORE_CHANNELS = drawn(3, 2, 4, 6, 1), drawn(4, 2, 5, 6)

Forward = Callable[[Any, Any], Any]


def told(forward: Forward, example: Any = None) -> tuple[nn.Module, Any]:
    """A model and what it compiles to, without any passes."""
    model = Net(forward).eval()
    return model, compiled(model, example, passes=())


def by_size(_: Any, x: Tensor) -> Tensor:
    return x.relu() if x.shape[2] > 4 else -x


def by_error(_: Any, x: Tensor) -> Tensor:
    if not x.shape[2] > 4:
        raise ValueError(x.shape)
    return x * 2


def by_several(_: Any, x: Tensor) -> Tensor:
    if x.shape[1] == 4 and not x.size(2) < 4:
        return x * 2
    return x


def by_rank(_: Any, x: Tensor) -> Tensor:
    return x.flatten(1) if x.dim() == 3 else x


def by_number_of_sizes(_: Any, x: Tensor) -> Tensor:
    return x * len(x.shape)


def by_truth_of_sizes(_: Any, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1:] else x


def by_integer(_: Any, x: Tensor) -> Tensor:
    return x * [1, 2, 3, 4, 5, 6, 7][int(x.shape[2])] if int(x.shape[2]) < 7 else x


def by_float(_: Any, x: Tensor) -> Tensor:
    return x * math.sqrt(float(x.shape[2]))


def by_range(_: Any, x: Tensor) -> Tensor:
    for step in range(1, x.shape[2], 2):
        x = x + step
    return x


def by_sizes_in_a_loop(_: Any, x: Tensor) -> Tensor:
    return sum(x * size for size in x.shape[1:])


def by_sizes_that_contain(_: Any, x: Tensor) -> Tensor:
    return x * 2 if 6 in x.shape[1:] else x


@pytest.mark.parametrize(
    ("forward", "other"),
    [
        (by_size, NARROWER),
        (by_error, NARROWER),
        (by_several, NARROWER),
        (by_several, MORE_CHANNELS),
        (by_rank, OTHER_RANK),
        (by_number_of_sizes, OTHER_RANK),
        (by_truth_of_sizes, OTHER_RANK),
        (by_integer, NARROWER),
        (by_float, NARROWER),
        (by_range, NARROWER),
        (by_sizes_in_a_loop, OTHER_RANK),
        (by_sizes_that_contain, NARROWER),
    ],
)
def test_another_way_than_the_example_takes_is_refused(forward: Forward, other: Tensor) -> None:
    model, fused = told(forward, X)
    assert isinstance(fused, fx.GraphModule), reparam.report(fused)
    same(model, fused, X)
    same(model, fused, LARGER_BATCH)
    with pytest.raises(AssertionError, match=HELD):
        fused(other)


@pytest.mark.parametrize(
    "forward",
    [by_size, by_several, by_rank, by_number_of_sizes, by_integer, by_float, by_range],
)
def test_without_example_inputs_the_model_stays(forward: Forward) -> None:
    model, fused = told(forward)
    assert type(fused) is Net
    (remark,) = reparam.report(fused).missed
    assert f"test_proxies.py:{forward.__code__.co_firstlineno + 1}: " in remark.message
    assert "pass example_inputs" in remark.message
    for x in (X, NARROWER, OTHER_RANK):
        same(model, fused, x)


def by_length(_: Any, x: Tensor) -> Tensor:
    return x * len(x)


def by_rows(_: Any, x: Tensor) -> Tensor:
    return torch.stack([row * number for number, row in enumerate(x)])


def by_parts(_: Any, x: Tensor) -> Tensor:
    return torch.cat([part * number for number, part in enumerate(x.split(1))])


@pytest.mark.parametrize("forward", [by_length, by_rows, by_parts])
def test_a_count_of_rows_holds_for_one_batch_size(forward: Forward) -> None:
    model, fused = told(forward, X)
    same(model, fused, X)
    same(model, fused, NARROWER)
    with pytest.raises(AssertionError, match=HELD):
        fused(LARGER_BATCH)


def unpacks(_: Any, x: Tensor) -> Tensor:
    batch, channels, width = x.shape
    return x.reshape(batch, channels * width)


def unpacks_parts(_: Any, x: Tensor) -> Tensor:
    one, two = x.split(2, dim=1)
    return one * two


def asks_for_the_type(_: Any, x: Tensor) -> Tensor:
    assert isinstance(x, Tensor | float)
    assert not isinstance(x.shape, list)
    return x * 2 if isinstance(x.shape[0], int) and isinstance(x.shape, tuple) else x


def asks_for_other_types(_: Any, x: Tensor) -> Tensor:
    counted, both = range(3), (list, range)
    known = [isinstance(counted, range), isinstance(counted, both), isinstance([], both)]
    unlike = [isinstance(x, range), isinstance(x, nn.Parameter | str), isinstance(3, both)]
    return x * sum(known) + sum(unlike)


def asks_nothing_of_inputs(m: Any, x: Tensor) -> Tensor:
    return x + sum(range(len(torch.zeros(4)))) + (1 if m.training else 2)


def makes_zeros(_: Any, x: Tensor) -> Tensor:
    first = torch.zeros(x.shape[0], 1, 1) + torch.ones((x.shape[0], 1, 1))
    return x + first + torch.tensor([1.0, 2.0])[0]


def arithmetic(_: Any, x: Tensor) -> Tensor:
    half = x.shape[2] // 2
    return x[:, :, :half] + x[:, :, -half:]


@pytest.mark.parametrize(
    "forward",
    [
        unpacks,
        unpacks_parts,
        asks_for_the_type,
        asks_for_other_types,
        asks_nothing_of_inputs,
        makes_zeros,
        arithmetic,
    ],
)
@pytest.mark.parametrize("example", [None, X], ids=["without", "with example"])
def test_what_depends_on_no_value_holds_for_all_sizes(forward: Forward, example: Any) -> None:
    model, fused = told(forward, example)
    assert isinstance(fused, fx.GraphModule), reparam.report(fused)
    for x in (X, LARGER_BATCH, NARROWER):
        same(model, fused, x)


ASSERTING = """
def asserts_a_size(_, x):
    assert x.shape[2] > 4, "too narrow"
    return x * 2

def asserts_a_value(_, x):
    assert (x < 100).all()
    return x * 2
"""


def asserting(name: str) -> Forward:
    """One of the functions above, which pytest would rewrite if they stood in this file."""
    found: dict[str, Any] = {}
    exec(compile(ASSERTING, "asserting.py", "exec"), found)
    return found[name]


@pytest.mark.parametrize("example", [None, X], ids=["without", "with example"])
def test_an_assertion_is_recorded(example: Any) -> None:
    model, fused = told(asserting("asserts_a_size"), example)
    same(model, fused, X)
    same(model, fused, drawn(1, 3, 2, 9))
    with pytest.raises(AssertionError, match="an assertion in asserts_a_size"):
        fused(NARROWER)
    assert reparam.report(fused).analysis == (), "it is the model's own"


def test_an_assertion_about_values_is_recorded() -> None:
    model, fused = told(asserting("asserts_a_value"))
    same(model, fused, X)
    with pytest.raises(AssertionError, match="an assertion in asserts_a_value"):
        fused(X * 1e5)


def test_what_the_result_is_held_to_is_told_once() -> None:
    _, fused = told(by_several, X)
    said = [remark.message for remark in reparam.report(fused).analysis]
    assert len(said) == 1
    assert said[0].startswith(HELD)
    assert "test_proxies.py:" in said[0]


def test_the_same_question_is_asserted_once() -> None:
    def twice(_: Any, x: Tensor) -> Tensor:
        wide = x.shape[2] > 4
        return x * 2 if wide and wide else x

    _, fused = told(twice, X)
    assert [node.target for node in fused.graph.nodes].count(torch._assert) == 1


def by_value(_: Any, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def by_item(_: Any, x: Tensor) -> Tensor:
    return x if x.sum().item() > 0 else -x


def calls_it(_: Any, x: Tensor) -> Tensor:
    return x(1)


def assigns(_: Any, x: Tensor) -> Tensor:
    x.mark = 1
    return x


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (by_value, "it depends on the values of a tensor"),
        (by_item, "it depends on the values of a tensor"),
        (calls_it, "it calls what it is given as an argument"),
        (assigns, "it assigns to the attribute 'mark' of a tensor"),
    ],
)
def test_what_no_example_answers(forward: Forward, reason: str) -> None:
    _, fused = told(forward, X) if forward is not calls_it else told(forward)
    assert type(fused) is Net
    (remark,) = reparam.report(fused).missed
    assert reason in remark.message


COPIES: dict[str, Forward] = {
    "copy": lambda _, x: copy.copy(x) * 2,
    "deep copy": lambda _, x: copy.deepcopy(x) * 2,
    "deep copy in a list": lambda _, x: copy.deepcopy([x])[0] * 2,
    "copy of the sizes": lambda _, x: x * copy.copy(x.shape)[0],
    "pickle": lambda _, x: pickle.loads(pickle.dumps(x)) * 2,
}


@pytest.mark.parametrize("example", [None, X], ids=["without", "with example"])
@pytest.mark.parametrize("forward", COPIES.values(), ids=COPIES)
def test_a_forward_that_copies_in_pythons_way_stays(forward: Forward, example: Any) -> None:
    model, fused = told(forward, example)
    assert type(fused) is Net
    (remark,) = reparam.report(fused).missed
    assert "it copies or pickles a tensor as an object of Python's" in remark.message
    same(model, fused, X)


def test_a_copied_dictionary_of_tensors_is_the_models_own() -> None:
    def forward(_: Any, batch: Any) -> Tensor:
        batch = copy.copy(batch)
        batch["x"] = batch["x"] * 2
        return batch["x"]

    given = {"x": X}
    model, fused = told(forward, (given,))
    assert type(fused) is Net
    same(model, fused, given)
    assert given["x"] is X


ABOUT_GRADIENTS: dict[str, Forward] = {
    "requires_grad": lambda m, x: x * 2 if (x * m.weight).requires_grad else x,
    "requires_grad of a view": lambda _, x: x * 2 if x.mT.requires_grad else x,
    "requires_grad of a product of weights": lambda m, x: (
        x * 2 if (m.weight * 2).requires_grad else x
    ),
    "is_leaf": lambda m, x: x * 2 if (x * m.weight).is_leaf else x,
    "retains_grad": lambda _, x: x * 2 if x.retains_grad else x,
    "grad_fn": lambda m, x: x * 2 if (x * m.weight).grad_fn is None else x,
}


@pytest.mark.parametrize("example", [None, X], ids=["without", "with example"])
@pytest.mark.parametrize("asked", ABOUT_GRADIENTS)
def test_a_forward_that_asks_about_gradients_stays(asked: str, example: Any) -> None:
    model = Net(ABOUT_GRADIENTS[asked], weight=torch.ones(6)).eval()
    fused = compiled(model, example, passes=())
    assert type(fused) is Net
    (remark,) = reparam.report(fused).missed
    name = asked.partition(" ")[0]
    assert f"it asks for the {name} of a tensor" in remark.message
    torch.testing.assert_close(fused(X), model(X))  # where gradients are wanted


def test_a_weight_says_whether_it_is_trained() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x * m.weight if m.weight.requires_grad and m.weight.is_leaf else x

    model = Net(forward, weight=torch.full((6,), 2.0)).eval()
    fused = compiled(model, passes=())
    assert isinstance(fused, fx.GraphModule)
    same(model, fused, X)


@pytest.mark.parametrize("kind", [TensorProxy, AttributeProxy])
@pytest.mark.parametrize("name", ["tracer", "node", "shape"])
def test_a_proxy_that_was_never_made_has_nothing(kind: Any, name: str) -> None:
    """Python would ask it for what it lacks without end."""
    with pytest.raises(AttributeError, match="a proxy was made without its"):
        getattr(object.__new__(kind), name)


IN_PLACE: dict[str, Forward] = {
    "+=": lambda _, x: x.__iadd__(1),
    "-=": lambda _, x: x.__isub__(1),
    "*=": lambda _, x: x.__imul__(2),
    "/=": lambda _, x: x.__itruediv__(2),
    "//=": lambda _, x: x.__ifloordiv__(2),
    "%=": lambda _, x: x.__imod__(2),
    "**=": lambda _, x: x.__ipow__(2),
}


@pytest.mark.parametrize("operation", IN_PLACE)
def test_writes_in_place_are_recorded(operation: str) -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 1
        z = y.view(-1)
        IN_PLACE[operation](m, y)
        y[0] = 3
        return y, z

    model, fused = told(forward)
    same(model, fused, X)


class ByDictionary(nn.Module):
    """Goes through a dictionary that it is given, in every way there is."""

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        total = features["a"] * len(features)
        for name in features:
            total = total + len(name) * 2
        for name in features.keys():  # noqa: SIM118
            total = total + len(name)
        for value in features.values():
            total = total * value
        for name, value in features.items():
            total = total + value * len(name)
        return total.relu() if "b" in features and "d" not in features else total


def test_a_dictionary_of_other_keys_is_refused() -> None:
    model = ByDictionary().eval()
    features = {"a": X, "b": X + 1}
    fused = compiled(model, (features,), passes=())
    assert isinstance(fused, fx.GraphModule), reparam.report(fused)
    same(model, fused, features)
    same(model, fused, {"a": NARROWER, "b": NARROWER * 2})
    with pytest.raises(AssertionError, match=HELD):
        fused({**features, "c": X})
    for others in ({"a": X, "c": X}, {"b": X, "a": X}):
        with pytest.raises(AssertionError, match=HELD):
            fused(others)


def test_a_dictionary_without_an_example_stays() -> None:
    assert type(compiled(ByDictionary().eval(), passes=())) is ByDictionary


def test_a_list_of_tensors() -> None:
    class ByList(nn.Module):
        def forward(self, levels: list[Tensor]) -> Tensor:
            assert isinstance(levels, list)
            total = levels[0]
            for level in levels[1:]:
                total = total + level
            return total * len(levels)

    model = ByList().eval()
    fused = compiled(model, ([X, X],), passes=())
    assert isinstance(fused, fx.GraphModule), reparam.report(fused)
    same(model, fused, [X, X])
    same(model, fused, [NARROWER, NARROWER])
    with pytest.raises(AssertionError, match=HELD):
        fused([X, X, X])


@dataclass
class Levels:
    """What some models return."""

    low: Tensor
    sizes: Any


def test_results_of_other_kinds() -> None:
    def forward(_: Any, x: Tensor) -> Any:
        ordered = collections.OrderedDict(low=x.relu(), high=-x)
        return Levels(x * 2, x.shape), ordered, x.mT.shape

    model, fused = told(forward)
    assert isinstance(fused, fx.GraphModule), reparam.report(fused)
    same(model, fused, X)


def test_a_dictionary_of_a_kind_that_cant_be_made_again_stays() -> None:
    def forward(_: Any, x: Tensor) -> Any:
        return collections.defaultdict(list, low=x)

    _, fused = told(forward)
    assert type(fused) is Net
    assert "it returns or passes on a defaultdict" in str(reparam.report(fused).missed)


def test_autocast_of_the_device_of_an_input() -> None:
    def forward(_: Any, x: Tensor) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return x * 2

    model, fused = told(forward, X)
    assert isinstance(fused, fx.GraphModule), reparam.report(fused)
    same(model, fused, X)


def test_patches_end_with_the_trace() -> None:
    before = (isinstance, range, torch.zeros, torch.tensor, torch.autocast.__init__)

    def forward(_: Any, x: Tensor) -> Iterator[Tensor]:
        raise ValueError

    told(forward)
    assert (isinstance, range, torch.zeros, torch.tensor, torch.autocast.__init__) == before
