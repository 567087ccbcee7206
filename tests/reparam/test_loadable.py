"""A result that was saved and loaded, once and again, computes what it did."""

import copy
import io
import pickle
from collections import OrderedDict
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


def halved(y: Tensor) -> Tensor:
    count, most, step = y.nelement(), torch.numel(y), y.stride(0)
    count //= 2
    most -= 1
    step += len(y.unbind(1))
    step |= 1
    even = y.shape[2]
    even &= 6
    return y * (count + most + step + even)


def as_tensors(y: Tensor) -> Tensor:
    height, size = torch.tensor(y.shape[2]), torch.as_tensor(y.size(3), dtype=torch.float32)
    return y * height / size + torch.tensor(y.shape[0] / 2, device=y.device)


def named(y: Tensor) -> OrderedDict[str, Tensor]:
    return OrderedDict(whole=y, half=y / 2)


RESTS: list[Any] = [
    *(added, divided, shifted, assigned, counted, multiplied, viewed, unbound, halved),
    as_tensors,
]


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


def test_a_dictionary_keeps_its_type() -> None:
    x = torch.randn(2, 4, 3, 5)
    fused = reparam.compile(randomised(Net(named).eval(), x))
    for form in (fused, saved(fused), saved(saved(fused))):
        assert type(form(x)) is OrderedDict


class Buffers(Net):
    """With buffers, from which alone something is computed."""

    def __init__(self, rest: Callable[[Any, Tensor], Any]) -> None:
        super().__init__(named)
        self.of_buffers = rest
        self.register_buffer("ones", torch.ones(4, 1, 1))
        self.register_buffer("calls", torch.tensor(0.0))
        self.register_buffer("positions", torch.randn(4, 64, 1))
        self.register_buffer("mask", torch.ones(64, 64).tril().bool())
        self.offset = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor, mask: Any = None) -> Any:
        return self.of_buffers(self, super().forward(x, mask)["whole"])


def positioned(m: Any, y: Tensor) -> Tensor:
    return y + m.positions[:, : y.shape[2]]


def masked(m: Any, y: Tensor) -> Tensor:
    return (y @ y.mT).masked_fill(~m.mask[: y.shape[2], : y.shape[2]], 0)


def counting(m: Any, y: Tensor) -> Tensor:
    m.calls.add_(1)
    torch.add(m.calls, 1, out=m.calls)
    return y * m.calls


def growing(m: Any, y: Tensor) -> Tensor:
    part = m.ones[:2]
    part += 1
    return y * m.ones


def made(m: Any, y: Tensor) -> Tensor:
    z = m.ones * 2
    z[0] = 5
    z += m.offset
    return y + z


def resized(m: Any, y: Tensor) -> Tensor:
    size = y.shape[-2:]
    maps = nn.functional.interpolate(m.positions[None], size=size, mode="bilinear")
    whole = m.ones.new_full((y.shape[0], 1, 1, 1), 3) + m.ones.expand(y.shape[0], -1, -1, -1)
    return maps + whole * y


def handed_out(m: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    return y, m.ones * 2


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("rest", [positioned, masked, counting, growing, made, resized, handed_out])
def test_what_is_computed_of_buffers(rest: Any, example: bool) -> None:
    """It is computed in every call, not once as the pickle is loaded."""
    x = torch.randn(2, 4, 3, 5)
    model = randomised(Buffers(rest).eval(), x)
    fused = reparam.compile(copy.deepcopy(model), x if example else None)
    once = pickle.loads(pickle.dumps(fused))
    twice = pickle.loads(pickle.dumps(once))
    for form in (fused, once, twice):
        assert form.state_dict().keys() == fused.state_dict().keys()
        reference = copy.deepcopy(model)
        for size in (5, 4, 5):
            x = torch.randn(size, 4, size, 5)
            found, expected = form(x), reference(x)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            if rest is handed_out:
                found[1].zero_()


def test_a_module_of_that_name() -> None:
    class Taken(Buffers):
        def __init__(self) -> None:
            super().__init__(positioned)
            self.read = nn.ReLU()

        def forward(self, x: Tensor, mask: Any = None) -> Any:
            return self.read(super().forward(x, mask))

    x = torch.randn(2, 4, 3, 5)
    model = randomised(Taken().eval(), x)
    again = pickle.loads(pickle.dumps(reparam.compile(model, x)))
    torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-4)
