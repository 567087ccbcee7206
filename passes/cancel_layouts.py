"""Cancel rearrangements that undo each other, and bypass those that keep the order for a reshape.

Before:
    y = reshape(flatten(x), x.shape);   y = x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)
    y = reshape(reshape(x, a), b);      y = reshape(x.permute(0, 2, 3, 1), b)  of (N, C, 1, 1)

After:
    y = x
    y = reshape(x, b)

Algebra:
    A reshape keeps the order of the elements, and so does a permutation that moves only axes of
    size 1: with these, two shapes that agree are one tensor. Permutations compose.

Legal when:
    The shape at the end is known to be that at the beginning; or it is given by numbers alone, and
    known to have as many elements.

Profitable when:
    Always for those that undo each other; nothing else may read what is bypassed.
"""

from reparam import Call, Replace, rewrite
from reparam.known import name
from reparam.sizes import ONE, product
from reparam.values import Layout


@rewrite(on=Layout)
def cancel_layouts(call: Call) -> Replace | None:
    """Pass on the tensor that a chain of rearrangements of one kind began with."""
    value = call.value
    if not isinstance(value, Layout) or value.kind not in ("reshape", "permute"):
        return None
    source = call.inputs[0]
    while isinstance(source.value, Layout) and source.value.kind == value.kind:
        inner, source = source, source.inputs[0]
        if value.kind == "permute" and not _undone(value, inner.value):
            return None
        if source.shape is not None and source.shape == call.shape and source.shape.exact:
            return Replace(source)
    return _bypassing(call)


def _bypassing(call: Call) -> Replace | None:
    """The same reshape, to sizes that no tensor tells, of what its input was rearranged from."""
    reshape = isinstance(call.value, Layout) and name(call.value.target) == "reshape"
    if not reshape or len(call.inputs) != 1:
        return None
    source = call.inputs[0]
    while len(source.readers) == 1 and _keeps_order(source):
        source = source.inputs[0]
    before, after = source.shape, call.shape
    if source == call.inputs[0] or before is None or after is None:
        return None
    fits = before.exact and after.exact and product(before.axes) == product(after.axes)
    return Replace({call: call.on(source)}) if fits else None


def _keeps_order(call: Call) -> bool:
    """Whether a call leaves all elements where they are, counted through all axes."""
    value = call.value
    if not isinstance(value, Layout) or value.kind != "permute":
        return isinstance(value, Layout) and value.kind == "reshape"
    shape = call.inputs[0].shape
    if shape is None or not shape.exact:
        return False
    moved = [axis for axis in value.axes if shape.axes[axis] != ONE]
    return moved == sorted(moved)


def _undone(outer: Layout, inner: object) -> bool:
    """Whether one permutation undoes another, both of the last axes, counted from the end."""
    assert isinstance(inner, Layout), "permutations are layouts"
    axes = max(len(outer.axes), len(inner.axes))
    orders = [(*range(-axes, -len(v.axes)), *v.axes) for v in (outer, inner)]
    return all(orders[1][orders[0][axis]] == axis for axis in range(-axes, 0))
