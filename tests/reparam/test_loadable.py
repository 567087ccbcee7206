"""A result that was saved and loaded, once and again, computes what it did."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from tests.randomised import randomised

Forward = Callable[[Tensor], Any]


class Net(nn.Module):
    """A convolution and a batch norm, with something behind them."""

    def __init__(self, rest: Forward) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.rest = rest

    def forward(self, x: Tensor, mask: Any = None) -> Any:
        y = self.norm(self.conv(x))
        if mask is not None:
            y = y * mask
        return self.rest(y)


def added(y: Tensor) -> Tensor:
    part = y[:, :2]
    part += 1
    return y


def divided(y: Tensor) -> Tensor:
    part = y.select(1, 1)
    part /= 3
    part **= 2
    return y


def shifted(y: Tensor) -> Tensor:
    whole = (y * 9).long()
    part = whole[:, 0]
    part <<= 1
    other = whole[:, 1]
    other >>= 1
    return whole


def assigned(y: Tensor) -> Tensor:
    y[:, 1] = 0
    y[..., 0] = y[..., 1]
    return y


def counted(y: Tensor) -> Tensor:
    count = y.shape[0]
    count += 1
    count *= 2
    return y * count


def multiplied(y: Tensor) -> Tensor:
    count = 1
    for size in (y + y).relu().shape[1:]:
        count *= size
    half = count // 2
    half -= 1
    return y * half


def viewed(y: Tensor) -> Tensor:
    return y.view(*y.shape[:2], -1)


def unbound(y: Tensor) -> Tensor:
    parts = [*y.unbind(1)]
    return torch.stack(parts, -1) * len(y.shape[2:])


RESTS: list[Any] = [added, divided, shifted, assigned, counted, multiplied, viewed, unbound]


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("rest", RESTS)
def test_it_computes_the_same(rest: Forward, example: bool) -> None:
    x = torch.randn(2, 4, 3, 5)
    model = randomised(Net(rest).eval(), x)
    fused = reparam.compile(model, x if example else None)
    expected = model(x)
    once = pickle.loads(pickle.dumps(fused))
    forms = [fused, copy.deepcopy(fused), once, pickle.loads(pickle.dumps(once)), saved(fused)]
    forms += [reparam.compile(fused, x), torch.jit.trace(fused, x)]
    for form in forms:
        torch.testing.assert_close(form(x), expected, rtol=1e-4, atol=1e-4)
    exported = torch.export.export(fused, (x,)).module()
    torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)


def test_to_load_one_leaves_torch_fx_as_it_was() -> None:
    x = torch.randn(2, 4, 3, 5)
    fused = reparam.compile(randomised(Net(added).eval(), x), x)
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(fused))))
    assert reparam.report(again).applied
    for refused in (x, 0, [x]):
        with pytest.raises(AssertionError, match="mask has been specialized"):
            again(x, refused)
    fx.symbolic_trace(nn.ReLU())
    assert reparam.report(reparam.compile(randomised(Net(added).eval(), x), x)).applied


def test_a_dictionary_keeps_its_keys() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(added)

        def forward(self, maps: dict[str, Tensor]) -> Tensor:
            return self.net(sum(maps[name] for name in maps))

    maps = {"b": torch.randn(2, 4, 3, 5), "a": torch.randn(2, 4, 3, 5)}
    model = Sum().eval()
    randomised(model.net, maps["a"])
    again = pickle.loads(pickle.dumps(reparam.compile(model, (maps,))))
    torch.testing.assert_close(again(maps), model(maps), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError, match="it holds for inputs that"):
        again({"a": maps["a"]})
