"""The judge of whole models: what it lets through, and what it does not."""

import copy
from collections import UserDict
from dataclasses import dataclass
from math import inf, nan
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.verify import compare_outputs, relative_difference
from tests.passes.alone import Net
from tests.randomised import randomised
from tests.strategies import drawn

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def model_and_input(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    x = drawn(0, 2, 3, 9, 9)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    return randomised(model, x.float()).to(dtype), x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_model_is_equivalent(dtype: torch.dtype) -> None:
    model, x = model_and_input(dtype)
    found = reparam.verify(model, reparam.compile(model), x)
    assert found.equivalent
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.rmse_fused <= found.max_fused
    found.raise_if_different()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_a_wrong_model_is_not(dtype: torch.dtype, which: str) -> None:
    """One weight of 32 is off by a sixteenth: less would pass for rounding in bfloat16."""
    model, x = model_and_input(dtype)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        dict(wrong.named_parameters())[f"3.{which}"].flatten()[0] += 1 / 16
    found = reparam.verify(model, wrong, x)
    assert not found.equivalent
    with pytest.raises(reparam.VerificationError, match="computes something else; DIFFERENT"):
        found.raise_if_different()


def test_one_wrong_pixel_is_enough() -> None:
    """The border of one image: a mean over all would hide it."""
    expected = [drawn(0, 8, 16, 32, 32).float()]
    exact = [expected[0].double()]
    off = [expected[0].clone()]
    off[0][0, 0, 0, 0] += 1e-4
    assert compare_outputs(expected, [expected[0].clone()], exact).equivalent
    assert not compare_outputs(expected, off, exact).equivalent


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_must_be_none_in_both(number: float) -> None:
    expected = [drawn(0, 4, 4).float()]
    expected[0][1, 1] = number
    exact = [expected[0].double()]
    assert compare_outputs(expected, [expected[0].clone()], exact).equivalent
    assert not compare_outputs(expected, [drawn(0, 4, 4).float()], exact).equivalent


def test_a_model_that_computes_in_less_than_it_returns() -> None:
    """Its error is that of float32, though its output is float64."""

    class Widening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).relu().double()

    x = drawn(0, 2, 3, 9, 9).float()
    model = randomised(Widening(), x)
    fused = reparam.compile(model, x)
    assert reparam.verify(model, fused, x).equivalent
    with torch.no_grad():
        next(fused.parameters()).mul_(1.001)
    assert not reparam.verify(model, fused, x).equivalent


class Several(nn.Module):
    """Returns what a function of its two inputs says."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


def test_structures_and_kinds_of_inputs() -> None:
    model = Several(lambda x, y: {"sum": x + y, "others": [x * y, (x - y).argmax()]})
    x, y = drawn(0, 3, 4).float(), drawn(1, 3, 4).float()
    for inputs in ((x, y), [x, y], {"x": x, "y": y}):
        assert reparam.verify(model, copy.deepcopy(model), inputs).equivalent


@pytest.mark.parametrize(
    "other",
    [
        lambda x, y: x[:1] + y[:1],
        lambda x, y: (x + y).double(),
    ],
)
def test_other_shapes_or_dtypes_are_an_error(other: Any) -> None:
    x, y = drawn(0, 3, 4).float(), drawn(1, 3, 4).float()
    with pytest.raises(reparam.VerificationError, match="returns other shapes or dtypes"):
        reparam.verify(Several(lambda x, y: x + y), Several(other), (x, y))


def test_the_model_and_its_inputs_are_left_alone() -> None:
    model = Several(lambda x, y: x.mul_(2) + y)
    x, y = drawn(0, 3, 4).float(), drawn(1, 3, 4).float()
    before = x.clone()
    reparam.verify(model, model, (x, y))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        (torch.tensor([1.0, -4.0]), torch.tensor([1.0, -3.0]), 0.25),
        (torch.zeros(2), torch.tensor([0.0, 0.5]), 0.5),  # relative to nothing
        (torch.zeros(2), torch.zeros(1, 2), float("inf")),
        (torch.zeros(0), torch.zeros(0), 0.0),
    ],
)
def test_relative_difference(old: Tensor, new: Tensor, difference: float) -> None:
    assert relative_difference(old, new) == difference


def test_a_model_that_does_not_run_in_float64_is_an_error() -> None:
    """The bits of its weights are those of float32."""
    model = Several(lambda x, y: x.view(torch.int32).float().view(3, 4) + y)
    x, y = drawn(0, 3, 4).float(), drawn(1, 3, 4).float()
    with pytest.raises(reparam.VerificationError, match="does not run in float64"):
        reparam.verify(model, copy.deepcopy(model), (x, y))


class Reversed(nn.Module):
    """A linear layer that sums from the last product to the first."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return (x.flip(-1) * self.weight.flip(-1)).cumsum(-1)[:, -1:]


