"""Row 39: signatures, and structures of inputs and outputs."""

import collections
import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.bad_inputs.outcomes import (
    IMAGE,
    assert_alike,
    compiled,
    conv_norm,
    fused_exactly,
    norms,
    refused,
    same,
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn


class Pair(NamedTuple):
    features: Tensor
    logits: Tensor | None


@dataclass
class Output:
    """As the models of transformers return."""

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    loss: Tensor | None = None


OUTPUTS = {
    "dict": lambda y: {"a": y, "b": {"c": y.relu(), "d": None}},
    "ordered": lambda y: collections.OrderedDict(z=y, a=y + 1),
    "numbers": lambda y: {0: y, 1: y.relu()},
    "tuple": lambda y: (y, (y.relu(), None)),
    "list": lambda y: [y, [y.relu()], ()],
    "one in a tuple": lambda y: (y,),
    "named tuple": lambda y: Pair(y, y.mean()),
    "named tuple with None": lambda y: Pair(y, None),
    "dataclass": lambda y: Output(y, (y.relu(),)),
    "dataclasses in a list": lambda y: [Output(y), {"more": Output(y.relu(), (), y.sum())}],
    "None": lambda _: None,
    "constants": lambda y: (y, 3, "name", True, 1.5, None),
    "twice": lambda y: (y, y),
    "input": lambda y: y,
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_row_39_outputs(kind: str) -> None:
    model = Net(lambda m, x: OUTPUTS[kind](m.norm(m.conv(x))), **_parts())
    fused_exactly(trained(model))


def test_row_39_outputs_that_pass_inputs_on() -> None:
    model = trained(Net(lambda m, x: {"x": x, "y": m.norm(m.conv(x))}, **_parts()))
    fused = fused_exactly(model)
    assert fused(IMAGE)["x"] is IMAGE


def _parts() -> dict[str, nn.Module]:
    conv, norm = conv_norm()
    return {"conv": conv, "norm": norm}


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm()

    def forward(self, batch: dict[str, Any], *, masks: Any = None) -> dict[str, Tensor]:
        image, (first, second) = batch["image"], batch["pair"]
        y = self.norm(self.conv(image)) + first
        return {"y": y * second.scale}


@dataclass
class Scale:
    scale: Tensor


def test_row_39_nested_inputs() -> None:
    model = Nested()
    trained(nn.Sequential(model.conv, model.norm))
    model.eval()
    batch = {"image": IMAGE, "pair": (drawn(1, 2, 4, 7, 6), Scale(drawn(2, 4, 1, 1)))}
    for given in (None, (batch,)):
        fused = compiled(model, given)
        same(model, fused, batch)
        assert norms(fused) == [] or reparam.report(fused).missed


class Called(nn.Module):
    """Every kind of argument that a forward may have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm()

    def forward(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        scale: float = 1.0,
        *,
        shift: Tensor | None = None,
        mode: str = "plain",
        double: bool = False,
    ) -> Any:
        y = self.norm(self.conv(image))
        if mask is not None:
            y = y * mask
        if shift is not None:
            y = y + shift
        if mode == "relu":
            y = y.relu()
        return {"y": y * scale * (2 if double else 1)}


def called() -> nn.Module:
    model = Called()
    trained(nn.Sequential(model.conv, model.norm))
    return model.eval()


MASK, SHIFT = drawn(1, 7, 6), drawn(2, 4, 1, 1)
CALLS: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    ((IMAGE,), {}),
    ((), {"image": IMAGE}),
    ((IMAGE, MASK), {}),
    ((IMAGE,), {"mask": MASK, "shift": SHIFT}),
    ((IMAGE, None), {"shift": SHIFT}),
    ((), {"shift": SHIFT, "image": IMAGE, "mask": MASK}),
)


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_row_39_keywords_and_defaults(number: int) -> None:
    """Called as in the example, and as without any."""
    args, kwargs = CALLS[number]
    model = called()
    names = ("image", "mask")
    fused = compiled(model, dict(zip(names, args, strict=False)) | kwargs)
    assert norms(fused) == []
    same(model, fused, *args, **kwargs)


def test_row_39_signature() -> None:
    """It takes the same arguments, in the same order, with the same defaults."""
    model = called()
    ours = inspect.signature(compiled(model).forward).parameters
    theirs = inspect.signature(model.forward).parameters
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default
        assert ours[name].kind in (parameter.kind, parameter.POSITIONAL_OR_KEYWORD)


@pytest.mark.parametrize(
    "options",
    [{"scale": 2.0}, {"mode": "relu"}, {"double": True}, {"mask": MASK}, {"shift": SHIFT}],
    ids=lambda options: next(iter(options)),
)
def test_row_39_another_value_than_the_default_is_never_ignored(options: dict[str, Any]) -> None:
    model = called()
    fused = compiled(model)
    with torch.no_grad():
        expected = model(IMAGE, **options)
    try:
        found = fused(IMAGE, **options)
    except Exception as error:
        said = str(error)
    else:
        assert_alike(expected, found)
        return
    assert next(iter(options)) in said, "it says which argument"


def test_row_39_what_eager_refuses_is_refused() -> None:
    fused = compiled(called())
    for args, kwargs in (((), {}), ((IMAGE,), {"unknown": 1}), ((IMAGE,) * 4, {})):
        with pytest.raises((TypeError, AssertionError)):
            fused(*args, **kwargs)


class Conditioned(nn.Module):
    """Calls layers on an argument that may be left out, which only some of them take."""

    def __init__(self, context: nn.Module) -> None:
        super().__init__()
        self.block, self.context = conv_norm(), context

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.block(x) + self.context(context)


NONE_TAKEN = [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.PReLU(), nn.Flatten(3)]


@pytest.mark.parametrize(
    "layer", [*NONE_TAKEN, nn.Linear(6, 6)], ids=lambda layer: type(layer).__name__
)
@pytest.mark.parametrize("options", [{}, {"constants": {"context": None}}])
def test_row_39_a_layer_that_is_called_on_none(layer: nn.Module, options: Any) -> None:
    model = trained(Conditioned(layer).eval(), IMAGE, IMAGE)
    fused = compiled(model, **options)
    for each in (model, fused):
        with pytest.raises((TypeError, AttributeError), match="None"):
            each(IMAGE)
    refused(model, reparam.VerificationError, "does not run on these", example_inputs=IMAGE)


def test_row_39_any_number_of_arguments() -> None:
    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv_norm()

        def forward(self, *images: Tensor, **more: Tensor) -> Tensor:
            return self.norm(self.conv(images[0])) + more["shift"]

    model = Open()
    trained(nn.Sequential(model.conv, model.norm))
    model.eval()
    same(model, compiled(model), IMAGE, shift=SHIFT)
