"""Which parts a module only calls, by every form in which it can use one."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.usage import called_parts, parts_of
from tests.bad_inputs.outcomes import IMAGE, compiled, conv_norm, norms, same, trained


class Layer(nn.Module):
    """A part of a user's own."""

    def forward(self, x: Any) -> Any:
        return x

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __getitem__(self, _: Any) -> "Layer":
        return self


class Holder(nn.Module):
    """With one part of each kind; each test has its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Layer()
        self.several = nn.Sequential(Layer(), Layer())
        self.list = nn.ModuleList([Layer(), Layer()])
        self.dict = nn.ModuleDict({"a": Layer(), "b": Layer()})
        self.linear = nn.Linear(1, 1)
        self.empty: Layer | None = None


def called(kind: type[nn.Module]) -> list[str]:
    """The paths of the parts that it only calls."""
    model = kind()
    names = {id(part): name for name, part in model.named_modules()}
    return sorted(names[id(part)] for part in called_parts(model))


def test_called() -> None:
    class Model(Holder):
        def forward(self, x: Any) -> Any:
            if self.empty is not None and self.several is not None:
                return self.empty(x)
            return self.part(self.several(self.linear(x)), y=1)

    assert called(Model) == ["part", "several"]


def test_indexed_and_called() -> None:
    class Model(Holder):
        def forward(self, x: Any) -> Any:
            return self.list[0](self.dict["a"](self.several[x](x)))

    expected = ["dict.a", "dict.b", "list.0", "list.1", "several.0", "several.1"]
    assert called(Model) == expected


def test_called_as_a_whole_and_in_parts() -> None:
    class Model(Holder):
        def forward(self, x: Any) -> Any:
            return self.several(x) + self.several[0](x)

    assert called(Model) == ["several.0", "several.1"]


def iterated(self: Any, x: Any) -> Any:
    for layer in self.list:
        x = layer(x)
    return x


def enumerated(self: Any, x: Any) -> Any:
    for index, layer in enumerate(self.list):
        x = layer(x) * index
    return x


def zipped(self: Any, x: Any) -> Any:
    for scale, layer in zip(x, self.list, strict=True):
        x = layer(x) * scale
    return x


def reversed_list(self: Any, x: Any) -> Any:
    for layer in reversed(list(self.list)):
        x = layer(x)
    return x


def enumerated_and_zipped(self: Any, x: Any) -> Any:
    for index, (layer, scale) in enumerate(zip(self.list, x, strict=True)):
        x = layer(x) * scale + index
    return x


def comprehended(self: Any, x: Any) -> Any:
    return [layer(x) for layer in self.list]


def generated(self: Any, x: Any) -> Any:
    return sum(layer(x) for layer in self.list.children())


def named(self: Any, x: Any) -> Any:
    return {name: layer(x) for name, layer in self.list.named_children()}


def counted(self: Any, x: Any) -> Any:
    for index in range(len(self.list)):
        x = self.list[index](x)
    return x


@pytest.mark.parametrize(
    "forward",
    [
        iterated,
        enumerated,
        zipped,
        reversed_list,
        enumerated_and_zipped,
        comprehended,
        generated,
        named,
        counted,
    ],
)
def test_gone_through_and_called(forward: Callable[..., Any]) -> None:
    assert called(type("Model", (Holder,), {"forward": forward})) == ["list.0", "list.1"]


def test_views_of_a_dictionary() -> None:
    class Model(Holder):
        def forward(self, x: Any) -> Any:
            for layer in self.dict.values():
                x = layer(x)
            for index, (name, layer) in enumerate(self.dict.items()):
                x = layer(x) + name * index
            return x

    assert called(Model) == ["dict.a", "dict.b"]


def test_its_length() -> None:
    """That of a container is its own; what it is compiled to has none."""

    class Model(Holder):
        def forward(self, x: Any) -> Any:
            return self.several(x) * len(self.several) + self.part(x) * len(self.part)

    assert called(Model) == ["several.0", "several.1"]


OTHERWISE = {
    "attribute read": "self.part(x) + self.part.training",
    "method called": "self.part.forward(x)",
    "weight of an item": "self.several(x) + self.several[0].weight",
    "passed on": "self.part(x) + id(self.part)",
    "put in a list": "[self.part, self.list, self.several][0](x)",
    "item of a list of it": "list(self.list)[0](x)",
    "unpacked into a call": "list(zip(*self.list))",
    "gone through and read": "[layer.weight for layer in self.list]",
    "pairs called": "[pair(x) for pair in self.dict.items()]",
    "by its keys": "[self.dict[key](x) for key in self.dict.keys()]",
    "into a list of names": "[a(x) for [a, *_] in self.list]",
    "into fewer names": "[a for (a,) in enumerate(self.list)]",
    "no container, gone through": "[one(x) for one in self.part]",
    "no container, indexed": "self.part[0](x)",
    "asked for its class": "isinstance(self.part, str) and self.part(x)",
    "getattr": "getattr(self, 'part')(self.part(x))",
    "children": "[part(self.part(x)) for part in self.children()]",
    "modules by name": "self._modules['part'](self.part(x))",
    "a buffer": "self.part(x) + self.get_buffer('part.mean')",
    "itself gone through": "[self.part(x) for _ in self]",
    "itself handed on": "vars(self)['part'](self.part(x))",
}


@pytest.mark.parametrize("form", OTHERWISE)
def test_used_otherwise(form: str, tmp_path: Path) -> None:
    path = tmp_path / "forward.py"
    path.write_text(f"def forward(self, x):\n    return {OTHERWISE[form]}\n")
    found: dict[str, Any] = {}
    exec(compile(path.read_text(), path, "exec"), found)
    assert called(type("Model", (Holder,), {"forward": found["forward"]})) == []


def test_lost_source() -> None:
    found: dict[str, Any] = {}
    exec("def forward(self, x):\n    return self.part(x)", found)
    assert called(type("Model", (Holder,), {"forward": found["forward"]})) == []


def test_a_lambda_is_not_read() -> None:
    class Model(Holder):
        forward = lambda self, x: self.part(x)  # noqa: E731

    assert called(Model) == []


def test_a_forward_of_the_instance_is_not_read() -> None:
    class Model(Holder):
        def forward(self, x: Any) -> Any:
            return self.part(x)

    model = Model()
    model.forward = lambda x: model.part.weight * x
    assert list(called_parts(model)) == []


def test_no_method_is_no_use() -> None:
    assert called(Holder) == []


class Reading(Holder):
    """One of its bases reads the part that its own forward calls."""

    def forward(self, x: Any) -> Any:
        return self.part.weight * x


def test_methods_of_bases_and_properties_count() -> None:
    class Derived(Reading):
        def forward(self, x: Any) -> Any:
            return self.part(x) + self.several(x)

    class WithProperty(Holder):
        constant = 3

        def forward(self, x: Any) -> Any:
            return self.part(x) + self.several(x)

        @property
        def weight(self) -> Any:
            return self.part.weight

        @functools.cached_property
        def other(self) -> Any:
            return 3

    assert called(Derived) == ["several"]
    assert called(WithProperty) == ["several"]


def test_decorated_methods_and_those_without_arguments() -> None:
    class Decorated(Holder):
        @torch.no_grad()
        def forward(self, x: Any) -> Any:
            return self.part(x)

    class Static(Decorated):
        @staticmethod
        def nothing() -> None:
            return None

    assert called(Decorated) == ["part"]
    assert called(Static) == [], "what it does to whom can't be told"


def test_all_parts() -> None:
    model = Holder()
    model.list.append(nn.Sequential(Layer()))
    names = {id(part): name for name, part in model.named_modules()}
    found = [names[id(part)] for part in parts_of(model)]
    assert sorted(found) == sorted(name for name in names.values() if name)
    assert list(parts_of(model.several)) == []


class Counting(nn.Module):
    """Asks a part for its length, and can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(conv_norm(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) * len(self.part) if x.sum() > 0 else x


def test_a_part_that_is_counted_is_compiled_inside() -> None:
    model = trained(Counting())
    fused = compiled(model)
    assert norms(fused) == []
    same(model, fused)
    same(model, fused, torch.ones_like(IMAGE))


class Holding(Holder):
    def forward(self, x: Any) -> Any:
        return self.part(x) + self.several(x)


def watches(module: Any, inputs: Any, output: Any) -> None:
    print(module.training, inputs, output)


def reads(module: Any, inputs: Any) -> Any:
    return inputs * module.part.weight


def test_hooks_are_read_as_well() -> None:
    model = Holding()
    model.register_forward_hook(watches)
    assert list(called_parts(model)) == [model.part, model.several]
    model.register_forward_pre_hook(reads)
    assert list(called_parts(model)) == [model.several]
    model.register_forward_hook(functools.partial(watches))
    assert list(called_parts(model)) == []