def test_one_unlucky_rounding_does_not_decide() -> None:
    """Of a single number, many a right result is off by more than twice the error of another."""
    draws: list[bool] = []
    for seed in range(40):
        torch.manual_seed(seed)
        model, x = nn.Linear(64, 1, bias=False).eval(), torch.randn(1, 64)
        fused = Reversed(model)
        with torch.no_grad():
            exact = [x.double() @ model.weight.double().T]
            draws.append(compare_outputs([model(x)], [fused(x)], exact).equivalent)
        assert reparam.verify(model, fused, x).equivalent, seed
    assert 0 < draws.count(False) < 20


def test_inputs_that_do_not_fit_are_an_error() -> None:
    model, x = model_and_input()
    fused = reparam.compile(model)
    with pytest.raises(reparam.VerificationError, match=r"^the model itself does not run on .*"):
        reparam.verify(model, fused, x[:, :2])
    with pytest.raises(reparam.VerificationError, match=r"^the compiled model does not run on .*"):
        reparam.verify(nn.Identity(), fused, x[:, :2])
    with pytest.raises(reparam.VerificationError, match=r"^the model itself does not run on .*"):
        reparam.compile(model, x[:, :2])


def test_a_model_that_fails_on_other_inputs_is_no_unlucky_one() -> None:
    class Once(nn.Module):
        """A linear layer that is off by three times what is allowed, and runs once."""

        def __init__(self, layer: nn.Linear, x: Tensor) -> None:
            super().__init__()
            self.layer, self.runs = layer, 0
            exact = x.double() @ layer.weight.double().T
            allowed = compare_outputs([layer(x)], [layer(x)], [exact])
            self.off = 6 * allowed.rmse_model + allowed.rms * 2**-22

        def forward(self, x: Tensor) -> Tensor:
            if not torch.equal(x, self.layer.seen):
                raise RuntimeError("once is enough")
            return self.layer(x) + self.off

    model, x = nn.Linear(64, 16, bias=False).eval(), drawn(0, 1, 64).float()
    model.register_buffer("seen", x, persistent=False)
    with torch.no_grad():
        fused = Once(model, x)
    with pytest.raises(reparam.VerificationError, match=r"^the compiled model does not run .*once"):
        reparam.verify(model, fused, x)


