"""The driver: what a pass gets wrong, or does forever, never reaches the output."""

import json
from inspect import unwrap as unchecked  # the annotations, which users have no check of
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
import reparam
from reparam import Call, Remark, Replace, rewrite
from reparam.algebra import batch_norm_affine, exact, widen_groups
from reparam.composition import compose
from reparam.values import IDENTITY, BatchNorm, Conv, Sum
from reparam.verify import EXACT, relative_difference
from tests.fused import operators, same_state
from tests.randomised import randomised
from tests.strategies import drawn


def network(*layers: nn.Module) -> nn.Module:
    """The layers in series, in float64, with statistics that hide nothing."""
    model = nn.Sequential(*layers).double()
    return randomised(model, images())


def images() -> Tensor:
    return drawn(1, 3, 4, 6, 5)


def conv_then_norm() -> nn.Module:
    return network(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


def norm_then_conv() -> nn.Module:
    return network(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())


def assert_unchanged(model: nn.Module, fused: nn.Module) -> None:
    with torch.no_grad():
        assert relative_difference(model(images()), fused(images())) <= EXACT


def following(call: Call, kind: type) -> Call | None:
    """The call before a convolution or batch norm, if it is of the other kind."""
    if not isinstance(call.value, Conv | BatchNorm):
        return None
    (source,) = call.inputs
    return source if isinstance(source.value, kind) else None


@rewrite
def drops_epsilon(call: Call) -> Replace | None:
    source = following(call, Conv)
    if source is None or not isinstance(call.value, BatchNorm):
        return None
    norm = call.value
    exact_norm = BatchNorm(norm.mean, norm.variance, norm.weight, norm.bias, 0.0, norm.n)
    assert isinstance(source.value, Conv)
    return Replace(compose(batch_norm_affine(exact_norm), exact(source.value)), *source.inputs)


@rewrite
def drops_mean(call: Call) -> Replace | None:
    source = following(call, Conv)
    if source is None or not isinstance(call.value, BatchNorm):
        return None
    scale = batch_norm_affine(call.value).weight
    assert isinstance(source.value, Conv)
    inner = exact(source.value)
    weight = inner.weight * scale
    return Replace(Conv(weight, inner.bias, padding=inner.padding), *source.inputs)


@rewrite
def forgets_the_border(call: Call) -> Replace | None:
    """Folds the shift forward as if the padding were not there."""
    source = following(call, BatchNorm)
    if source is None:
        return None
    outer, inner = exact(call.value), batch_norm_affine(source.value)  # type: ignore[arg-type]
    unpadded = Conv(outer.weight, outer.bias)
    one = compose(unpadded, inner)
    return Replace(Conv(one.weight, one.bias, padding=outer.padding), *source.inputs)


@rewrite
def forgets_the_shift(call: Call) -> Replace | None:
    source = following(call, BatchNorm)
    if source is None:
        return None
    outer, inner = exact(call.value), batch_norm_affine(source.value)  # type: ignore[arg-type]
    one = compose(outer, Conv(inner.weight, groups=inner.groups))
    return Replace(one, *source.inputs)


@rewrite
def scales_the_wrong_axis(call: Call) -> Replace | None:
    source = following(call, Conv)
    if source is None or not isinstance(call.value, BatchNorm):
        return None
    scale = batch_norm_affine(call.value)
    inner = exact(source.value)  # type: ignore[arg-type]
    one = compose(scale, inner)
    weight = inner.weight * scale.weight.reshape(1, -1, 1, 1)
    return Replace(Conv(weight, one.bias, padding=one.padding), *source.inputs)


@rewrite
def returns_another_shape(call: Call) -> Replace | None:
    if isinstance(call.value, Conv):
        return Replace(Conv(call.value.weight[:1], padding=call.value.padding), *call.inputs)
    return None


WRONG = [
    (drops_epsilon, conv_then_norm),
    (drops_mean, conv_then_norm),
    (scales_the_wrong_axis, conv_then_norm),
    (returns_another_shape, conv_then_norm),
    (forgets_the_border, norm_then_conv),
    (forgets_the_shift, norm_then_conv),
]


@pytest.mark.parametrize(("wrong", "make"), WRONG, ids=lambda part: getattr(part, "name", ""))
def test_a_wrong_rewrite_is_not_made_and_named(wrong: Any, make: Any) -> None:
    model = make()
    fused = reparam.compile(model, passes=(wrong,))
    assert_unchanged(model, fused)
    report = reparam.report(fused)
    assert report.applied == ()
    (missed,) = report.missed
    assert missed.rule == wrong.name
    assert "its replacement differs by" in missed.message


@pytest.mark.parametrize(("wrong", "make"), WRONG, ids=lambda part: getattr(part, "name", ""))
def test_a_wrong_rewrite_keeps_no_other_from_its_work(wrong: Any, make: Any) -> None:
    model = make()
    fused = reparam.compile(model, passes=(wrong, *passes.DEFAULT))
    assert_unchanged(model, fused)
    alone = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused) == operators(alone)
    assert wrong.name in {remark.rule for remark in reparam.report(fused).missed}


def test_unverified_the_wrong_rewrite_would_show() -> None:
    """The bug is one: without the check, it is in the output."""
    for wrong, make in WRONG[:3]:
        model = make()
        fused = reparam.compile(model, passes=(wrong,), verify=False)
        with torch.no_grad():
            assert relative_difference(model(images()), fused(images())) > EXACT


@rewrite
def raises(call: Call) -> Replace | None:
    raise ZeroDivisionError("a mistake\nwith details")


@rewrite
def never_shrinks(call: Call) -> Replace | None:
    """Takes groups apart and would be asked again, forever."""
    if isinstance(call.value, Conv):
        return Replace(widen_groups(call.value, 1), *call.inputs)
    return None


