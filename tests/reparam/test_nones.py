"""What nobody sees a forward ask, `is None` or `is True`, of a value that is no tensor perhaps."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.known import HELD
from tests.bad_inputs.outcomes import compiled, norms, same
from tests.fused import operators
from tests.passes.alone import Net
from tests.randomised import randomised
from tests.strategies import drawn

X, MASK = drawn(0, 2, 4, 7, 6), drawn(1, 2, 4, 5, 4)

ASKED = r"it asks whether a part of an input, or of what a module returns, is {}; .*"
NO_EXAMPLE = "pass example_inputs"
BY_VALUE = "it depends on the values of a tensor"

Forward = Callable[[Any, Any], Any]

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class Branching(nn.Module):
    """Branches on values, so that it stays whole, and gives None beside a tensor."""

    def forward(self, x: Tensor) -> Any:
        return (x, x.sum()) if x.abs().max() > 1e6 else (x * 2, None)


class Counting(nn.Module):
    """Writes to itself, so that it stays whole, and gives None for an image of an odd height."""

    def forward(self, x: Tensor) -> Any:
        self.calls = 1
        return x * 2, x.sum() if x.shape[2] % 2 == 0 else None


class Vanishing(nn.Module):
    """Gives None, mostly."""

    def forward(self, x: Tensor) -> Any:
        return x if x.abs().max() > 1e6 else None


class Passing(nn.Module):
    """Passes on what another module gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


class Repacking(Passing):
    """Takes apart what another module gives, and puts it together."""

    def forward(self, x: Tensor) -> Any:
        y, aux = self.inner(x)
        return y + 1, aux


