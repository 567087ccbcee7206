"""Forwards that write to the model: it is left as it was, and the result does what they do."""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reparam
from reparam.errors import CaptureError
from reparam.verify import EXACT
from tests.randomised import randomised

IMAGES = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)).double()


class Part(nn.Module):
    t: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.register_buffer("t", table)
        self.number, self.seen = 1, list[Any]()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.t


class Net(Part):
    """Does something to itself or to its part, then what the part does."""

    def __init__(self, change: Callable[[Any, Tensor], object]) -> None:
        super().__init__(torch.ones(4, 1, 1))
        self.part = Part(torch.ones(4, 1, 1))
        self.change = (change,)  # no method

    def forward(self, x: Tensor) -> Tensor:
        self.change[0](self, x)
        return super().forward(self.part(x))


def rebinds_statistics(net: Any, x: Tensor) -> None:
    net.norm.running_mean = net.norm.running_mean * 0.9


def adds_to_statistics(net: Net, x: Tensor) -> None:
    net.norm.running_mean += 1


def keeps_in_a_layer(net: Net, x: Tensor) -> None:
    vars(net.norm)["memory"] = x.detach()


def keeps_in_a_list(net: Net, x: Tensor) -> None:
    net.part.seen.append(x)


def counts(net: Net, x: Tensor) -> None:
    net.part.number = net.part.number + 1


def grows(net: Net, x: Tensor) -> None:
    for parameter in net.parameters():
        parameter.mul_(1.1)


def grows_data(net: Net, x: Tensor) -> None:
    for parameter in net.parameters():
        parameter.data.mul_(1.1)


def shifts_buffers(net: Net, x: Tensor) -> None:
    for _, buffer in net.part.named_buffers():
        buffer.add_(1)


def by_the_state_dict(net: Net, x: Tensor) -> None:
    net.state_dict()["conv.weight"].mul_(1.1)


def loads(net: Net, x: Tensor) -> None:
    net.part.load_state_dict({name: 1.1 * value for name, value in net.part.state_dict().items()})


def by_name(net: Net, x: Tensor) -> None:
    net.part._buffers["t"].add_(1.0)


CHANGES = [
    rebinds_statistics, adds_to_statistics, keeps_in_a_layer, keeps_in_a_list, counts, grows,
    grows_data, shifts_buffers, by_the_state_dict, loads, by_name,
]  # fmt: skip


def same_calls(model: nn.Module, fused: nn.Module) -> None:
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(fused(IMAGES), model(IMAGES), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("change", CHANGES)
def test_the_model_is_left_as_it_was(change: Callable[[Any, Tensor], object]) -> None:
    model: Any = randomised(Net(change).eval(), IMAGES.float()).double()
    before = copy.deepcopy(model)
    with torch.no_grad():
        fused = reparam.compile(model, verify=False)
    for module, was in zip(model.modules(), before.modules(), strict=True):
        assert vars(module).keys() == vars(was).keys()
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.state_dict().items())
    assert model.part.number == before.part.number
    assert len(model.part.seen) == len(before.part.seen)
    same_calls(before, fused)


class Writes(Part):
    def forward(self, x: Tensor) -> Tensor:
        self.t.mul_(1.5)
        return self.norm(self.conv(x)) + self.t


