"""In-place writes: what others can see of them they see in the compiled model too."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import passes
import reparam
from reparam.values import BatchNorm, Conv
from reparam.verify import EXACT, relative_difference
from tests.fused import operators, same_state
from tests.strategies import drawn

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Two convolutions, a batch norm and what else a forward may want."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.body = forward
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout()
        self.branching, self.counting = Branching(), Counting()
        self.register_buffer("count", torch.ones(()))
        self.register_buffer("table", torch.ones(4, 1, 1))
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(drawn(1, 4))
        self.norm.running_var.copy_(drawn(2, 4).abs() + 0.5)
        self.norm.weight.data.copy_(drawn(3, 4))
        self.norm.bias.data.copy_(drawn(4, 4))

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


class Branching(nn.Module):
    """Writes to its input, in a way that can't be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu_() if x.numel() > 0 and bool(x.isfinite().all()) else x


class Counting(nn.Module):
    """Writes to its input what would be seen in the next call, and can't be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1) if bool(x.isfinite().all()) else x


def assert_like_eager(forward: Forward, **options: Any) -> nn.Module:
    """Outputs, what becomes of the input, and of the model, are as they are without compiling."""
    model = Net(forward).double().eval()
    state, attributes = copy.deepcopy(model.state_dict()), set(vars(model))
    fused = reparam.compile(model, passes=passes.DEFAULT, **options)
    assert same_state(model.state_dict(), state), "compiling changed the model"
    assert set(vars(model)) == attributes, "compiling left something in the model"
    x = drawn(5, 2, 4, 6, 6)
    for _ in range(2):  # what a call has left is seen in the next one
        theirs, ours = x.clone(), x.clone()
        runs = ((model, theirs), (fused, ours))
        with torch.no_grad():
            expected, found = (pytree.tree_leaves(m(given)) for m, given in runs)
        for old, new in zip(expected, found, strict=True):
            assert relative_difference(old, new) <= EXACT
        assert torch.equal(ours, x) or torch.equal(ours, theirs), "the input became something else"
    return fused


def written_after_being_read_twice(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    y.relu_()
    return net.norm(y)


def method_result_unused(net: Any, x: Tensor) -> Any:
    y = net.norm(net.conv(x))
    y.add_(1)
    return net.other(y)


def view_by_index(net: Any, x: Tensor) -> Any:
    y = net.norm(net.conv(x))
    y[:, 0].add_(1)
    return y


def view_by_transpose(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    y.transpose(2, 3).relu_()
    return net.norm(y)


def view_by_detach(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    y.detach().relu_()
    return net.norm(y)


def view_by_contiguous(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    y.contiguous().relu_()
    return net.norm(y)


def view_by_dropout(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    net.dropout(y).add_(1)
    return net.norm(y)


def layer_whose_result_is_written_to(net: Any, x: Tensor) -> Any:
    y = net.norm(net.conv(x))
    return net.counting(y) + y


def layer_without_an_input_written_to(net: Any, x: Tensor) -> Any:
    y = net.norm(net.table.expand(1, 4, 5, 5))
    return x.mean() + net.counting(y) + y


def item_by_function(net: Any, x: Tensor) -> Any:
    y = net.norm(net.conv(x))
    y[:, 0].fill_(0.5)
    return net.norm(y)


def module_whose_input_is_read_again(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    return net.relu(y) + net.norm(y)


def module_shared_seen_last(net: Any, x: Tensor) -> Any:
    b = net.relu(net.other(x))
    a = net.conv(x)
    net.relu(a)
    return a + b


def module_shared_seen_first(net: Any, x: Tensor) -> Any:
    a = net.conv(x)
    net.relu(a)
    y = net.other(x)
    return a + net.relu(y * 1.0), y


def function_with_flag(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    F.relu(y, True)
    return net.norm(y)


def function_with_keyword(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    F.leaky_relu(y, 0.1, inplace=True)
    return net.norm(y)


def out_argument(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    torch.mul(x.sigmoid(), 2, out=y)
    return net.norm(y)


def augmented_assignment(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    y += net.other(x)
    y *= 2
    return net.norm(y)


def augmented_assignment_of_an_alias(net: Any, x: Tensor) -> Any:
    y = z = net.conv(x)
    y += 1
    return net.norm(z)


def chain_that_nobody_sees(net: Any, x: Tensor) -> Any:
    return net.norm(net.conv(x)).add_(net.other(x)).mul_(2).relu_()


def to_the_input(net: Any, x: Tensor) -> Any:
    y = net.norm(net.conv(x))
    x.mul_(2)
    return y + net.conv(x)


def module_to_the_input(net: Any, x: Tensor) -> Any:
    return net.relu(x), net.norm(net.conv(x))


def untraceable_module(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    z = net.branching(y)
    return y + net.other(x), z


def buffer_counted(net: Any, x: Tensor) -> Any:
    net.count.add_(1)
    return net.norm(net.conv(x)) * net.count


def buffer_assigned_through_a_view(net: Any, x: Tensor) -> Any:
    net.table[0].fill_(3.0)
    return net.conv(x) * net.table


def tensor_made_in_forward(net: Any, x: Tensor) -> Any:
    return net.conv(x) + torch.full((4, 1, 1), 0.5, dtype=torch.float64)


def tensor_item(net: Any, x: Tensor) -> Any:
    y = net.norm(net.conv(x))
    y[:, 0] = 0.5
    return net.other(y)


@pytest.mark.parametrize(
    "forward",
    [
        written_after_being_read_twice,
        method_result_unused,
        view_by_index,
        view_by_transpose,
        view_by_detach,
        view_by_contiguous,
        view_by_dropout,
        layer_whose_result_is_written_to,
        layer_without_an_input_written_to,
        item_by_function,
        module_whose_input_is_read_again,
        module_shared_seen_last,
        module_shared_seen_first,
        function_with_flag,
        function_with_keyword,
        out_argument,
        augmented_assignment,
        augmented_assignment_of_an_alias,
        chain_that_nobody_sees,
        to_the_input,
        module_to_the_input,
        untraceable_module,
        buffer_counted,
        buffer_assigned_through_a_view,
        tensor_made_in_forward,
        tensor_item,
    ],
    ids=lambda forward: forward.__name__,
)
def test_a_write_is_seen_by_whom_it_was_seen(forward: Forward) -> None:
    assert_like_eager(forward)


def test_a_write_that_nobody_sees_stands_in_the_way_of_nothing() -> None:
    fused = assert_like_eager(chain_that_nobody_sees)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert len(reparam.report(fused).applied) >= 1


@pytest.mark.parametrize("forward", [view_by_index, layer_whose_result_is_written_to])
def test_what_is_written_to_later_is_made_as_always(forward: Forward) -> None:
    assert not any(isinstance(m, nn.BatchNorm2d) for m in assert_like_eager(forward).modules())


def test_what_is_written_to_later_stays_a_tensor_of_its_own() -> None:
    @reparam.rewrite
    def forget(call: reparam.Call) -> reparam.Replace | None:
        return reparam.Replace(call.inputs[0]) if isinstance(call.value, BatchNorm) else None

    model = Net(layer_whose_result_is_written_to).eval()
    fused = reparam.compile(model, passes=(forget,), verify=False)
    assert any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    said = {remark.message for remark in reparam.report(fused).missed}
    assert "its result may be written to, and has to be a tensor of its own" in said


def test_a_batch_norm_behind_a_fence_says_so() -> None:
    fused = assert_like_eager(module_whose_input_is_read_again)
    survivors = [name for name, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert survivors == ["norm"]
    assert "norm" in {remark.call for remark in reparam.report(fused).missed}


class Doubled(nn.Module):
    """A layer of four channels that can't be traced, whose meaning is known."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.isfinite().all()) else x


@reparam.lift(Doubled)
def _(layer: Doubled) -> Conv:
    return Conv(2 * torch.eye(4))


def test_a_layer_whose_meaning_is_known_writes_to_nothing() -> None:
    model = nn.Sequential(Doubled(), nn.Linear(4, 4)).eval()
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused) == {"Linear": 1}
