"""The three outcomes of a row, and what holds in each: the model is left alone, nothing is wrong.

F: `fused_exactly`; S: `stays`; E: `refused`. All compile by `compiled`, which looks at the model
before and after.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.known import BATCH_NORM_BASE
from reparam.verify import EXACT, relative_difference
from tests.fused import operators, storages
from tests.randomised import randomised
from tests.strategies import drawn

IMAGE = drawn(0, 2, 4, 7, 6)


def trained(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """In float64 and evaluation mode, with numbers at which a wrong fold shows."""
    return randomised(model.double(), *(inputs or (IMAGE,)))


def conv_norm(channels: int = 4) -> nn.Sequential:
    """A convolution with a batch norm behind it, of as many channels as `IMAGE`."""
    return nn.Sequential(nn.Conv2d(4, channels, 3, padding=1), nn.BatchNorm2d(channels))


class Untouched:
    """A model as it was: `check` asserts that it still is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.held = dict(_attributes(model))
        tensors = (*model.parameters(), *model.buffers())
        self.copies = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def check(self) -> None:
        now = dict(_attributes(self.model))
        assert list(now) == list(self.held), set(now) ^ set(self.held)
        for key, value in self.held.items():
            assert now[key] is value or now[key] == value, f"{key} was changed"
        for tensor, copied in self.copies:
            assert identical(tensor, copied), "a parameter or buffer was written to"


def _attributes(model: nn.Module) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every attribute of every module; of containers, what they hold, by identity.

    And those of its class: a parametrized module has one of its own, shared with its copies.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        names = {name for name in vars(type(module)) if not name.startswith("__")}
        yield (path, "__class__"), (type(module), names)
        for name, value in vars(module).items():
            if isinstance(value, dict):
                yield (path, name), [(key, id(held)) for key, held in value.items()]
            elif isinstance(value, list | tuple | set):
                yield (path, name), [id(held) for held in value]
            else:
                yield (path, name), value


def identical(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the bit, NaN at the same places."""
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return a.is_meta or bool(((a == b) | ((a != a) & (b != b))).all())  # noqa: PLR0124


def compiled(model: nn.Module, example_inputs: Any = None, **options: Any) -> Any:
    """Compile; the model is as it was before, and the result has tensors of its own."""
    before = Untouched(model)
    try:
        fused = reparam.compile(model, example_inputs, **options)
    finally:
        before.check()
    assert not (storages(model) & storages(fused)) - {0}, "the result shares memory with the model"
    return fused


def copied(model: nn.Module) -> nn.Module:
    """A copy, also of a model that keeps a weight which it computes from others."""
    held = (value for module in model.modules() for value in vars(module).values())
    computed = [value for value in held if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def same(model: nn.Module, fused: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Both give the same, of `IMAGE` if nothing is given, and draw the same random numbers.

    Inputs and the model are copied: a forward may write to them.
    """
    if not args and not kwargs:
        args = (IMAGE,)
    with torch.no_grad():
        outputs = []
        for called in (copied(model), fused):
            own_args, own_kwargs = copy.deepcopy((args, kwargs))
            torch.manual_seed(0)
            outputs.append(called(*own_args, **own_kwargs))
    assert_alike(*outputs)


def assert_alike(old: Any, new: Any) -> None:
    """The same structure and types, the same shapes and dtypes, and the same numbers.

    In float64 up to rounding, in any other dtype to the bit.
    """
    assert type(new) is type(old)
    if isinstance(old, Tensor):
        assert (new.shape, new.dtype, new.device) == (old.shape, old.dtype, old.device)
        if old.dtype in (torch.float64, torch.complex128):
            assert torch.equal(old.isfinite(), new.isfinite())
            difference = relative_difference(old.nan_to_num(), new.nan_to_num())
            assert difference <= EXACT, f"differs by {difference:.1e}"
        else:
            assert identical(old, new)
    elif isinstance(old, Mapping):
        assert list(new) == list(old)
        assert_alike(list(old.values()), list(new.values()))
    elif isinstance(old, list | tuple):
        assert len(new) == len(old)
        for a, b in zip(old, new, strict=True):
            assert_alike(a, b)
    elif dataclasses.is_dataclass(old):
        assert_alike(vars(old), vars(new))
    else:
        assert new == old


def norms(model: nn.Module) -> list[str]:
    """The paths of the batch norms in a model; by a function, the names of their calls."""
    found = [name for name, module in model.named_modules() if isinstance(module, BATCH_NORM_BASE)]
    graph = getattr(model, "graph", None)
    calls = graph.nodes if graph is not None else ()
    return found + [n.name for n in calls if getattr(n.target, "__name__", "") == "batch_norm"]


def calls(fused: Any) -> int:
    """How many modules, functions and methods a compiled model calls."""
    return sum(operators(fused).values())


def fused_exactly(model: nn.Module, *inputs: Any, **options: Any) -> Any:
    """F: no batch norm is left, and it computes the same; without the checks, too.

    Args:
        model: in float64.
        inputs: what it is run on, `IMAGE` if nothing; the compiler does not see them.
        options: of `compile`.
    """
    fused = compiled(model, **options)
    assert norms(fused) == [], [str(remark) for remark in reparam.report(fused).missed]
    same(model, fused, *inputs)
    same(model, compiled(model, **options, verify=False), *inputs)
    return fused


def stays(model: nn.Module, reason: str, *inputs: Any, call: str | None = None) -> Any:
    """S: a missed remark names the reason, and the call if it is given; it computes the same.

    Args:
        model: in float64.
        reason: a regular expression.
        inputs: what it is run on, `IMAGE` if nothing; the compiler does not see them.
        call: what the remark has to be about.
    """
    fused = compiled(model)
    same(model, fused, *inputs)
    missed = reparam.report(fused).missed
    about = [remark for remark in missed if call is None or remark.call == call]
    assert any(re.search(reason, remark.message) for remark in about), [
        str(remark) for remark in missed
    ]
    return fused


def refused(model: Any, error: type[reparam.ReparamError], *words: str, **options: Any) -> None:
    """E: a typed error that says what, where and what to do, in one sentence."""
    with pytest.raises(error) as caught:
        compiled(model, **options)
    message = str(caught.value)
    assert message.strip()
    assert "\n" not in message
    assert len(message) < 300
    for word in words:
        assert word in message, message
