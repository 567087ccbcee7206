"""Fold an identity residual into the convolution beside it.

Before:
    y = BN₁(conv(x)) + BN₂(x)   or   conv(x) + x

After:
    y = conv(x)

Algebra:
    x is a 1×1 convolution with the identity matrix: a one at the centre tap of each channel.

Legal when:
    The convolution keeps sizes and channels: stride 1, padding of half its extent.

Profitable when:
    The branch is linear from end to end.

Source: Ding et al., "RepVGG", CVPR 2021, section 3.3.
"""

from reparam import Call, Declined, Replace, rewrite
from reparam.graph import INPUT
from reparam.region import LONGEST, affine_call, merge
from reparam.terms import Group
from reparam.values import Conv, Layout, Sum


def _through(call: Call) -> bool:
    """Linear calls but depthwise convolutions, which have a pass of their own."""
    value = call.value
    return affine_call(call) and not (
        isinstance(value, Conv) and value.depthwise and not value.affine
    )


def _folded(groups: list[Group]) -> bool:
    """Whether a skip went into a convolution that mixes channels."""
    return any(
        group.skips
        and group.convolutions
        and isinstance(group.map, Conv)
        and not group.map.depthwise
        for group in groups
    )


@rewrite(on=Sum)
def fold_identity(call: Call) -> Replace | None:
    """Merge a sum of linear branches and skips of one input."""
    if not (isinstance(call.value, Sum) and len(call.inputs) > 1):
        return None
    found = merge(call, _through, _folded)
    if found is None and (obstacle := _obstacle(call)) is not None:
        raise Declined(f"a branch has {obstacle.value.__name__} in it, not linear", obstacle.name)
    return found


def _obstacle(call: Call) -> Call | None:
    """The latest call on the branches of a sum that is not linear, if it is anywhere near.

    Where all branches begin, or the model does, is on none of them.
    """
    pending = {call}
    for _ in range(LONGEST):
        found = max(pending)
        pending.remove(found)
        if isinstance(found.value, Layout):
            pending.add(found.inputs[0])  # the others are sizes
        elif affine_call(found):
            pending.update(found.inputs)
        else:
            return found if pending and found.value is not INPUT else None
    return None