class TwoParts(nn.Module):
    """Two parts of a model that can't be traced have one table."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.ones(4, 1, 1).double()  # of which a cast makes no copy
        self.reads, self.writes, self.apart = Part(table), Writes(table), Part(table.clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.apart(self.reads(self.writes(x)))
        return y * 0 if float(x.sum()) > 1e9 else y


def test_parts_of_what_stays_with_one_buffer_stay() -> None:
    model = randomised(TwoParts().double().eval(), IMAGES)
    fused = reparam.compile(model)
    told = reparam.report(fused)
    assert {remark.call.partition(".")[0] for remark in told.applied} == {"apart"}
    reason = "another module has a buffer of it as well, and may write to it"
    assert [r.call for r in told.missed if r.message == reason] == ["reads", "writes"]
    same_calls(copy.deepcopy(model), fused)


class Cache(nn.Module):
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.register_buffer("cache", torch.zeros(4, 1, 1))

    def push(self, x: Tensor) -> Tensor:
        self.cache.add_(x.mean((0, 2, 3)).view(4, 1, 1))
        return x

    def grow(self, x: Tensor) -> Tensor:
        self.conv.weight.data.mul_(2)
        return x

    def twice(self, x: Tensor) -> Tensor:
        return x * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.cache


@pytest.mark.parametrize(("method", "path"), [("push", "cache"), ("grow", "conv.weight")])
def test_methods_that_write_to_what_another_reads_are_refused(method: str, path: str) -> None:
    message = f"{method} writes to '{path}', which forward reads: compiled, each would have its own"
    with pytest.raises(CaptureError, match=message):
        reparam.compile(Cache().eval(), methods=(method,))
    reparam.compile(Cache().eval(), methods=("twice",))


def test_methods_that_only_compute_with_what_another_reads() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("variance", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.einsum("oi,nihw->nohw", self.w, x)
            y += 1
            return y

        def encode(self, x: Tensor) -> Tensor:
            return x * self.w[0, 0]

        def learn(self, x: Tensor) -> Tensor:
            return functional.batch_norm(
                x, self.get_buffer("mean"), self.get_buffer("variance"), training=True
            )

        def shift(self, x: Tensor) -> Tensor:
            return x + self.get_buffer("mean").view(-1, 1, 1)

    reparam.compile(Net().eval(), methods=("encode",))
    with pytest.raises(CaptureError, match="learn writes to 'mean', which shift reads"):
        reparam.compile(Net().eval(), methods=("learn", "shift"))


def test_a_module_that_sets_what_its_parts_read() -> None:
    """It stays, and what is around it is compiled."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.height, self.conv, self.norm = None, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) * self.height

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                cast("Any", block).height = x.shape[2]
                x = block(x)
            return x

    model = nn.Sequential(Stage(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double().eval()
    fused = reparam.compile(model)
    assert model.get_submodule("0.blocks.0").height is None
    assert [remark.call for remark in reparam.report(fused).applied] == ["1"]
    torch.testing.assert_close(fused(IMAGES), model(IMAGES), rtol=EXACT, atol=EXACT)


def test_a_buffer_may_be_read_by_other_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.register_buffer("table", torch.ones(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            total = torch.zeros(5, 5)
            total += dict(self.named_buffers())["table"]
            return self.norm(self.conv(x)) + total

    model = Net().double().eval()
    fused = reparam.compile(model)
    assert len(reparam.report(fused).applied) == 1
    torch.testing.assert_close(fused(IMAGES), model(IMAGES), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("part", [slice(None), slice(1, 3)])
def test_a_caller_may_write_to_a_buffer_that_is_returned(part: slice) -> None:
    class Returns(nn.Module):
        t: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("t", torch.ones(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.t[part], x + self.t.sum()

    model = Returns().eval()
    fused = reparam.compile(model)
    model = copy.deepcopy(model)
    for each in (model, fused):
        each(IMAGES)[0].zero_()
    assert torch.equal(fused(IMAGES)[1], model(IMAGES)[1])


@dataclass
class Plain:
    a: Tensor


class Twice(Plain):
    def __init__(self, a: Tensor) -> None:
        super().__init__(a * 2)


@dataclass(init=False)
class OtherArguments:
    a: Tensor

    def __init__(self, value: Tensor) -> None:
        self.a = value


@dataclass
class Writing:
    a: Tensor

    def __post_init__(self) -> None:
        self.a.mul_(2)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Computed(Pair):
    __slots__ = ()

    def __new__(cls, y: Tensor) -> "Computed":
        return super().__new__(cls, y * 2, y)


@pytest.mark.parametrize("kind", [Plain, Twice, OtherArguments, Writing, Computed])
def test_results_of_classes_that_compute_their_fields(kind: Any) -> None:
    class Makes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return kind(self.conv(x))

    model = Makes().eval().double()
    fused = reparam.compile(model)
    assert type(fused(IMAGES)) is kind
    assert torch.equal(fused(IMAGES).a, model(IMAGES).a)
    assert bool(reparam.report(fused).missed) == (kind is not Plain)


def test_another_thread_runs_the_model_meanwhile() -> None:
    parts = (nn.Sequential(nn.Conv2d(4, 4, 1), Part(torch.ones(1))) for _ in range(30))
    model = nn.Sequential(*parts)
    model, done, failed = model.eval().double(), threading.Event(), list[Exception]()

    def serve() -> None:
        with torch.no_grad():
            while not done.is_set():
                try:
                    model(IMAGES)
                except Exception as error:
                    failed.append(error)

    expected = len(reparam.report(reparam.compile(model)).applied)
    server = threading.Thread(target=serve)
    server.start()
    fused = [reparam.compile(model) for _ in range(3)]
    done.set()
    server.join()
    assert not failed
    for each in fused:
        assert len(reparam.report(each).applied) == expected
        torch.testing.assert_close(each(IMAGES), model(IMAGES), rtol=EXACT, atol=EXACT)