def test_other_inputs_do_not_hide_a_difference() -> None:
    """Columns of tables differ in scale: at another place, one of them swamps all others."""

    class Head(nn.Module):
        def __init__(self, error: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.head, self.error = nn.BatchNorm1d(8), nn.Linear(8, 16), error
            self.norm.register_buffer("running_var", torch.tensor([1.0] * 7 + [1e14]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x)) + self.error

    x = torch.randn(4, 8) * torch.tensor([1.0] * 7 + [1e7])
    model = Head(0.0).eval()
    assert reparam.verify(model, Head(0.0).eval(), x).equivalent
    assert not reparam.verify(model, Head(1e-4).eval(), x).equivalent


@pytest.mark.parametrize("other", [-inf, nan])
def test_what_is_infinite_is_the_same(other: float) -> None:
    expected = [torch.tensor([1.0, inf])]
    exact = [tensor.double() for tensor in expected]
    assert compare_outputs(expected, [expected[0].clone()], exact).equivalent
    assert not compare_outputs(expected, [torch.tensor([1.0, other])], exact).equivalent


def test_without_a_finite_number_nothing_was_compared() -> None:
    nowhere, somewhere = torch.full((2,), nan), torch.tensor([1.0, nan])
    for first, compared in ((nowhere, False), (somewhere, True)):
        outputs = [first, nowhere]
        found = compare_outputs(outputs, outputs, [tensor.double() for tensor in outputs])
        assert (found.equivalent, found.compared) == (True, compared)
        assert str(found).startswith("equivalent" if compared else "not told apart: no floating")


@pytest.mark.parametrize("other", [lambda x: {"b": x}, lambda x: [x], lambda x: (x,), lambda x: x])
def test_another_structure_is_an_error(other: Any) -> None:
    model, fused = Net(lambda _, x: {"a": x}).eval(), Net(lambda _, x: other(x)).eval()
    x = drawn(0, 2, 3).float()
    assert reparam.verify(model, model, x).equivalent
    with pytest.raises(reparam.VerificationError, match="returns another structure"):
        reparam.verify(model, fused, x)


def test_integers_that_differ_are_counted() -> None:
    """And no more: of equal numbers, roundings decide which is the largest."""
    x = drawn(0, 2, 4, 8, 8)
    model = Net(lambda m, x: (x, x.argmax(1)))
    assert reparam.verify(model, Net(lambda m, x: (x, x.argmax(1))), x).flipped == 0
    found = reparam.verify(model, Net(lambda m, x: (x, x.argmin(1))), x)
    assert found.equivalent
    assert found.flipped == 1


def test_sizes_are_compared() -> None:
    x = drawn(0, 2, 4, 8, 9)
    model = Net(lambda m, x: {"y": x, "size": x.shape, "name": "y", "width": x.shape[3]})
    assert reparam.verify(model, model, x).equivalent
    other = Net(lambda m, x: {"y": x, "size": x.shape, "name": "y", "width": 8})
    with pytest.raises(reparam.VerificationError, match="returns 8 instead of 9"):
        reparam.verify(model, other, x)


def test_complex_numbers_are_compared() -> None:
    x = drawn(0, 2, 4)
    model = Net(lambda m, x: x + 1j)
    assert reparam.verify(model, model, x).equivalent
    assert not reparam.verify(model, Net(lambda m, x: x - 1j), x).equivalent


def test_integers_alone_are_compared() -> None:
    x = drawn(0, 2, 4, 8, 8)
    model = Net(lambda m, x: x.argmax(1))
    assert reparam.verify(model, model, x).equivalent
    assert not reparam.verify(model, Net(lambda m, x: x.argmin(1)), x).equivalent
    reparam.compile(model.eval(), x)


class Named(dict[str, Any]):
    """What pytree knows nothing of, as it is not registered."""


RESULTS = {
    "Named": lambda y: Named(y=y),
    "UserDict": lambda y: UserDict(y=y),
    "SimpleNamespace": lambda y: SimpleNamespace(y=y),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_in_which_no_tensor_is_found_is_named(kind: str) -> None:
    model, x = Net(lambda m, x: RESULTS[kind](x * 2)).eval(), drawn(0, 2, 4)
    words = f"the model returns a {kind}, in which no tensor can be found .* return a dict, a tuple"
    for check in (lambda: reparam.compile(model, x), lambda: reparam.verify(model, model, x)):
        with pytest.raises(reparam.VerificationError, match=words):
            check()
    fused = reparam.compile(model, x, verify=False)
    assert str(fused(x)) == str(model(x))


def test_a_model_in_training_mode_is_refused_where_that_matters() -> None:
    x = drawn(0, 2, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).double().eval()
    fused = reparam.compile(model)
    assert reparam.verify(nn.Sequential(model), fused, x).equivalent, "nothing in it differs"
    with pytest.raises(reparam.TrainingModeError, match=r"module '1' \(Dropout\) .*eval\(\)"):
        reparam.verify(model.train(), fused, x)


@dataclass
class Result:
    """What pytree knows nothing of."""

    y: Tensor
    size: int


def test_what_a_dataclass_holds_is_compared() -> None:
    x = drawn(0, 2, 4)
    model = Net(lambda m, x: Result(x * 2, 3))
    assert reparam.verify(model, model, x).equivalent
    assert not reparam.verify(model, Net(lambda m, x: Result(x * 3, 3)), x).equivalent
    with pytest.raises(reparam.VerificationError, match="returns 4 instead of 3"):
        reparam.verify(model, Net(lambda m, x: Result(x * 2, 4)), x)
    assert isinstance(reparam.compile(model.eval(), x)(x), Result)
