"""Compute once what depends on parameters, buffers and literals alone.

Before:
    w = f(W, b)  on every call

After:
    w, a tensor

Algebra:
    f is evaluated in float64 and rounded once.

Legal when:
    f is deterministic and has no effect.

Profitable when:
    The result is no larger than what it is computed from.
"""

from torch import Tensor

from reparam import Call, Replace, require, rewrite
from reparam.graph import Apply
from reparam.values import Constant, Opaque


@rewrite
def fold_constants(call: Call) -> Replace | None:
    """Evaluate a call of constants."""
    value, inputs = call.value, call.inputs
    if isinstance(value, Constant) or (isinstance(value, Opaque) and not value.pure):
        return None
    contents = [source.value.content for source in inputs if isinstance(source.value, Constant)]
    if not inputs or len(contents) < len(inputs) or call.node.kwargs:
        return None
    if any(isinstance(a, tuple | list) for a in call.node.args) or not all(
        isinstance(c, Tensor) for c in contents
    ):
        return None
    tensors = iter(contents)
    args = [next(tensors) if hasattr(a, "op") else a for a in call.node.args]
    plain = value(*args)
    if not isinstance(plain, Tensor):
        return None
    largest = max(content.numel() for content in contents)
    require(plain.numel() <= largest, "the result is larger than what it is computed from")
    wide = value(
        *(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
    )
    return Replace({call: Apply(Constant(wide.to(plain.dtype)), ())})
