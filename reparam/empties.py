"""Small images of which a crop leaves nothing: a slice of one is empty, a convolution fails.

So a convolution that goes behind a crop may fail on images that the model takes. It does not if
something else there needs larger ones anyway: a valid convolution beside the crop, say.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from reparam.algebra import span
from reparam.graph import Call
from reparam.operators import AvgPool, ConvTranspose, Pad, Slice
from reparam.sizes import Size
from reparam.values import Conv, Sum, Value


def takes_fewer_sizes(maps: Mapping[Call, Iterable[Conv | Sum]], removed: Iterable[Call]) -> bool:
    """Whether maps fail on small images of which the calls that they replace make something.

    Args:
        maps: those of each tensor.
        removed: the calls that go, readers before what they read.
    """
    order = list(removed)
    if not any(isinstance(call.value, Slice) for call in order):
        return False
    convolutions = [(x, m) for x, several in maps.items() for m in several if isinstance(m, Conv)]
    axes = {axis for _, map_ in convolutions for axis in range(-map_.n, 0)}
    needed = {axis: _needed(axis, order) for axis in axes}
    return any(_fails(x, map_, axis, needed[axis]) for axis in axes for x, map_ in convolutions)


def _needed(axis: int, order: list[Call]) -> dict[Call, int]:
    """How long an axis of each tensor has to be for the calls to run."""
    needed: dict[Call, int] = defaultdict(int)
    for call in order:
        before = _least(call, axis, needed[call])
        for source in call.inputs:
            needed[source] = max(needed[source], before)
    return needed


def _least(call: Call, axis: int, after: int) -> int:
    """How long an axis has to be for a call to make one of a length, or to run at all."""
    value: Value = call.value
    some = max(after, 1)  # a convolution or a pooling fails where it makes nothing
    match value:
        case Slice():
            left_out = value.start[axis] + value.cut[axis]
            return (after - 1) * value.stride[axis] + 1 + left_out if after else 0
        case Pad():
            return after - sum(value.padding[axis])
        case Conv() if call.traits.convolution or not value.affine:
            (reach,) = span((value.dilation[axis],), (value.kernel[axis],))
            return (some - 1) * value.stride[axis] + 1 + reach - sum(value.padding[axis])
        case AvgPool():
            windows = (some - 1) * value.stride[axis] + value.kernel[axis]
            return windows - 2 * value.padding[axis]
        case ConvTranspose():
            (reach,) = span((value.dilation[axis],), (value.weight.shape[axis],))
            return some - reach + 2 * value.padding[axis] - value.output_padding[axis]
        case _:
            return after


def _fails(x: Call, map_: Conv, axis: int, needed: dict[Call, int]) -> bool:
    """Whether a map of a tensor needs a longer axis than everything of that length did."""
    (reach,) = span((map_.dilation[axis],), (map_.kernel[axis],))
    length, size = 1 + reach - sum(map_.padding[axis]), _size(x, axis)
    if size is not None and size.known:
        return length > size.factor
    alike = [n for call, n in needed.items() if call == x or (size and _size(call, axis) == size)]
    return length > max(1, *alike)


def _size(call: Call, axis: int) -> Size | None:
    shape = call.shape
    known = shape is not None and shape.exact and len(shape.axes) >= -axis
    return shape.axes[axis] if shape is not None and known else None
