"""A proof: the pass is replayed on residues, and what differs for any weights at all is refused."""

import gc
import json
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passes
import reparam
from reparam import Apply, Call, Replace, rewrite
from reparam.algebra import add as added
from reparam.algebra import affine, exact, identity_like
from reparam.capture import capture
from reparam.composition import compose
from reparam.errors import Rejected
from reparam.expansion import diagonal
from reparam.lift import lift_graph
from reparam.operators import AvgPool, Slice
from reparam.proof import CLAIM, Proof
from reparam.prove import CHANCE, PLACES, prove_rewrite
from reparam.rewrite import Rewrite
from reparam.values import BatchNorm, Conv, Layout, Opaque, Sum
from tests.passes.alone import Net
from tests.randomised import randomised

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def proven(rule: Rewrite, model: nn.Module, x: Tensor) -> Proof:
    """The proof of the first rewrite that a pass returns."""
    values = lift_graph(capture(randomised(model, x)), x)
    for call in values.calls():
        made = rule(call) if call.node.op == "call_function" else None
        if made is not None:
            targets = [node.target for node in values.graph.nodes]
            proof = prove_rewrite(rule, call, made.roots(call))
            assert [node.target for node in values.graph.nodes] == targets
            return proof
    raise AssertionError("the pass did not fire")


def block(x: Tensor) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6, eps=1e-2))


IMAGES = torch.randn(2, 4, 7, 6)


def folds(change: Callable[[BatchNorm], Conv]) -> Rewrite:
    """A pass that folds a batch norm by a law of its own."""

    @rewrite
    def fold(call: Call) -> Replace | None:
        if not isinstance(call.value, BatchNorm):
            return None
        (source,) = call.inputs
        assert isinstance(source.value, Conv)
        return Replace(compose(change(call.value), exact(source.value)), *source.inputs)

    return fold


def law(norm: BatchNorm, eps: float | None = None, mean: float = 1.0, sign: float = 1.0) -> Conv:
    assert norm.weight is not None
    assert norm.bias is not None
    variance = norm.variance.double() + (norm.eps if eps is None else eps)
    scale = norm.weight.double() / torch.sqrt(variance)
    return affine(scale, norm.bias.double() - sign * mean * scale * norm.mean.double(), 2)


def test_the_law_of_a_batch_norm_is_proven_for_all_weights() -> None:
    proof = proven(folds(law), block(IMAGES), IMAGES)
    assert proof.proven
    assert not proof.premises
    assert proof.probability <= CHANCE
    assert proof.trials == PLACES
    assert 0 < proof.degree < 20
    assert CLAIM in str(proof)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda norm: law(norm, eps=0.0),
        lambda norm: law(norm, eps=norm.eps * (1 + 1e-9)),
        lambda norm: law(norm, mean=0.0),
        lambda norm: law(norm, mean=1 + 1e-9),
        lambda norm: law(norm, sign=-1.0),
        lambda norm: affine(law(norm).weight.flatten().flip(0), law(norm).bias, 2),
    ],
)
def test_a_law_that_is_wrong_by_whatever_little_is_refuted(wrong: Callable[..., Conv]) -> None:
    with pytest.raises(Rejected, match="its proof fails"):
        proven(folds(wrong), block(IMAGES), IMAGES)


def moved(change: Callable[[Conv], Conv]) -> Rewrite:
    """A pass that puts another convolution in the place of each."""

    @rewrite
    def change_convolution(call: Call) -> Replace | None:
        conv = call.value
        if not isinstance(conv, Conv) or conv.affine:
            return None
        return Replace({call: Apply(change(exact(conv)), call.inputs)})

    return change_convolution


