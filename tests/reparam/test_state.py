"""What a forward keeps for the next one, wherever it keeps it: it stays whole, and so does it."""

import collections
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from tests.passes.alone import Net
from tests.strategies import drawn

X = drawn(0, 2, 3, 6, 6)

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


class Store:
    """Keeps maps, as visualisers do."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []
        self.calls = 0


def to_deque(m: Any, y: Tensor) -> Tensor:
    m.kept.append(y)
    return torch.stack(list(m.kept)).mean(0)


def to_nested_list(m: Any, y: Tensor) -> Tensor:
    m.kept["up"].append(y)
    return y + sum(m.kept["up"])


def to_object(m: Any, y: Tensor) -> Tensor:
    m.kept.maps.append(y)
    m.kept.calls += 1
    return y + m.kept.calls


KEEPERS: list[tuple[Callable[[Any, Tensor], Tensor], Callable[[], Any]]] = [
    (to_deque, lambda: collections.deque(maxlen=4)),
    (to_deque, list),
    (to_nested_list, lambda: {"up": []}),
    (to_nested_list, lambda: collections.defaultdict(list)),
    (to_nested_list, lambda: collections.OrderedDict(up=[])),
    (to_object, Store),
]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("keep", "make"), KEEPERS)
def test_what_is_kept(
    keep: Callable[[Any, Tensor], Tensor], make: Callable[[], Any], given: bool
) -> None:
    layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4)}
    model: Any = Net(lambda m, x: keep(m, m.norm(m.conv(x))), **layers).double().eval()
    model.kept = make()
    twin = copy.deepcopy(model)
    fused = reparam.compile(model, X if given else None)
    assert not any(isinstance(leaf, fx.Proxy) for leaf in _inside(model.kept))
    for x in (X, 2 * X, 3 * X):
        assert torch.equal(fused(x), twin(x))


def _inside(kept: Any) -> list[Any]:
    parts = vars(kept) if isinstance(kept, Store) else kept
    flat = list(parts.values()) if isinstance(parts, dict) else list(parts)
    return [leaf for part in flat for leaf in (part if isinstance(part, list) else [part])]


def keep_last(m: Any, x: Tensor) -> Tensor:
    m.last = m.norm(m.conv(x))
    return m.last.relu()


def keep_all(m: Any, x: Tensor) -> Tensor:
    m.all.append(m.norm(m.conv(x)))
    return m.all[-1].relu()


@pytest.mark.parametrize("forward", [keep_last, keep_all])
def test_what_is_left_of_a_run_with_gradients(forward: Callable[[Any, Tensor], Tensor]) -> None:
    """Tensors with a history can't be copied as they are."""
    layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4)}
    model: Any = Net(forward, **layers).double().eval()
    model.all, model.library = [], torch
    model(X)
    fused = reparam.compile(model, X)
    assert torch.equal(fused(X), model(X))


class Locked:
    """Nothing that can be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a lock")


def test_a_model_that_cannot_be_copied() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    model.lock = Locked()
    with pytest.raises(reparam.VerificationError, match="can't be copied"):
        reparam.compile(model, X.float())
