"""Run one pass alone over a model, and hold it to what every pass promises."""

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

import reparam
from reparam.rewrite import Rewrite
from reparam.verify import EXACT, relative_difference
from tests.fused import same_state
from tests.randomised import randomised


class Net(nn.Module):
    """A model whose forward is a function of its parts and inputs."""

    def __init__(self, forward: Callable[..., object], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def alone(
    rule: Rewrite, model: nn.Module, x: Tensor, *, given: bool = False
) -> tuple[fx.GraphModule, reparam.Report]:
    """Compile with one pass alone, in float64.

    The result computes the same, no other pass has done anything, and a second run changes nothing.
    With `given`, x is an example input; without, the pass has to do without any.
    """
    model = randomised(model, x).double()
    example = x.double() if given else None
    fused = reparam.compile(model, example, passes=(rule,))
    with torch.no_grad():
        assert relative_difference(model(x.double()), fused(x.double())) <= EXACT
    report = reparam.report(fused)
    assert {remark.rule for remark in report.applied} <= {rule.name}
    assert report.verification.checked == len(report.applied)
    again = reparam.compile(fused, example, passes=(rule,))
    assert reparam.report(again).applied == ()
    assert again.code == fused.code
    assert same_state(again.state_dict(), fused.state_dict())
    return fused, report


def fires(
    rule: Rewrite, model: nn.Module, x: Tensor, times: int = 1, *, given: bool = False
) -> fx.GraphModule:
    """Assert how often a pass rewrites a model; return what it leaves."""
    fused, report = alone(rule, model, x, given=given)
    assert len(report.applied) == times, report
    return fused


def reasons(rule: Rewrite, model: nn.Module, x: Tensor) -> list[str]:
    """Why a pass that does nothing declined, by its own remarks."""
    _, report = alone(rule, model, x)
    assert report.applied == ()
    return [remark.message for remark in report.missed if remark.rule == rule.name]
