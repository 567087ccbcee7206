"""Compute once what depends on parameters, buffers and literals alone.

Before:
    w = f(W, b);  y = conv(x; w)  on every call

After:
    y = conv(x; w), w a tensor

Algebra:
    f is evaluated in float64 and rounded once.

Legal when:
    f is deterministic and has no effect.

Profitable when:
    The result is no larger than what it is computed from, or is the weight of a layer.
"""

from typing import Any

import torch
from torch import Tensor

from reparam import Call, Replace, require, rewrite
from reparam.arguments import mapped
from reparam.graph import Apply
from reparam.values import Constant, Opaque


@rewrite
def fold_constants(call: Call) -> Replace | None:
    """Evaluate a call of constants, or the constants that a layer computes its weights from."""
    value, inputs = call.value, call.inputs
    if call.constant_operations:
        return Replace(value, *call.arguments)
    if not isinstance(value, Opaque) or not value.pure or not inputs:
        return None
    contents = [source.value.content for source in inputs if isinstance(source.value, Constant)]
    if len(contents) < len(inputs) or not all(isinstance(c, Tensor) for c in contents):
        return None
    plain = _evaluate(call, lambda content: content)
    if not isinstance(plain, Tensor):
        return None
    largest = max(content.numel() for content in contents)
    require(plain.numel() <= largest, "the result is larger than what it is computed from")
    wide = _evaluate(call, lambda c: c.double() if c.is_floating_point() else c)
    return Replace({call: Apply(Constant(wide.to(plain.dtype)), ())})


def _evaluate(call: Call, widened: Any) -> Any:
    """The result of a call of constants, each changed by a function first."""
    with torch.no_grad():
        args, kwargs = mapped(
            (call.arguments, call.options), Call, lambda source: widened(source.value.content)
        )
        return call.value(*args, **kwargs)
