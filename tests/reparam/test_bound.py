"""Arguments that a user holds constant become a part of the model."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import passes
import reparam
from reparam.bound import Bound
from reparam.errors import CaptureError
from reparam.verify import EXACT, relative_difference
from tests.fused import operators, same_state, storages
from tests.strategies import drawn

X, MASK, CODE = drawn(0, 2, 3, 5, 4), drawn(1, 3, 5, 4), drawn(2, 6)


class Conditioned(nn.Module):
    """A convolution whose weight a code makes, and a mask that is added; both may be turned off."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(3, 3, 3))
        self.conv = nn.Conv2d(3, 3, 1)
        self.double().eval()

    def forward(
        self, x: Tensor, code: Tensor, mask: Tensor | None = None, gated: bool = False
    ) -> Tensor:
        weight = self.weight * code[:3].exp()
        y = self.conv(x) + nn.functional.conv2d(x, weight[..., None, None])
        if mask is not None:
            y = y + mask.sigmoid()
        return y.sigmoid() if gated else y


class First(nn.Module):
    """A plain value in front of the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).double()
        self.eval()

    def forward(self, times: int, x: Tensor, scale: float = 1.0) -> Tensor:
        for _ in range(times):
            x = self.linear(x) * scale
        return x


def inputs(fused: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in fused.graph.nodes if node.op == "placeholder"]


def compiled(model: nn.Module, example: Any, **constants: Any) -> fx.GraphModule:
    """The result of the default pipeline, the model and its arguments as they were."""
    state = copy.deepcopy(model.state_dict())
    attributes = set(vars(model))
    given = {name: copy.deepcopy(value) for name, value in constants.items()}
    fused = reparam.compile(model, example, passes=passes.DEFAULT, constants=constants)
    assert same_state(model.state_dict(), state)
    assert set(vars(model)) == attributes
    for name, value in constants.items():
        same = (
            torch.equal(value, given[name]) if isinstance(value, Tensor) else value is given[name]
        )
        assert same
    assert storages(model).isdisjoint(storages(fused))
    return fused


def assert_same(expected: Tensor, found: Tensor) -> None:
    assert relative_difference(expected.detach(), found.detach()) <= EXACT


EXAMPLES: list[Any] = [None, X, (X,), [X], {"x": X}]


@pytest.mark.parametrize("example", EXAMPLES)
def test_tensors_are_no_inputs_any_more(example: Any) -> None:
    """Whatever the example inputs are; they are of the arguments that are left."""
    model = Conditioned()
    fused = compiled(model, example, code=CODE, mask=MASK)
    assert inputs(fused)[0] == "x"
    assert not {"code", "mask"} & set(inputs(fused))
    for x in (X, X[:1]):
        assert_same(model(x, CODE, MASK), fused(x))
        assert_same(model(x, CODE, MASK), fused(x=x))


@pytest.mark.parametrize("example", [None, (X, MASK), {"x": X, "mask": MASK}])
def test_argument_in_the_middle(example: Any) -> None:
    """Those behind it move up."""
    model = Conditioned()
    fused = compiled(model, example, code=CODE)
    if example is not None:
        assert inputs(fused)[:2] == ["x", "mask"]
        assert_same(model(X, CODE, MASK * 2), fused(X, MASK * 2))
    else:
        assert_same(model(X, CODE), fused(X))


@pytest.mark.parametrize("example", [(CODE,), {"code": CODE}])
def test_first_argument(example: Any) -> None:
    model = Conditioned()
    fused = compiled(model, example, x=X, mask=MASK)
    assert inputs(fused)[0] == "code"
    assert_same(model(X, CODE * 2, MASK), fused(CODE * 2))


def test_what_depends_on_constants_is_folded() -> None:
    """The weight is computed once, and both convolutions become one; the mask has its sigmoid."""
    fused = compiled(Conditioned(), X, code=CODE, mask=MASK)
    counted = operators(fused)
    assert counted["Conv2d"] == 1
    assert not {"exp", "sigmoid", "conv2d", "Linear"} & set(counted)
    state = fused.state_dict()
    assert any(torch.allclose(tensor, MASK.sigmoid()) for tensor in state.values())
    assert not any(torch.equal(tensor, MASK) for tensor in state.values())


def test_layer_that_reads_a_constant_is_computed_once() -> None:
    class Generated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = nn.Linear(6, 4).double()
            self.eval()

        def forward(self, x: Tensor, code: Tensor) -> Tensor:
            return x * self.generator(code).relu()

    model = Generated()
    fused = compiled(model, X, code=CODE)
    assert_same(model(X, CODE), fused(X))
    assert operators(fused)["Linear"] == 0


@pytest.mark.parametrize("example", [None, X, {"x": X}])
@pytest.mark.parametrize("gated", [False, True])
def test_plain_value(example: Any, gated: bool) -> None:
    """Be it the default or not."""
    model = Conditioned()
    fused = compiled(model, example, code=CODE, gated=gated)
    assert_same(model(X, CODE, gated=gated), fused(X))
    assert ("sigmoid" in operators(fused)) == gated


@pytest.mark.parametrize("example", [None, X, {"x": X}])
def test_plain_value_in_front(example: Any) -> None:
    model = First()
    fused = compiled(model, example, times=2)
    assert operators(fused)["Linear"] in (1, 2)
    assert_same(model(2, X), fused(x=X))
    assert_same(model(2, X), fused(X))


@pytest.mark.parametrize("example", [None, X])
def test_number_that_is_not_the_default(example: Any) -> None:
    model = First()
    fused = compiled(model, example, times=1, scale=0.5)
    assert_same(model(1, X, 0.5), fused(X))


def test_constants_are_not_shared() -> None:
    """What becomes of them later is of no concern."""
    model, mask, code = Conditioned(), MASK.clone(), CODE.clone()
    expected = model(X, code, mask)
    fused = compiled(model, X, code=code, mask=mask)
    addresses = {tensor.untyped_storage().data_ptr() for tensor in (mask, code)}
    assert addresses.isdisjoint(storages(fused))
    mask.zero_()
    code.zero_()
    assert_same(expected, fused(X))


def test_constant_that_requires_a_gradient() -> None:
    model, code = Conditioned(), CODE.clone().requires_grad_()
    fused = compiled(model, X, code=code)
    assert code.grad is None
    assert code.requires_grad
    assert_same(model(X, code), fused(X))


def test_constant_that_the_forward_writes_to() -> None:
    """The second call is given the same as the first, and the user's tensor is left alone."""

    class Doubling(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            t.mul_(2)
            return x + t

    t = CODE.clone()
    fused = reparam.compile(Doubling().eval(), CODE, constants={"t": t})
    assert torch.equal(t, CODE)
    for _ in range(2):
        assert_same(CODE + 2 * CODE, fused(CODE))


def test_integers() -> None:
    """A tensor of any dtype."""

    class Lookup(nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return x.index_select(1, index)

    index = torch.tensor([2, 0])
    fused = compiled(Lookup().eval(), X, index=index)
    assert torch.equal(fused(X), X[:, index])


@pytest.mark.parametrize("constants", [{"cod": CODE}, {"x": X, "training": True}])
def test_unknown_name(constants: dict[str, Any]) -> None:
    unknown = next(name for name in constants if name != "x")
    with pytest.raises(CaptureError) as caught:
        reparam.compile(Conditioned(), X, constants=constants)
    assert str(caught.value) == (
        f"Conditioned.forward has no argument {unknown!r} to hold constant; "
        "it has x, code, mask, gated"
    )


def test_none_at_all() -> None:
    model = Conditioned()
    for constants in (None, {}):
        fused = reparam.compile(model, (X, CODE), constants=constants)
        assert_same(model(X, CODE), fused(X, CODE))


def test_model_with_constants_bound() -> None:
    """What the result is compared with."""
    model = Conditioned()
    bound = Bound(model, {"code": CODE, "gated": True})
    assert_same(model(X, CODE, MASK, True), bound(X, MASK))
    assert_same(model(X, CODE, MASK, True), bound(x=X, mask=MASK))
    assert_same(model(X, CODE, None, True), bound(X))


def test_second_compile_changes_nothing() -> None:
    fused = compiled(Conditioned(), X, code=CODE, mask=MASK)
    again = reparam.compile(fused, X, passes=passes.DEFAULT)
    assert reparam.report(again).applied == ()
    assert same_state(again.state_dict(), fused.state_dict())


def test_constant_beside_an_argument_whose_name_ends_in_a_number() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float, scale_2: Tensor) -> Tensor:
            return x * scale + scale_2

    model = Scaled().eval()
    fused = reparam.compile(model, constants={"scale": 2.0})
    assert_same(model(X, 2.0, X + 1), fused(X, X + 1))


def test_constant_that_is_no_plain_value() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor, options: dict[str, Tensor]) -> Tensor:
            return x * options["scale"]

    with pytest.raises(reparam.CaptureError, match="'options' is a dict, neither a tensor nor"):
        reparam.compile(Nested().eval(), constants={"options": {"scale": X}})


def test_constant_of_a_name_that_the_model_has() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._constant_mask = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask + self._constant_mask

    model, mask = Owner().eval(), torch.tensor(2.0, dtype=torch.float64)
    with torch.no_grad():
        assert_same(model(X, mask), reparam.compile(model, constants={"mask": mask})(X))
