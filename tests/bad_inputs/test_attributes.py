"""What else of a model is at hand in the result: attributes, further methods, `train()`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.compiler import checked_methods
from tests.bad_inputs.outcomes import (
    IMAGE,
    assert_alike,
    compiled,
    conv_norm,
    norms,
    same,
    trained,
)
from tests.passes.alone import Net
from tests.strategies import drawn


def _parts() -> dict[str, nn.Module]:
    conv, norm = conv_norm()
    return {"conv": conv, "norm": norm}


class Classifier(nn.Module):
    """As timm's: attributes that callers read, and a second way in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_norm(), conv_norm()
        self.fc = nn.Linear(4, 3)
        self.num_classes = 3
        self.name = "tiny"
        self.default_cfg = {"mean": (0.5,), "nested": {"a": [1, 2]}}
        self.sizes = [7, 6]
        self.extra = drawn(9, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x).relu())

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def classifier() -> nn.Module:
    return trained(Classifier())


def test_attributes_are_kept() -> None:
    model = classifier()
    fused = compiled(model)
    for name in ("num_classes", "name", "default_cfg", "sizes"):
        assert getattr(fused, name) == getattr(model, name)
    fused.default_cfg["nested"]["a"].append(3)
    assert model.default_cfg["nested"]["a"] == [1, 2], "it is a copy"


def test_attributes_hide_nothing_of_the_result() -> None:
    fused = compiled(classifier())
    assert fused(IMAGE).shape == (2, 3)
    assert not fused.training
    assert norms(fused) == []
    compiled(fused)


def test_methods_are_compiled_when_named() -> None:
    model = classifier()
    fused = compiled(model, methods=("forward_features",))
    assert norms(fused) == []
    same(model, fused)
    with torch.no_grad():
        assert_alike(model.forward_features(IMAGE), fused.forward_features(IMAGE))


def test_methods_take_their_own_arguments() -> None:
    model = classifier()
    fused = compiled(model, methods=("forward_features", "forward_head"))
    with torch.no_grad():
        features = model.forward_features(IMAGE)
        assert_alike(model.forward_head(features), fused.forward_head(features))


def test_methods_that_are_not_named_say_so() -> None:
    fused = compiled(classifier())
    with pytest.raises(AssertionError, match="not compiled") as caught:
        fused.forward_features(IMAGE)
    assert "forward_features" in str(caught.value)
    assert "methods" in str(caught.value), "it says what to do"


def test_methods_that_there_are_none_of() -> None:
    with pytest.raises(reparam.ReparamError, match="forward_nothing"):
        compiled(classifier(), methods=("forward_nothing",))


def test_methods_that_are_no_tuple_of_names() -> None:
    with pytest.raises(reparam.CaptureError, match=r"write methods=\('forward_features',\)"):
        compiled(classifier(), methods="forward_features")
    for methods, what in ((3, "not int"), ((3,), "and 3 is none")):
        with pytest.raises(reparam.CaptureError, match=f"methods is a tuple of names, {what}"):
            checked_methods(methods)


def test_train_of_the_result_changes_nothing() -> None:
    model = nn.Sequential(conv_norm(), nn.Dropout(0.9), nn.ReLU(), conv_norm(), nn.Dropout2d(0.9))
    fused = compiled(trained(model))
    fused.train()
    same(model, fused)
    assert norms(fused) == []
    assert not any("Dropout" in type(module).__name__ for module in fused.modules())


def test_train_of_the_result_reaches_what_stayed() -> None:
    """A layer that could not be folded is the same layer as in the model, and trains like it."""
    model = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()))
    fused = compiled(model)
    assert norms(fused) == ["1"]
    fused.train()
    assert fused.get_submodule("1").training
    fused.eval()
    same(model, fused)


@pytest.mark.parametrize("function", ["dropout", "batch_norm"])
def test_train_of_the_result_reaches_no_function(function: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        n = m.norm
        if function == "dropout":
            return nn.functional.dropout(m.conv(x), 0.5, m.training)
        statistics = (n.running_mean, n.running_var, n.weight, n.bias)
        return nn.functional.batch_norm(x.relu(), *statistics, m.training)

    model = trained(Net(forward, **_parts()))
    fused = compiled(model)
    fused.train()
    same(model, fused)


def test_train_of_the_result_with_a_block_that_stays_whole() -> None:
    """Its dropout is still there, and its batch norm is not."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.dropout = conv_norm(), nn.Dropout(0.9)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(self.part(x)) if bool(x.isfinite().all()) else x

    for model in (trained(nn.Sequential(Block(), conv_norm())), trained(Block())):
        fused = compiled(model)
        assert norms(fused) == []
        dropouts = [m for m in fused.modules() if isinstance(m, nn.Dropout)]
        assert [m.training for m in dropouts] == [False]
        fused.train()
        assert [m.training for m in dropouts] == [True]


def test_the_result_can_be_fine_tuned() -> None:
    fused = compiled(trained(nn.Sequential(conv_norm(), nn.ReLU(), conv_norm())))
    fused.train().float()
    optimizer = torch.optim.SGD(fused.parameters(), lr=1e-3)
    image, losses = IMAGE.float(), []
    for _ in range(5):
        loss = fused(image).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
