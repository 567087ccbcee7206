"""What lay in order in the model lies so in the result, or is copied."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import reparam
from reparam.verify import EXACT, relative_difference
from tests.fused import operators
from tests.passes.alone import Net
from tests.randomised import randomised
from tests.strategies import drawn

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def tokens(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2))


def viewed(m: Any, x: Tensor) -> Tensor:
    return tokens(m, x).view(x.shape[0], -1)


def viewed_later(m: Any, x: Tensor) -> Tensor:
    return tokens(m, x).relu().view(x.shape[0], -1)


def viewed_as(m: Any, x: Tensor) -> Tensor:
    return tokens(m, x).view_as(x)


def no_product(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return (y[:, :4] * 1.0).view(1, -1, *y.shape[2:])


def scaled_half(m: Any, x: Tensor) -> Tensor:
    one, other = m.conv(x).chunk(2, 1)
    return (one * 2.0).view(1, -1, *one.shape[2:]) + other.reshape(1, -1, *one.shape[2:])


def added_last(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    last = y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return m.norm2(m.conv(y)) + last


def viewed_sum(m: Any, x: Tensor) -> Tensor:
    return added_last(m, x).view(-1)


def model(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    layers = {"linear": nn.Linear(8, 8), "norm": nn.BatchNorm1d(8), "conv": nn.Conv2d(8, 8, 1)}
    layers["norm2"] = nn.BatchNorm2d(8)
    return randomised(Net(forward, **layers), drawn(0, 2, 8, 3, 2).float()).double()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    "forward",
    [viewed, viewed_later, viewed_as, no_product, scaled_half, tokens, added_last, viewed_sum],
)
def test_what_a_view_was_taken_of(forward: Callable[[Any, Tensor], Tensor], given: bool) -> None:
    original, x = model(forward), drawn(1, 2, 8, 3, 2)
    fused = reparam.compile(original, x if given else None)
    expected, found = original(x), fused(x)
    assert expected.stride() == found.stride()
    assert relative_difference(expected, found) <= EXACT


def test_a_view_of_what_still_lies_in_order_stays_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.conv(x).view(x.shape[0], -1)

    assert operators(reparam.compile(model(forward)))["view"] == 1


def test_a_result_is_copied_only_where_it_must_be() -> None:
    fused = reparam.compile(model(tokens), drawn(1, 2, 8, 3, 2))
    assert operators(fused)["contiguous"] == 1
    assert "contiguous" not in operators(reparam.compile(model(lambda m, x: m.conv(x).relu())))


def normed(forward: Callable[[Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    return lambda m, x: forward(m.norm(m.linear(x).transpose(1, 2)))


READERS: dict[str, Callable[[Tensor], Any]] = {
    "topk": lambda y: y.topk(3, dim=1),
    "max": lambda y: y.max(-1),
    "sort": lambda y: y.sort(1),
    "split": lambda y: y.split(4, 1),
    "unbind": lambda y: y.unbind(1),
    "std_mean": torch.std_mean,
    "numel": lambda y: (y, y.numel()),
    "dtype": lambda y: (y, y.dtype),
    "stride": lambda y: (y, y.stride()),
    "view of bits": lambda y: y.view(torch.complex128).real,
    "view_as_complex": lambda y: torch.view_as_complex(y.unflatten(2, (-1, 2))).real,
    "as_strided": lambda y: y.as_strided((4, 4), (4, 1)),
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_what_reads_how_a_tensor_lies(reader: str, given: bool) -> None:
    """There is a fold before it, and some results are no tensors."""
    layers = {"linear": nn.Linear(8, 8), "norm": nn.BatchNorm1d(8)}
    original = Net(normed(READERS[reader]), **layers).double().eval()
    nn.init.uniform_(original.get_buffer("norm.running_mean"))
    x = drawn(1, 2, 6, 8)
    fused = reparam.compile(original, x if given else None, verify=reader != "view of bits")
    assert not given or "BatchNorm1d" not in operators(fused)
    expected, found = (tree_leaves(net(x)) for net in (original, fused))
    for old, new in zip(expected, found, strict=True):
        if not isinstance(old, Tensor):
            assert old == new
        else:
            assert relative_difference(old.double(), new.double()) <= EXACT
