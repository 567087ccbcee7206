"""Fold a skip into the depthwise convolution beside it: RepMixer, conditional position encodings.

Before:
    y = x + γ (mixer(x) − norm(x))   or   y = conv(x) + x, conv depthwise

After:
    y = conv(x), depthwise

Algebra:
    mixer = Σ BNᵢ ∘ convᵢ and norm are depthwise maps K_m, K_n of x, so y = (I + γ(K_m − K_n)) x,
    I a one at the centre tap.

Legal when:
    Each convolution keeps the size. In `conv(BN(x)) + x`, the mixer as the paper prints it, the
    batch norm's shift meets zero padding: x is then padded with -t/s, at the cost of a subtraction.

Profitable when:
    All branches are depthwise maps of one tensor. A batch norm of that tensor is left to the layer
    before it.

Source: Vasu et al., "FastViT", ICCV 2023, equations 1 to 3.
"""

from reparam import Call, Replace, rewrite
from reparam.region import affine_call, merge
from reparam.terms import Group
from reparam.values import BatchNorm, Conv, Sum


def _through(call: Call) -> bool:
    """Maps that treat each channel by itself, but for what a layer of all channels takes in."""
    if isinstance(call.value, BatchNorm) and call.inputs[0].readers == (call,):
        return not _mixes(call.inputs[0])
    return affine_call(call) and not _mixes(call)


def _mixes(call: Call) -> bool:
    """Whether a call is a layer that mixes channels."""
    return isinstance(call.value, Conv) and not call.value.depthwise


def _folded(groups: list[Group]) -> bool:
    """Whether the root is one depthwise convolution that a skip went into."""
    (group, *others) = groups
    return (
        not others
        and isinstance(group.map, Conv)
        and group.map.depthwise
        and group.skips > 0
        and group.convolutions > 0
    )


@rewrite(on=Sum)
def fold_depthwise_skip(call: Call) -> Replace | None:
    """Merge a sum of depthwise branches and skips of one input."""
    if not (isinstance(call.value, Sum) and len(call.inputs) > 1):
        return None
    return merge(call, _through, _folded)
