"""What can't be traced stays; its parts that are only called are compiled each on its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import passes
import reparam
from reparam.block import Block, Options
from reparam.errors import CaptureError, TrainingModeError
from reparam.report import Remark
from tests.bad_inputs.outcomes import IMAGE, compiled, conv_norm, norms, same, trained
from tests.strategies import drawn


class Branching(nn.Module):
    """Its forward depends on values, so that it stays."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y) if y.sum() > 0 else self.second(-y).relu()


class Counting(nn.Module):
    """Looks at a part and calls the other one."""

    def __init__(self, read: nn.Module, called: nn.Module) -> None:
        super().__init__()
        self.read, self.called = read, called

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self.read[1]
        return self.called(x) * norm.eps if x.sum() > 0 else self.read(x)


def nested() -> nn.Module:
    """One in another, between two that are traced."""
    inner = Branching(conv_norm(), conv_norm())
    return trained(nn.Sequential(conv_norm(), Branching(inner, conv_norm()), conv_norm()))


def alike(model: nn.Module, fused: nn.Module) -> None:
    for x in (IMAGE, -IMAGE, drawn(1, 3, 4, 2, 2)):
        same(model, fused, x)


def block(model: nn.Module, heard: list[Remark] | None = None, **others: Any) -> Block:
    heard = [] if heard is None else heard
    return Block(model, Options(passes.DEFAULT, True, heard.append), **others)


def test_parts_of_what_stays_are_compiled() -> None:
    model = trained(Branching(conv_norm(), nn.Sequential(conv_norm(), nn.ReLU())))
    fused = compiled(model)
    assert type(fused) is Branching
    assert isinstance(fused.first, fx.GraphModule)
    assert isinstance(fused.second, fx.GraphModule)
    assert norms(fused) == []
    alike(model, fused)


def test_nested() -> None:
    model = nested()
    fused = compiled(model)
    assert norms(fused) == []
    alike(model, fused)
    report = reparam.report(fused)
    places = {remark.call for remark in report.missed if remark.rule == "capture"}
    assert places == {"1", "1.first"}
    applied = " ".join(remark.call for remark in report.applied)
    for path in ("1.first.first", "1.first.second", "1.second"):
        assert path in applied


def test_every_remark_is_heard_once() -> None:
    heard: list[Remark] = []
    made = block(nested(), heard)
    assert heard == made.remarks
    assert len({(remark.rule, remark.call) for remark in heard if remark.kind == "applied"}) == 5


def test_counts_add_up() -> None:
    """Those of the parts are counted with the whole, in the place of what they are parts of."""
    made = block(nested())
    expected = {"Branching": 2, "Conv2d": 5, "BatchNorm2d": 5}
    assert made.before.operators == expected
    del expected["BatchNorm2d"]
    assert made.after.operators == expected
    model = nested()
    assert made.before.parameters == sum(p.numel() for p in model.parameters())
    assert made.after.parameters == sum(p.numel() for p in made.fused.parameters())


def test_the_whole_report_of_a_model_that_stays() -> None:
    report = reparam.report(compiled(trained(Branching(conv_norm(), conv_norm()))))
    assert report.before.operators == {"Branching": 1, "Conv2d": 2, "BatchNorm2d": 2}
    assert report.after.operators == {"Branching": 1, "Conv2d": 2}
    assert report.verification.checked == len(report.applied) == 2
    assert report.verification.mode == "float64"


def test_without_checks() -> None:
    model = nested()
    fused = compiled(model, verify=False)
    assert norms(fused) == []
    alike(model, fused)
    verification = reparam.report(fused).verification
    assert (verification.mode, verification.checked) == ("unverified", 0)


def test_a_part_in_which_nothing_is_fused_stays_itself() -> None:
    model = trained(Branching(nn.Sequential(nn.ReLU(), nn.ReLU6()), conv_norm()))
    fused = compiled(model)
    assert type(fused.first) is nn.Sequential
    assert reparam.report(fused).before.operators == {
        "Branching": 1,
        "Conv2d": 1,
        "BatchNorm2d": 1,
    }


def test_a_part_that_is_read_stays() -> None:
    model = trained(Counting(conv_norm(), conv_norm()))
    fused = compiled(model)
    assert norms(fused) == ["read.1"]
    assert type(fused.read) is nn.Sequential
    alike(model, fused)


def test_a_shared_part_that_another_reads_stays() -> None:
    shared = conv_norm()
    inner = Counting(shared, conv_norm())
    for model in (Branching(inner, shared), nn.Sequential(Branching(shared, inner))):
        fused = compiled(trained(model))
        alike(model, fused)
        left = {name.removeprefix("0.").rpartition(".")[0] for name in norms(fused)}
        assert left in ({"first.read", "second"}, {"second.read", "first"}), (
            "all are the shared one"
        )


def test_a_part_that_two_call_is_compiled_once() -> None:
    shared = conv_norm()
    model = trained(Branching(Branching(shared, conv_norm()), shared))
    fused = compiled(model)
    assert norms(fused) == []
    alike(model, fused)
    assert len(list(fused.parameters())) <= 3 * 2


def test_a_part_whose_layers_are_traced_as_well_stays() -> None:
    """The graph calls the convolution in it, by a path that leads through it."""
    staying = Branching(conv_norm(), conv_norm())
    model = nn.Sequential(staying, staying.first[0])
    trained(model)
    fused = compiled(model)
    alike(model, fused)


def test_a_part_in_training_mode_stays() -> None:
    model = trained(Branching(conv_norm(), conv_norm()))
    model.second.train()
    fused = compiled(model)
    assert norms(fused) == ["second.1"]
    missed = {remark.call: remark.message for remark in reparam.report(fused).missed}
    assert "is in training mode" in missed["second"]


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(TrainingModeError, match=r"eval\(\)"):
        block(nested().train())


@pytest.mark.parametrize("others", [{"constants": {"x": IMAGE}}, {"method": "called"}])
def test_what_was_asked_for_and_cant_be_traced_is_an_error(others: dict[str, Any]) -> None:
    class Model(Branching):
        def called(self, x: Tensor) -> Tensor:
            return self.forward(x)

    with pytest.raises(CaptureError):
        block(trained(Model(conv_norm(), conv_norm())), **others)


def test_rewrites_and_passes_of_fx_in_turn() -> None:
    order: list[str] = []

    def own(graph_module: fx.GraphModule) -> fx.GraphModule:
        names = [type(m).__name__ for m in graph_module.modules()]
        order.append("norm" if "BatchNorm2d" in names else "folded")
        return graph_module

    model = trained(nn.Sequential(*conv_norm()))
    fused = compiled(model, passes=(own, *passes.DEFAULT, own))
    assert order[0] == "norm"
    assert order[-1] == "folded"
    same(model, fused)


def test_a_hook_that_reads_a_part_finds_it() -> None:
    def scaled(module: Any, _: Any, output: Tensor) -> Tensor:
        return output * module.first[0].weight.abs().sum()

    model = trained(nn.Sequential(Branching(conv_norm(), conv_norm()), nn.ReLU()))
    model[0].register_forward_hook(scaled)
    fused = compiled(model)
    alike(model, fused)
    assert norms(fused) == ["0.first.1"]


def test_storage_is_not_shared_with_parts_that_stay() -> None:
    model = nested()
    fused = compiled(model)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert all(bool(parameter.any()) for parameter in model.parameters())
