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
    rule: Rewrite,
    model: nn.Module,
    x: Tensor,
    *,
    given: bool = False,
    others: tuple[Tensor, ...] = (),
) -> tuple[fx.GraphModule, reparam.Report]:
    """Compile with one pass alone, in float64.

    The result computes the same, also where no check was there to stop the pass. No other pass has
    done anything, and a second run changes nothing.

    Args:
        rule: the pass.
        model: it is given numbers at which a wrong fold shows.
        x: an input.
        given: whether that is an example input; if not, the pass has to do without any.
        others: more inputs to compare at, of other sizes.
    """
    return settled(rule, randomised(model, x), x, given=given, others=others)


def settled(
    rule: Rewrite,
    model: nn.Module,
    x: Tensor,
    *,
    given: bool = False,
    others: tuple[Tensor, ...] = (),
) -> tuple[fx.GraphModule, reparam.Report]:
    """As `alone`, of a model whose numbers stay as they are."""
    model = model.double().eval()
    example = x.double() if given else None
    fused = reparam.compile(model, example, passes=(rule,))
    unchecked = reparam.compile(model, example, passes=(rule,), verify=False)
    for tensor in (x, *others):
        with torch.no_grad():
            expected = model(tensor.double())
            for result in (fused, unchecked):
                assert relative_difference(expected, result(tensor.double())) <= EXACT
    report = reparam.report(fused)
    assert {remark.rule for remark in report.applied} <= {rule.name}
    assert report.verification.checked == len(report.applied)
    again = reparam.compile(fused, example, passes=(rule,))
    assert reparam.report(again).applied == ()
    assert again.code == fused.code
    assert same_state(again.state_dict(), fused.state_dict())
    return fused, report


def fires(
    rule: Rewrite,
    model: nn.Module,
    x: Tensor,
    times: int = 1,
    *,
    given: bool = False,
    others: tuple[Tensor, ...] = (),
) -> fx.GraphModule:
    """Assert how often a pass rewrites a model; return what it leaves."""
    fused, report = alone(rule, model, x, given=given, others=others)
    assert len(report.applied) == times, report
    return fused


def reasons(rule: Rewrite, model: nn.Module, x: Tensor, *, given: bool = False) -> list[str]:
    """Why a pass that does nothing declined, by its own remarks."""
    _, report = alone(rule, model, x, given=given)
    assert report.applied == ()
    return [remark.message for remark in report.missed if remark.rule == rule.name]
