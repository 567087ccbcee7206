"""Take some rows of a layer, or reorder them, in its weight.

Before:
    y = shuffle(conv(x));   y = linear(x)[..., :C]

After:
    y = conv'(x), its rows in the order of y

Algebra:
    A selection or permutation of output channels is one of the rows of the weight.

Legal when:
    Just channels are rearranged, and each group keeps as many rows as the others, in their order.

Profitable when:
    Nothing else reads the layer.
"""

from reparam import Call, Replace, require, rewrite
from reparam.algebra import exact
from reparam.algebra import select_rows as selected
from reparam.layout import Track, rearrangements
from reparam.values import Conv, Layout

KINDS = ("reshape", "permute", "slice")


@rewrite(on=Layout)
def select_rows(call: Call) -> Replace | None:
    """Make a convolution of one whose output channels are rearranged."""
    chain, source = rearrangements(call)
    conv = source.value
    if not chain or not isinstance(conv, Conv) or conv.affine:
        return None
    if not all(isinstance(link.value, Layout) and link.value.kind in KINDS for link in chain):
        return None
    shape, result = source.shape, call.shape
    if shape is None or result is None or not shape.exact or len(shape.axes) != len(result.axes):
        return None
    if any(len(link.readers) != 1 for link in (source, *chain[:-1])):
        return None
    channel = len(shape.axes) - conv.n - 1
    kept = [axis for axis in range(len(shape.axes)) if axis != channel]
    if any(shape.axes[axis] != result.axes[axis] for axis in kept):
        return None
    track = Track.start(shape, conv.n)
    for link in chain:
        if not _keeps_order(link, track):
            return None
        track = track.through(link)
    rows = track.channels()
    if rows.numel() != rows.shape[channel] or not rows.numel():
        return None
    require(shape.dtype is not None, "the dtype is not known", source.name)
    return Replace(selected(exact(conv), rows.flatten()), *source.inputs)


def _keeps_order(link: Call, track: Track) -> bool:
    """Whether all but channels stay in place, and are not cut."""
    layout = link.value
    assert isinstance(layout, Layout), "the chain is of layouts"
    rank = len(track.axes)

    def carries_channels(axis: int) -> bool:
        return all(factor.stride for factor in track.axes[axis])

    if layout.kind == "permute":
        kept = rank - len(layout.axes)
        order = [*range(kept), *(axis % rank for axis in layout.axes)]
        return all(axis == place or carries_channels(axis) for place, axis in enumerate(order))
    if layout.kind == "slice":
        return carries_channels(layout.index[0] % rank)
    return True
