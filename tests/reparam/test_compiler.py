"""Whatever network is drawn: compiled, it computes the same, and says what it left."""

import copy
import gc
import threading
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import passes
import reparam
from reparam.verify import EXACT, relative_difference
from tests.fused import same_state, storages
from tests.strategies import images, modules

EXAMPLES = settings(max_examples=60)


@pytest.mark.usefixtures("without_annotation_checks")
@pytest.mark.parametrize("model", [None, 3, nn.Conv2d, torch.relu])
def test_what_is_no_module_is_an_error(model: Any) -> None:
    with pytest.raises(reparam.CaptureError, match=r"compile takes a torch.nn.Module, not"):
        reparam.compile(model)


@EXAMPLES
@given(modules())
def test_a_compiled_network_computes_the_same(model: nn.Module) -> None:
    state, attributes = copy.deepcopy(model.state_dict()), set(vars(model))
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert same_state(model.state_dict(), state)
    assert set(vars(model)) == attributes
    assert storages(model).isdisjoint(storages(fused))
    for seed in (1, 2):
        with torch.no_grad():
            expected, found = (pytree.tree_leaves(m(images(seed))) for m in (model, fused))
        for old, new in zip(expected, found, strict=True):
            assert relative_difference(old, new) <= EXACT


def test_new_layers_are_in_evaluation_mode() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Linear(6, 5)).eval()
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert reparam.report(fused).applied != ()
    assert not any(module.training for module in fused.modules())


@EXAMPLES
@given(modules())
def test_a_batch_norm_that_is_left_has_a_remark(model: nn.Module) -> None:
    fused = reparam.compile(model, passes=passes.DEFAULT, verify=False)
    left = {name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert left <= {remark.call for remark in reparam.report(fused).missed}


@EXAMPLES
@given(modules())
def test_a_second_compile_changes_nothing(model: nn.Module) -> None:
    first = reparam.compile(model, passes=passes.DEFAULT, verify=False)
    second = reparam.compile(first, passes=passes.DEFAULT, verify=False)
    assert reparam.report(second).applied == ()
    assert second.code == first.code
    assert same_state(first.state_dict(), second.state_dict())


@EXAMPLES
@given(modules(torch.float32))
def test_the_same_model_gives_the_same_bits(model: nn.Module) -> None:
    first, second = (
        reparam.compile(m, passes=passes.DEFAULT, verify=False)
        for m in (model, copy.deepcopy(model))
    )
    assert first.code == second.code
    assert same_state(first.state_dict(), second.state_dict())
    assert reparam.report(first) == reparam.report(second)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_search_for_garbage_is_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        reparam.compile(nn.Linear(2, 2).eval())
        assert gc.isenabled() is enabled
        with pytest.raises(reparam.TrainingModeError):
            reparam.compile(nn.BatchNorm1d(2))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_a_layer_without_outputs_is_folded_like_any_other() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 0)).eval()
    fused = reparam.compile(model, torch.randn(2, 4), passes=passes.DEFAULT, verify=False)
    assert not [r for r in reparam.report(fused).missed if "failed" in r.message]
    assert fused(torch.randn(2, 4)).shape == (2, 0)


def test_threads() -> None:
    """Some compile at once, and one runs meanwhile and asks what a trace would refuse."""

    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if torch.is_grad_enabled() else x

    x, asks, failed = torch.randn(2, 4, 5, 5), Asks(), list[Exception]()
    layers = [(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(80)]
    models = [nn.Sequential(*chain(*layers[i::4])).eval() for i in range(4)]
    fused: dict[int, nn.Module] = {}
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            try:
                asks(x)
            except Exception as error:
                failed.append(error)

    def compiled(index: int) -> None:
        fused[index] = reparam.compile(models[index], x)

    runner = threading.Thread(target=run)
    workers = [threading.Thread(target=compiled, args=(index,)) for index in range(len(models))]
    for thread in (runner, *workers):
        thread.start()
    for worker in workers:
        worker.join()
    done.set()
    runner.join()
    assert not failed
    for index, model in enumerate(models):
        assert len(reparam.report(fused[index]).applied) == 20
        torch.testing.assert_close(fused[index](x), model(x), rtol=1e-4, atol=1e-4)
