"""Compute once what depends on parameters, buffers and literals alone.

Before:
    w = f(W, b);  y = conv(x; w)  on every call

After:
    y = conv(x; w), w a tensor

Algebra:
    f is evaluated in float64 and rounded once, or as the model does where a step of it jumps.

Legal when:
    f is deterministic and has no effect.

Profitable when:
    The result is no larger than what it is computed from or than a mebibyte, or it is the weight of
    a layer.
"""

from torch import Tensor

from reparam import Call, Replace, require, rewrite
from reparam.arguments import mapped
from reparam.constants import Pair, evaluate
from reparam.graph import Apply
from reparam.lift_modules import REAL
from reparam.values import Constant, Opaque, Sum

SMALL = 2**20
"""Bytes that a result may always take."""


@rewrite
def fold_constants(call: Call) -> Replace | None:
    """Evaluate a call of constants, or the constants that a layer computes its weights from."""
    value = call.value
    if call.constant_operations:
        # A multiple of integers is one of floats, once it is written with a plain number.
        real = call.shape is not None and call.shape.dtype in REAL
        return Replace(value, *call.arguments) if real or not isinstance(value, Sum) else None
    if not isinstance(value, Opaque) or not value.pure:
        return None
    inputs = call.inputs
    contents = [source.value.content for source in inputs if isinstance(source.value, Constant)]
    every = 0 < len(inputs) == len(contents)
    if not every or not all(isinstance(c, Tensor) for c in contents):
        return None

    def content(source: Call) -> Pair:
        assert isinstance(source.value, Constant), "only calls of constants are evaluated"
        return Pair.of(source.value.content, source.value.content)

    args, kwargs = mapped((call.arguments, call.options), Call, content)
    exact, plain = evaluate(value, args, kwargs)
    if not isinstance(plain, Tensor):
        return None
    require(plain.device in {content.device for content in contents}, "it moves to another device")
    largest = max(content.nbytes for content in contents)
    fits = plain.nbytes <= max(largest, SMALL)
    require(fits, "the result is larger than what it is computed from")
    # Where it is told what dtype the result has, it is rounded in the end, and just once.
    told = call.shape is not None and call.shape.dtype == plain.dtype
    return Replace({call: Apply(Constant(exact if told else exact.to(plain.dtype)), ())})
