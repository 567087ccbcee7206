"""Cancel rearrangements that undo each other.

Before:
    y = reshape(flatten(x), x.shape);   y = x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)

After:
    y = x

Algebra:
    Reshapes keep the order of the elements, so that two shapes that agree are one tensor.
    Permutations compose.

Legal when:
    The shape at the end is known to be that at the beginning.

Profitable when:
    Always.
"""

from reparam import Call, Replace, rewrite
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
    return None


def _undone(outer: Layout, inner: object) -> bool:
    """Whether one permutation undoes another, both of the last axes, counted from the end."""
    assert isinstance(inner, Layout), "permutations are layouts"
    axes = max(len(outer.axes), len(inner.axes))
    orders = [(*range(-axes, -len(v.axes)), *v.axes) for v in (outer, inner)]
    return all(orders[1][orders[0][axis]] == axis for axis in range(-axes, 0))
