"""What a result has of the model's interface: hooks, attributes, methods."""

import copy
import io
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from reparam.bound import Entry
from reparam.errors import CaptureError
from reparam.verify import EXACT, relative_difference
from tests.bad_inputs.outcomes import IMAGE, compiled, conv_norm, norms, same, trained
from tests.strategies import drawn


class Classifier(nn.Module):
    """Features and a head, as the models of timm have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.final = conv_norm(), conv_norm()
        self.head = nn.Linear(4, 3)
        self.num_classes = 3
        self.settings = {"sizes": [7, 6], "mean": (0.5,)}
        self.cached = [torch.zeros(2)]
        self.graph = "a name that a graph module has"
        self._secret = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.final(self.stem(x).relu())

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def pooled(self, x: Tensor, *, times: int = 1) -> Tensor:
        return x.mean((2, 3)) * (2 if x.shape[2] > 3 else times)

    def _hidden(self) -> int:
        return 3


@pytest.fixture
def model() -> Classifier:
    made = Classifier()
    trained(made)
    return made


def reloaded(fused: nn.Module) -> Any:
    """Saved and loaded, as a whole."""
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_attributes(model: Classifier) -> None:
    model.lock = threading.Lock()  # what can't be copied
    fused = compiled(model)
    for result in (fused, copy.deepcopy(fused), reloaded(fused)):
        assert result.num_classes == 3
        assert result.settings == model.settings
        assert result.settings is not model.settings
        assert isinstance(result.graph, fx.Graph)
        for name in ("cached", "lock", "_secret", "_hidden", "nothing"):
            assert not hasattr(result, name), name


def test_methods_that_were_not_compiled_say_so(model: Classifier) -> None:
    fused = compiled(model)
    for result in (fused, copy.deepcopy(fused), reloaded(fused)):
        for arguments in ((), (IMAGE,)):
            with pytest.raises(AssertionError, match=r"Classifier\.forward_head was not compiled"):
                result.forward_head(*arguments)
        with pytest.raises(AssertionError, match=r"methods=\('pooled',\)"):
            result.pooled(IMAGE, times=3)
    assert [name for name, _ in fused.named_modules() if "forward" in name] == []


def test_methods(model: Classifier) -> None:
    fused = compiled(model, methods=("forward_features", "forward_head"))
    assert norms(fused) == []
    for result in (fused, copy.deepcopy(fused), reloaded(fused)):
        same(model, result, IMAGE)
        same(Entry(model, "forward_features"), result.forward_features, IMAGE)
        same(Entry(model, "forward_head"), result.forward_head, IMAGE)
        with pytest.raises(AssertionError, match="was not compiled"):
            result.pooled(IMAGE)
    for argument in (True, 1):
        with pytest.raises(AssertionError, match="pre_logits"):
            fused.forward_head(IMAGE, pre_logits=argument)


def test_methods_with_example_inputs(model: Classifier) -> None:
    examples = {
        "forward_features": IMAGE,
        "forward_head": {"x": IMAGE, "pre_logits": True},
        "pooled": (IMAGE,),
    }
    fused = compiled(model, IMAGE, methods=examples)
    same(Entry(model, "forward_features"), fused.forward_features, IMAGE)
    same(Entry(model, "forward_head"), fused.forward_head, IMAGE, pre_logits=True)
    same(Entry(model, "pooled"), fused.pooled, IMAGE)
    with pytest.raises(AssertionError, match="example inputs"):
        fused.pooled(drawn(1, 2, 4, 2, 2))


def test_methods_share_what_came_out_alike(model: Classifier) -> None:
    fused = compiled(model, methods=("forward_features", "forward_head"))
    plain = compiled(model)
    assert fused.forward_head.head is fused.head
    shared = {id(parameter) for parameter in plain.parameters()}
    assert len(list(fused.parameters())) == len(shared)
    for result in (copy.deepcopy(fused), reloaded(fused)):
        assert result.forward_head.head is result.head


def test_methods_move_and_cast_along(model: Classifier) -> None:
    fused = compiled(model, methods=("forward_features",))
    for result in (fused, copy.deepcopy(fused), reloaded(fused)):
        result.float()
        assert {parameter.dtype for parameter in result.parameters()} == {torch.float32}
        found = result.forward_features(IMAGE.float())
        with torch.no_grad():
            expected = model.forward_features(IMAGE)
        assert relative_difference(expected, found.double()) < 1e-5


def test_methods_that_come_out_otherwise_have_modules_of_their_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv_norm()
            self.other = nn.Conv2d(4, 4, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

        def without(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.other(x.relu())

    model = trained(Two())
    fused = compiled(model, methods=("without",))
    same(model, fused)
    same(Entry(model, "without"), fused.without, IMAGE)


def test_no_such_method(model: Classifier) -> None:
    for name in ("forward_all", "num_classes"):
        with pytest.raises(CaptureError, match=f"Classifier has no method '{name}' to compile"):
            compiled(model, methods=(name,))


def test_a_method_that_cant_be_traced(model: Classifier) -> None:
    with pytest.raises(CaptureError, match=r"Classifier\.pooled"):
        compiled(model, methods=("pooled",))


def test_methods_of_a_model_that_stays(model: Classifier) -> None:
    """It has all of its own."""

    class Branching(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    branching = Branching()
    trained(branching)
    fused = compiled(branching)
    assert type(fused) is Branching
    same(Entry(branching, "pooled"), fused.pooled, IMAGE)
    fused = compiled(branching, methods=("forward_features",))
    same(Entry(branching, "forward_features"), fused.forward_features, IMAGE)


def test_hooks_run_once_with_what_they_ask_for(model: Classifier) -> None:
    seen: list[str] = []

    def before(_: nn.Module, inputs: Any, named: Any) -> Any:
        seen.append(f"before {len(inputs)} {sorted(named)}")
        return inputs, {name: value * 2 for name, value in named.items()}

    def after(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        seen.append("after")
        return output + 1

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, always_call=True)
    fused = compiled(model, verify=False)
    seen.clear()
    found = fused(x=IMAGE)
    assert seen == ["before 0 ['x']", "after"]
    assert relative_difference(model(x=IMAGE), found) <= EXACT
    assert norms(fused) == []
    same(model, copy.deepcopy(fused), IMAGE)