class Masked(nn.Module):
    """Can be traced with a mask, and without one."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x if mask is None else x * 3


@dataclass
class Batch:
    """An input with a part that may be None."""

    image: Tensor
    mask: Tensor | None = None


def model(forward: Forward, part: nn.Module | None = None) -> nn.Module:
    conv, norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    randomised(nn.Sequential(conv, norm).double(), X)
    return Net(forward, conv=conv, norm=norm, part=part or nn.Identity()).double().eval()


def folded(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x))


def by_index(m: Any, t: Any) -> Tensor:
    y = folded(m, t["image"])
    return y * 3 if t["mask"] is None else y


def by_index_reversed(m: Any, t: Any) -> Tensor:
    y, mask = folded(m, t["image"]), t["mask"]
    return y * 3 if None is mask else y


def by_identity_module(m: Any, t: Any) -> Tensor:
    y, mask = folded(m, t["image"]), m.part(t["mask"])
    return y * 3 if mask is None else y


def by_get(m: Any, t: Any) -> Tensor:
    y, mask = folded(m, t["image"]), t.get("mask")
    if mask is not None:
        y = y * 3
    return y


def by_get_at_once(m: Any, t: Any) -> Tensor:
    y = folded(m, t["image"])
    return y * 3 if t.get("mask", None) is None else y


def by_walrus(m: Any, t: Any) -> Tensor:
    y = folded(m, t["image"])
    return y if (mask := t["mask"]) is None else y * mask


def by_condition(m: Any, t: Any) -> Tensor:
    mask = t["mask"] if m.part is not None else None
    y = folded(m, t["image"])
    return y * 3 if mask is None else y


def by_function(m: Any, t: Any) -> Tensor:
    def mask() -> Any:
        return t.get("mask")

    y, found = folded(m, t["image"]), mask()
    return y * 3 if found is None else y


def by_copy(m: Any, t: Any) -> Tensor:
    given = t["mask"]
    y = folded(m, t["image"])
    mask = given
    return y * 3 if mask is None else y


def by_closure(m: Any, t: Any) -> Tensor:
    mask = t["mask"]

    def scaled(y: Tensor) -> Tensor:
        return y * 3 if mask is None else y

    return scaled(folded(m, t["image"]))


def by_match(m: Any, t: Any) -> Tensor:
    match t["mask"]:
        case None:
            return folded(m, t["image"]) * 3
        case _:
            return folded(m, t["image"])


def by_unpacking(m: Any, t: Any) -> Tensor:
    x, mask = t
    y = folded(m, x)
    return y * 3 if mask is None else y


def by_nested_unpacking(m: Any, t: Any) -> Tensor:
    (x, mask), _ = t
    y = folded(m, x)
    return y * 3 if mask is None else y


def by_attribute(m: Any, t: Any) -> Tensor:
    y = folded(m, t.image)
    return y * 3 if t.mask is None else y


def by_attribute_with_default(m: Any, t: Any) -> Tensor:
    y, mask = folded(m, t.image), getattr(t, "mask", None)
    return y * 3 if mask is None else y


def by_argument(m: Any, t: Any) -> Tensor:
    y = folded(m, t["image"])
    return m.part(y, t["mask"]) + m.part(y, mask=t["mask"]) * 2


def by_truth(m: Any, t: Any) -> Tensor:
    y = folded(m, t["image"])
    return y * 3 if t["mask"] is True else y


def by_type(m: Any, t: Any) -> Tensor:
    y = folded(m, t["image"])
    return y * 3 if isinstance(t["mask"], str) else y


NONE, GIVEN = {"image": X, "mask": None}, {"image": X, "mask": MASK}

INPUTS: dict[str, tuple[Forward, Any, Any, str]] = {
    "[]": (by_index, NONE, GIVEN, "None"),
    "[], given": (by_index, GIVEN, NONE, "None"),
    "[], reversed": (by_index_reversed, NONE, GIVEN, "None"),
    "identity": (by_identity_module, NONE, GIVEN, "None"),
    "get": (by_get, NONE, GIVEN, "None"),
    "get, given": (by_get, GIVEN, NONE, "None"),
    "get, absent": (by_get, {"image": X}, GIVEN, "None"),
    "get at once": (by_get_at_once, NONE, GIVEN, "None"),
    "get at once, given": (by_get_at_once, GIVEN, {"image": X}, "None"),
    "walrus": (by_walrus, NONE, GIVEN, "None"),
    "condition": (by_condition, NONE, GIVEN, "None"),
    "a function's result": (by_function, NONE, GIVEN, "None"),
    "copy": (by_copy, NONE, GIVEN, "None"),
    "closure": (by_closure, NONE, GIVEN, "None"),
    "match": (by_match, NONE, GIVEN, "None"),
    "unpacking": (by_unpacking, (X, None), (X, MASK), "None"),
    "unpacking, given": (by_unpacking, (X, MASK), (X, None), "None"),
    "nested": (by_nested_unpacking, ((X, None), X), ((X, MASK), X), "None"),
    "attribute": (by_attribute, Batch(X), Batch(X, MASK), "None"),
    "attribute, given": (by_attribute, Batch(X, MASK), Batch(X), "None"),
    "getattr": (by_attribute_with_default, Batch(X), Batch(X, MASK), "None"),
    "is True": (by_truth, {"image": X, "mask": True}, {"image": X, "mask": "yes"}, "True"),
    "is True, False": (by_truth, {"image": X, "mask": False}, {"image": X, "mask": True}, "True"),
    "is True, a text": (by_truth, {"image": X, "mask": "a"}, {"image": X, "mask": True}, "True"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_a_part_of_an_input(case: str) -> None:
    """Its module stays, or the result is held to what the example has."""
    forward, example, other, constant = INPUTS[case]
    original = model(forward)
    whole = compiled(original)
    reasons(whole, ASKED.format(constant) + NO_EXAMPLE)
    same(original, whole, example)
    same(original, whole, other)

    fused = compiled(original, (example,))
    assert norms(fused) == [], [str(remark) for remark in reparam.report(fused).missed]
    same(original, fused, example)
    with pytest.raises(AssertionError, match=HELD):
        fused(other)


def reasons(fused: nn.Module, reason: str) -> None:
    """Something stays for a reason."""
    missed = [str(remark) for remark in reparam.report(fused).missed]
    assert any(re.search(reason, remark) for remark in missed), missed


@pytest.mark.parametrize("mask", [None, MASK])
def test_an_argument_of_a_part(mask: Tensor | None) -> None:
    """It alone stays; with examples, the result is held to them."""
    original, other = model(by_argument, Masked()), MASK if mask is None else None
    whole = compiled(original)
    reasons(whole, ASKED.format(None) + NO_EXAMPLE)
    assert operators(whole)["Masked"] == 2
    fused = compiled(original, ({"image": X, "mask": mask},))
    for result in (whole, fused):
        same(original, result, {"image": X, "mask": mask})
    same(original, whole, {"image": X, "mask": other})
    with pytest.raises(AssertionError, match=HELD):
        fused({"image": X, "mask": other})


@pytest.mark.parametrize("example", ["a", 2.0, None, MASK])
def test_the_type_of_a_part(example: Any) -> None:
    original, given = model(by_type), {"image": X, "mask": example}
    whole = compiled(original)
    reasons(whole, "it depends on the type of a result; pass example_inputs")
    fused = compiled(original, (given,))
    for result in (whole, fused):
        same(original, result, given)
    other = {"image": X, "mask": MASK if example is None else None}
    same(original, whole, other)
    with pytest.raises(AssertionError, match=HELD):
        fused(other)


def test_a_part_that_is_looked_up() -> None:
    """By what it is: it may be no tensor."""

    def forward(m: Any, t: Any) -> Tensor:
        return folded(m, t["image"]) * {"a": 2.0}.get(t["mask"], 1.0)

    original, given = model(forward), {"image": X, "mask": "a"}
    whole, fused = compiled(original), compiled(original, (given,))
    reasons(whole, NO_EXAMPLE)
    for result in (whole, fused):
        same(original, result, given)
    with pytest.raises(AssertionError, match=HELD):
        fused({"image": X, "mask": "b"})


def test_a_tensor_is_no_constant() -> None:
    original = model(by_truth)
    fused = compiled(original, (GIVEN,))
    reasons(fused, "it asks whether a tensor or a container is a constant")
    same(original, fused, GIVEN)
    same(original, fused, {"image": X, "mask": True})


def two(m: Any, x: Tensor) -> Tensor:
    y, aux = m.part(x)
    y = folded(m, y)
    if aux is not None:
        y = y * 10
    return y


def second(m: Any, x: Tensor) -> Tensor:
    parts = m.part(x)
    y = folded(m, x)
    return y if parts[1] is None else y * 10


def one(m: Any, x: Tensor) -> Tensor:
    aux = m.part(x)
    y = folded(m, x)
    return y if aux is None else y * 10


@pytest.mark.parametrize(
    ("forward", "part"),
    [
        (two, Branching()),
        (second, Branching()),
        (two, Passing(Branching())),
        (two, Passing(Repacking(Branching()))),
        (one, Vanishing()),
        (one, Passing(Vanishing())),
        (one, nn.Sequential(nn.Identity(), Vanishing())),
    ],
)
def test_a_module_that_stays(forward: Forward, part: nn.Module) -> None:
    original = model(forward, part)
    for example, reason in ((None, NO_EXAMPLE), (X, BY_VALUE)):
        fused = compiled(original, example)
        reasons(fused, ASKED.format(None) + reason)
        same(original, fused, X)
        same(original, fused, X * 1e8)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 1), Masked()])
def test_a_hook_that_gives_none(layer: nn.Module) -> None:
    """Nobody knows what a hook does."""
    layer.register_forward_hook(lambda *given: (given[-1], None))
    original = model(two, layer)
    for example, reason in ((None, NO_EXAMPLE), (X, "a module with hooks")):
        fused = compiled(original, example)
        reasons(fused, ASKED.format(None) + reason)
        same(original, fused, X)


def test_a_module_that_stays_and_that_the_example_tells_of() -> None:
    original = model(two, Counting())
    reasons(compiled(original), ASKED.format(None) + NO_EXAMPLE)
    even, odd = drawn(2, 2, 4, 8, 6), X
    for example, other in ((odd, even), (even, odd)):
        fused = compiled(original, example)
        assert norms(fused) == []
        same(original, fused, example)
        with pytest.raises(AssertionError, match=HELD):
            fused(other)


def test_a_type_that_a_hook_gives() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.part(x)
        return folded(m, y[0] if isinstance(y, tuple) else y)

    layer = nn.Conv2d(4, 4, 1)
    layer.register_forward_hook(lambda *given: (given[-1], None))
    original = model(forward, layer)
    for example in (None, X):
        same(original, compiled(original, example), X)


def test_a_list_of_parts() -> None:
    def forward(m: Any, t: Any) -> Any:
        y = m.part(t["image"])
        for x in (t["image"], t.get("more"), t.get("mask")):
            if x is None:
                continue
            y = y + folded(m, x).sum()
        for x in t["all"]:
            if x is not None:
                y = y * 2
        return y

    original = model(forward)
    given = {"image": X, "mask": None, "all": [X, None, X]}
    fused = compiled(original, (given,))
    same(original, fused, given)
    for other in ({"more": X}, {"all": [X, X, X]}, {"all": [X, None, None]}):
        with pytest.raises(AssertionError, match=HELD):
            fused(given | other)


@pytest.mark.parametrize("example", [None, X])
def test_what_nobody_asks_of_a_part_is_no_obstacle(example: Any) -> None:
    """Nor what is asked of an argument, an attribute, or another variable."""

    def forward(m: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y, _ = m.part(x)
        first, bias = x[0], None
        if m.conv.bias is not None and bias is None and mask is None:
            y = folded(m, y)
        return y + first.sum()

    original = model(forward, Branching())
    fused = compiled(original, example)
    assert norms(fused) == []
    same(original, fused, X)


def test_the_weights_of_an_attention() -> None:
    """Its fifth argument says that there are none."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y, weights = m.part(x, x, x, None, False)
        return y * 2 if weights is None else y

    x = drawn(1, 2, 5, 8)
    original = model(forward, nn.MultiheadAttention(8, 2, batch_first=True))
    same(original, compiled(original), x)


@pytest.mark.parametrize("example", [NONE, GIVEN])
def test_a_result_that_is_held_is_saved(example: Any) -> None:
    fused, file = compiled(model(by_get), (example,)), io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(example), fused(example))
    with pytest.raises(AssertionError, match=HELD):
        loaded(GIVEN if example is NONE else NONE)