@rewrite
def adds_a_multiple(call: Call) -> Replace | None:
    return Replace(Sum((1.0,)), call) if isinstance(call.value, Conv) else None


@rewrite
def reads_what_comes_later(call: Call) -> Replace | None:
    if isinstance(call.value, Conv) and call.readers:
        return Replace(IDENTITY, call.readers[0])
    return None


@rewrite
def returns_no_replacement(call: Call) -> Any:
    return call.value


@rewrite
def replaces_by_nonsense(call: Call) -> Replace | None:
    return Replace("conv") if isinstance(call.value, Conv) else None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        (raises, "the pass failed with ZeroDivisionError: a mistake"),
        (never_shrinks, "it would not make the graph smaller: 1 operations with"),
        (adds_a_multiple, "its replacement reads what it replaces, or what comes after it"),
        (returns_no_replacement, "the pass failed with "),
        (replaces_by_nonsense, "the pass failed with "),
        (reads_what_comes_later, "its replacement reads what it replaces, or what comes after"),
    ],
    ids=lambda part: getattr(part, "name", ""),
)
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
def test_a_faulty_pass_is_named_and_the_run_ends(faulty: Any, reason: str, verify: bool) -> None:
    model = conv_then_norm()
    fused = reparam.compile(model, passes=(faulty,), verify=verify)
    assert_unchanged(model, fused)
    missed = [remark for remark in reparam.report(fused).missed if remark.rule == faulty.name]
    assert missed
    assert all(reason in remark.message for remark in missed)


def test_what_is_no_pass_is_an_error() -> None:
    with pytest.raises(reparam.PassError, match="3 is no pass"):
        unchecked(reparam.compile)(conv_then_norm(), passes=(3,))


def test_the_listener_hears_each_remark_once_in_order() -> None:
    heard: list[Remark] = []
    model = network(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    fused = reparam.compile(model, passes=passes.DEFAULT, remarks=heard.append)
    report = reparam.report(fused)
    assert sorted(map(str, heard)) == sorted(map(str, (*report.applied, *report.missed)))
    assert len(set(heard)) == len(heard)
    assert {remark.call for remark in report.missed} == {"3"}


def test_a_reason_that_several_passes_give_is_said_once() -> None:
    model = network(nn.ReLU(), nn.BatchNorm2d(4))
    missed = reparam.report(reparam.compile(model, passes=passes.DEFAULT)).missed
    said = [(remark.call, remark.message) for remark in missed]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["0.weight", "0.bias", "1.weight", "1.running_mean"])
def test_numbers_that_are_none_are_not_folded(number: float, where: str) -> None:
    model = conv_then_norm()
    model.state_dict()[where].flatten()[0] = number
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused)["BatchNorm2d"] == 1
    (missed,) = reparam.report(fused).missed
    assert "not finite" in missed.message
    with torch.no_grad():
        assert torch.equal(model(images()).isnan(), fused(images()).isnan())


def test_a_negative_variance_is_not_folded() -> None:
    model = conv_then_norm()
    model.state_dict()["1.running_var"][0] = -1.0
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused)["BatchNorm2d"] == 1


def test_a_scale_that_overflows_float16_is_not_folded() -> None:
    model = conv_then_norm().half()
    model.state_dict()["0.weight"].fill_(300)
    model.state_dict()["1.weight"].fill_(300)
    model.state_dict()["1.running_var"].fill_(0.1)
    fused = reparam.compile(model, passes=passes.DEFAULT)
    (missed,) = reparam.report(fused).missed
    assert missed.message == "a folded weight overflows float16"
    assert operators(fused)["BatchNorm2d"] == 1


def test_a_batch_norm_that_is_constant_is_folded() -> None:
    model = conv_then_norm()
    model.state_dict()["1.weight"].zero_()
    model.state_dict()["1.running_var"].zero_()
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused)["BatchNorm2d"] == 0
    assert_unchanged(model, fused)


def test_a_model_without_numbers_compiles_unverified() -> None:
    model = conv_then_norm().to("meta")
    fused = reparam.compile(model, passes=passes.DEFAULT)
    assert operators(fused)["BatchNorm2d"] == 0
    report = reparam.report(fused)
    assert report.verification.mode == "unverified"
    assert report.verification.checked == 0
    assert [remark.error for remark in report.applied] == [None]
    assert "unverified" in str(report)
    assert all(parameter.is_meta for parameter in fused.parameters())


def test_what_was_not_to_be_verified_says_so() -> None:
    report = reparam.report(reparam.compile(conv_then_norm(), passes=passes.DEFAULT, verify=False))
    assert report.verification.mode == "unverified"
    assert json.loads(report.to_json())["verification"]["checked"] == 0


def test_what_was_verified_says_how_well() -> None:
    found = reparam.report(reparam.compile(conv_then_norm(), passes=passes.DEFAULT)).verification
    assert (found.mode, found.checked) == ("float64", 1)
    assert found.largest_error <= EXACT


def test_verify_is_yes_or_no() -> None:
    with pytest.raises(reparam.ReparamError, match="verify is True, False or \"proof\", not 'yes'"):
        unchecked(reparam.compile)(conv_then_norm(), passes=(), verify="yes")


def test_two_runs_give_the_same_bits() -> None:
    first, second = (
        reparam.compile(conv_then_norm().float(), passes=passes.DEFAULT) for _ in range(2)
    )
    assert same_state(first.state_dict(), second.state_dict())


def test_without_passes_nothing_changes() -> None:
    model = conv_then_norm()
    fused = reparam.compile(model, passes=())
    assert same_state(model.state_dict(), fused.state_dict())
    assert reparam.report(fused).before == reparam.report(fused).after