@pytest.mark.parametrize(
    "wrong",
    [
        lambda conv: replace(conv, padding=((2, 0), (1, 1))),
        lambda conv: replace(conv, border=torch.ones(4, dtype=torch.float64)),
        lambda conv: replace(conv, weight=conv.weight.flip(-1)),
        lambda conv: replace(conv, weight=conv.weight.transpose(-1, -2)),
        lambda conv: replace(conv, bias=None),
        lambda conv: replace(conv, padding_mode="circular"),
        lambda conv: replace(conv, weight=conv.weight.flip(0)),
    ],
)
def test_whatever_hyper_parameter_is_lost_is_missed(wrong: Callable[[Conv], Conv]) -> None:
    with pytest.raises(Rejected):
        proven(moved(wrong), block(IMAGES)[0], IMAGES)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("end", [0, 1])
def test_a_side_that_a_stride_rarely_reaches_is_seen(stride: int, end: int) -> None:
    def cut(conv: Conv) -> Conv:
        sides = [1, 1]
        sides[end] -= 1
        return replace(conv, padding=(tuple(sides), (1, 1)))

    with pytest.raises(Rejected):
        proven(moved(cut), nn.Conv2d(2, 2, 3, stride, 1), torch.randn(1, 2, 9, 9))


def test_what_happens_to_be_zero_is_a_premise() -> None:
    """Without its bias the two kernels merge in spite of the padding between them."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3, padding=1))
    images = torch.randn(1, 3, 6, 6)
    model = randomised(model, images)
    nn.init.zeros_(model[0].bias)
    values = lift_graph(capture(model), images)
    rule = passes.merge_affine_region
    call = [*values.calls()][-1]
    made = rule(call)
    assert made is not None
    proof = prove_rewrite(rule, call, made.roots(call))
    assert proof.proven
    assert "0.bias is 0" in proof.premises


def test_a_border_that_is_what_the_layer_before_makes_of_zero_is_a_premise() -> None:
    """A block of ECB's: its author pads the image with what the first layer makes of zero."""

    class Bordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert self.first.bias is not None
            border = self.first.bias[:, None, None]
            return self.second(F.pad(self.first(x) - border, [1, 1, 1, 1]) + border)

    fused = reparam.compile(
        randomised(Bordered(), torch.randn(1, 3, 6, 6)), torch.randn(1, 3, 6, 6), verify="proof"
    )
    told = reparam.report(fused)
    assert told.after.operators == {"Conv2d": 1}
    assert all(remark.proof is not None and remark.proof.proven for remark in told.applied)


