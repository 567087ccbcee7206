"""A border that is written over is a padding by a constant; the layer before it takes that off."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passes
import reparam
from passes import fold_border
from reparam.capture import capture
from reparam.errors import Declined
from reparam.lift import lift_graph
from reparam.operators import Pad
from tests.passes.alone import Net, alone
from tests.randomised import randomised

IMAGES = torch.randn(2, 3, 7, 6)


def bordered(net: Net, x: Tensor) -> Tensor:
    padded = F.pad(net.conv(x), [1, 1, 1, 1])
    border = net.border.view(1, -1, 1, 1)
    padded[:, :, 0:1, :] = border
    padded[:, :, -1:, :] = border
    padded[:, :, :, 0:1] = border
    padded[:, :, :, -1:] = border
    return padded


def net(bias: bool = True, stride: int = 1) -> Net:
    conv = nn.Conv2d(3, 4, 3, stride, bias=bias)
    return Net(bordered, conv=conv, border=torch.randn(4))


def test_a_border_goes_into_the_bias() -> None:
    for bias in (True, False):
        for stride in (1, 2):
            fused, told = alone(fold_border, net(bias, stride), IMAGES, given=True)
            assert [remark.rule for remark in told.applied] == ["fold_border"]
            assert fused.conv.bias is not None
            assert told.after.total == 3


def test_without_a_pass_the_border_is_padded_itself() -> None:
    model = randomised(net(), IMAGES)
    told = reparam.report(reparam.compile(model, IMAGES, passes=()))
    written = {"add": 1, "expand_as": 1, "pad": 2, "sub": 1}
    assert told.after.operators == {"Conv2d": 1} | written


def test_one_number_for_all_channels_is_padded_with_at_once() -> None:
    model = randomised(Net(bordered, conv=nn.Conv2d(3, 4, 3), border=torch.randn(1)), IMAGES)
    fused = reparam.compile(model, IMAGES, passes=(fold_border,))
    told = reparam.report(fused)
    assert not told.applied
    assert told.after.operators == {"Conv2d": 1, "pad": 1}
    assert torch.equal(fused(IMAGES), model(IMAGES))


def test_a_border_that_no_layer_takes_in_is_exact() -> None:
    model = Net(bordered, conv=nn.ReLU(), border=torch.randn(3)).eval()
    images = IMAGES.masked_fill(IMAGES > 1, torch.inf)
    assert torch.equal(reparam.compile(model, passes=())(images), model(images))


def test_a_large_constant_is_not_taken_off() -> None:
    """What is computed would be rounded as the constant is."""
    model = Net(bordered, conv=nn.Conv2d(3, 4, 3), border=30 * torch.ones(4)).eval()
    told = reparam.report(reparam.compile(model, IMAGES, passes=(fold_border,)))
    assert not told.applied
    (remark,) = told.missed
    assert remark.message == (
        "the constant is so large that to take it off would round all the rest"
    )


def test_a_layer_that_something_else_reads_stays() -> None:
    def twice(net: Net, x: Tensor) -> Tensor:
        made = net.conv(x)
        padded = F.pad(made, [1, 1, 1, 1])
        border = net.border.view(1, -1, 1, 1)
        for rows in ((..., slice(0, 1), slice(None)), (..., slice(-1, None), slice(None))):
            padded[rows] = border
        padded[..., :, 0:1] = border
        padded[..., :, -1:] = border
        return padded.sum() + made.sum()

    model = Net(twice, conv=nn.Conv2d(3, 4, 3), border=torch.randn(4))
    _, told = alone(fold_border, model, IMAGES, given=True)
    assert not told.applied
    reasons = [remark.message for remark in told.missed if remark.rule == "fold_border"]
    assert reasons in ([], ["something else reads the layer before it"])


def test_what_is_no_layer_stays() -> None:
    model = Net(bordered, conv=nn.ReLU(), border=torch.randn(3)).eval()
    told = reparam.report(reparam.compile(model, IMAGES, passes=(fold_border,)))
    assert not told.applied
    assert not told.missed


def test_a_layer_of_another_dtype_stays() -> None:
    values = lift_graph(capture(randomised(net(), IMAGES)), IMAGES)
    call = next(call for call in values.calls() if isinstance(call.value, Pad))
    call.node.meta["facts"] = replace(call.node.meta["facts"], dtype=torch.float16)
    with pytest.raises(Declined) as caught:
        fold_border(call)
    assert caught.value.reason == "the dtypes differ"


def test_it_is_the_last_word_on_a_border() -> None:
    """A kernel behind the padding takes the border in, as ECB means it to."""
    model = nn.Sequential(net(), nn.Conv2d(4, 2, 3))
    fused = reparam.compile(randomised(model, IMAGES), IMAGES)
    assert "sub" not in reparam.report(fused).after.operators
    assert fold_border in passes.DEFAULT