def test_a_comparison_is_a_premise() -> None:
    """A positive scale passes a ReLU."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    model = randomised(model, IMAGES)
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_()
        model[0].running_mean.zero_()
    fused = reparam.compile(model, IMAGES, verify="proof")
    (remark,) = (r for r in reparam.report(fused).applied if r.rule == "fold_into_readers")
    assert remark.proof is not None
    assert remark.proof.proven
    assert {"0.bias is 0", "0.mean is 0"} <= {*remark.proof.premises}
    assert any("what is compared of" in premise for premise in remark.proof.premises)


def test_a_scale_of_any_sign_does_not_pass_a_relu() -> None:
    @rewrite
    def push(call: Call) -> Replace | None:
        relu = call.value
        source = call.inputs[0] if call.inputs else None
        if source is None or not diagonal(source) or not isinstance(relu, Opaque):
            return None
        return Replace(source.value, Apply(relu, source.inputs))

    scaled = Net(
        lambda net, x: torch.relu(net.conv(x) * net.scale),
        conv=nn.Conv2d(4, 4, 1),
        scale=torch.randn(4, 1, 1),
    )
    with pytest.raises(Rejected):
        proven(push, scaled, IMAGES)


def test_what_has_no_counterpart_is_checked_in_float64_only() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3))
    model = randomised(model, IMAGES)
    nn.init.ones_(model[0].weight)
    fused = reparam.compile(model, IMAGES, verify="proof")
    told = reparam.report(fused)
    (remark,) = told.applied
    assert remark.proof is not None
    assert not remark.proof.proven
    assert remark.proof.reason == "max_pool2d_with_indices has no counterpart in a finite field"
    text = " ".join(str(told).split())
    assert "0 of them proven" in text


def test_functions_that_nothing_is_known_of_prove_and_refute_nothing() -> None:
    """x · sigmoid(x) is the same as silu(x), but no polynomial tells."""

    @rewrite
    def to_silu(call: Call) -> Replace | None:
        if not (isinstance(call.value, Opaque) and call.value.target is torch.mul):
            return None
        return Replace(Opaque(F.silu, pure=True), call.inputs[0])

    proof = proven(to_silu, Net(lambda _, x: torch.mul(x, torch.sigmoid(x))), IMAGES)
    assert proof.reason == "both sides apply functions that nothing is known of differently"


def test_many_denominators_take_more_places() -> None:
    """A border constant is a quotient for each channel, and a kernel sums over all of them."""
    width = 48
    images = torch.randn(1, width, 6, 6)
    model = nn.Sequential(
        nn.Conv2d(width, width, 1, groups=width), nn.Conv2d(width, 4, 3, padding=1)
    )

    @rewrite
    def swap(call: Call) -> Replace | None:
        source = call.inputs[0] if call.inputs else None
        if source is None or not isinstance(source.value, Conv) or not source.inputs:
            return None
        assert isinstance(call.value, Conv)
        return Replace(compose(exact(call.value), exact(source.value)), *source.inputs)

    proof = proven(swap, model, images)
    assert proof.proven
    assert proof.trials > PLACES
    assert proof.probability <= CHANCE


def test_a_pass_that_does_something_else_for_other_weights_is_not_proven() -> None:
    """What it returns must be of one form; here it depends on a number in the middle of others."""

    @rewrite
    def fickle(call: Call) -> Replace | None:
        conv = call.value
        if not isinstance(conv, Conv) or conv.affine or not torch.equal(conv.weight, known):
            return None
        return Replace(added(exact(conv), identity_like(exact(conv), 0.0)), *call.inputs)

    layer = randomised(nn.Conv2d(4, 4, 3, padding=1), IMAGES)
    known = layer.weight
    values = lift_graph(capture(layer), IMAGES)
    call = [*values.calls()][-1]
    made = fickle(call)
    assert made is not None
    proof = prove_rewrite(fickle, call, made.roots(call))
    assert proof.reason == "for random weights the pass does something else"


def test_a_sum_keeps_its_coefficients() -> None:
    @rewrite
    def drop(call: Call) -> Replace | None:
        if not isinstance(call.value, Sum) or len(call.inputs) < 2:
            return None
        return Replace(Sum((1.0, 1.0)), *call.inputs)

    model = Net(lambda _, x: torch.add(x, torch.relu(x), alpha=0.5))
    with pytest.raises(Rejected):
        proven(drop, model, IMAGES)


def test_the_report_says_what_is_proven_and_survives_pickling() -> None:
    model = randomised(block(IMAGES), IMAGES)
    fused = reparam.compile(model, IMAGES, verify="proof")
    told = reparam.report(fused)
    assert told.verification.mode == "proof"
    assert told.verification.proven == len(told.applied) == 1
    assert told.verification.seconds > told.verification.seconds_proving > 0
    again = reparam.report(pickle.loads(pickle.dumps(fused)))
    assert again == told
    assert json.loads(told.to_json())["applied"][0]["proof"]["reason"] is None
    assert "1 of them proven over a finite field" in " ".join(str(told).split())


def test_prove_takes_the_record_of_a_compile() -> None:
    model = randomised(block(IMAGES), IMAGES)
    plain = reparam.compile(model, IMAGES)
    told = reparam.prove(plain)
    assert [remark.call for remark in told.applied] == ["0"]
    assert told.verification.proven == 1
    other = reparam.compile(model, IMAGES, verify="proof")
    assert reparam.prove(other) == reparam.report(other)


def test_prove_refuses_what_it_has_no_record_of() -> None:
    with pytest.raises(reparam.ReparamError, match="has no report"):
        reparam.prove(nn.ReLU())
    model = randomised(block(IMAGES), IMAGES)
    plain = reparam.compile(model)
    with pytest.raises(reparam.ReparamError, match="no record of the model that it came from"):
        reparam.prove(pickle.loads(pickle.dumps(plain)))
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(reparam.ReparamError, match="was changed since"):
        reparam.prove(plain)
    del model
    gc.collect()
    with pytest.raises(reparam.ReparamError, match="no record of the model that it came from"):
        reparam.prove(plain)


def test_a_wrong_pass_is_rolled_back_and_told_of() -> None:
    model = randomised(block(IMAGES), IMAGES)
    wrong = folds(lambda norm: law(norm, eps=norm.eps * (1 + 1e-12)))
    fused = reparam.compile(model, passes=(wrong,), verify="proof")
    told = reparam.report(fused)
    assert not told.applied
    assert "its proof fails" in told.missed[0].message
    assert reparam.report(reparam.compile(model, passes=(wrong,))).applied  # float64 can't tell


def test_axes_that_are_exchanged_are_told_apart() -> None:
    """Where one of them is of one pixel, or both are of a size, a transposition is nothing."""

    @rewrite
    def drop_transposition(call: Call) -> Replace | None:
        inner = call.inputs[0] if call.inputs else None
        if inner is None or not isinstance(call.value, Layout) or call.value.kind != "reshape":
            return None
        return Replace(inner.inputs[0])

    model = Net(lambda _, x: x.transpose(1, 2).reshape(x.shape))
    values = lift_graph(capture(model.eval()), torch.randn(2, 5, 4))
    call = next(c for c in values.calls() if getattr(c.value, "kind", "") == "reshape")
    made = drop_transposition(call)
    assert made is not None
    with pytest.raises(Rejected):
        prove_rewrite(drop_transposition, call, made.roots(call))


def test_a_skip_by_a_decimal_is_proven() -> None:
    model = Net(lambda net, x: net.conv(x) - 0.7 * x, conv=nn.Conv2d(4, 4, 3, padding=1))
    assert proven(passes.fold_identity, model, IMAGES).proven


def test_all_sizes_are_swept_though_a_linear_layer_could_read_one_of_them_whole() -> None:
    """Four channels, one pixel each, are what a kernel of four inputs reads: a size like others."""
    model = nn.Sequential(nn.Conv2d(4, 16, 1, bias=False), nn.Conv2d(16, 2, 3))
    proof = proven(passes.merge_affine_region, model, torch.randn(2, 4, 7, 6))
    assert proof.proven
    # Of heights and widths 1 to 4, those of two pixels or less leave nothing.
    assert proof.sizes == len([(3, 4), (4, 4), (5, 6, 7)])


def test_a_sign_that_the_pass_does_not_look_at_is_drawn_anew() -> None:
    """A scale that happens to be positive passes a ReLU; a pass that does not ask is wrong."""

    @rewrite
    def pull(call: Call) -> Replace | None:
        relu = call.inputs[0] if call.inputs else None
        if relu is None or not diagonal(call) or not isinstance(relu.value, Opaque):
            return None
        if isinstance(call.value, Conv) and positive and not bool((call.value.weight > 0).all()):
            return None
        return Replace(relu.value, Apply(call.value, relu.inputs))

    scale = torch.tensor([0.5, 2.0, 3.0, 4.0]).reshape(4, 1, 1)
    scaled = Net(
        lambda net, x: torch.relu(net.conv(x)) * net.scale, conv=nn.Conv2d(4, 4, 1), scale=scale
    )
    values = lift_graph(capture(scaled.eval()), IMAGES)
    (call,) = [call for call in values.calls() if diagonal(call)]
    positive = True
    proof = prove_rewrite(pull, call, pull(call).roots(call))
    assert proof.premises == ("what is compared of mul.weight comes out as here",)
    positive = False
    with pytest.raises(Rejected, match="its proof fails"):
        prove_rewrite(pull, call, pull(call).roots(call))


def test_a_sum_of_relus_proves_nothing_about_its_sign() -> None:
    """Of residues that count as positive, a sum need not: no right pass is refused for it."""

    @rewrite
    def drop(call: Call) -> Replace | None:
        pool = call.inputs[0] if call.inputs else None
        if pool is None or not isinstance(pool.value, AvgPool):
            return None
        (relu,) = pool.inputs
        return Replace(pool.value, Apply(relu.value, relu.inputs))

    proof = proven(drop, Net(lambda _, x: F.relu(F.avg_pool2d(F.relu(x), 2))), IMAGES)
    assert proof.reason == "the sign of a sum has no counterpart in a finite field"


@pytest.mark.parametrize("flat", [False, True])
def test_an_axis_of_one_is_tried(flat: bool) -> None:
    """One image and one pixel: what is squeezed away there is no axis elsewhere."""

    @rewrite
    def keep(call: Call) -> Replace | None:
        squeezed = isinstance(call.value, Opaque) and call.value.target == "squeeze"
        return Replace(call.inputs[0]) if squeezed else None

    model = Net(
        lambda net, x: (net.conv(x).flatten(2).squeeze(-1) if flat else net.conv(x).squeeze(0)) * 2,
        conv=nn.Conv2d(4, 3, 1),
    )
    with pytest.raises(Rejected):
        proven(keep, model, IMAGES)


def test_what_is_cropped_at_both_ends_is_seen_past() -> None:
    @rewrite
    def middle(call: Call) -> Replace | None:
        conv, source = call.value, call.inputs[0] if call.inputs else None
        if not isinstance(conv, Conv) or source is None or not isinstance(source.value, Slice):
            return None
        weight = conv.weight[:, :, 1:2]
        same = replace(conv, weight=weight, padding=((0, 0), conv.padding[1]))
        return Replace(same, Apply(source.value, source.inputs))

    model = Net(lambda net, x: net.conv(x[..., 4:-4, 4:-4]), conv=nn.Conv2d(4, 3, 3, padding=1))
    with pytest.raises(Rejected):
        proven(middle, model, torch.randn(1, 4, 16, 16))


@pytest.mark.parametrize(
    "body",
    [lambda x: x[:, :, :20], lambda x: x[..., -20:], lambda x: x.tril(20), lambda x: x.roll(12, 2)],
    ids=["first rows", "last columns", "triangle", "shifted"],
)
def test_functions_are_tried_beyond_the_numbers_that_they_are_given(
    body: Callable[[Tensor], Tensor],
) -> None:
    """At smaller sizes, what is dropped here does nothing."""

    class Body(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return body(x).relu()

    calls = {node.name for node in reparam.compile(Body().eval(), verify=False).graph.nodes}
    (name,) = calls - {"x", "relu", "output"}

    @reparam.rewrite
    def dropped(call: Call) -> Replace | None:
        return Replace(call.inputs[0]) if call.name == name else None

    told = reparam.report(reparam.compile(Body().eval(), passes=(dropped,), verify="proof"))
    assert not told.applied
    assert "its replacement differs by" in told.missed[0].message


def test_a_number_beyond_all_that_is_tried_is_not_proven() -> None:
    @reparam.rewrite
    def dropped(call: Call) -> Replace | None:
        return Replace(call.inputs[0]) if call.name == "tril" else None

    class Body(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.tril(200).relu()

    (applied,) = reparam.report(
        reparam.compile(Body().eval(), passes=(dropped,), verify="proof")
    ).applied
    assert applied.proof is not None
    assert not applied.proof.proven
    assert "tril is given 200, and no images so large were tried" in str(applied.proof)
