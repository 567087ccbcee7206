"""Drop what does nothing in evaluation mode.

Before:
    y = dropout(1 * identity(x) + 0);  assert x.ndim == 4

After:
    y = x

Algebra:
    1·x + 0 = x

Legal when:
    The factor is exactly 1, the dtype stays, and a result of the model that is a tensor of its own
    remains one. An assertion of the model's own is proven by what is known of shapes.
    A number of axes that the model asserts is known, as it is from a batch norm that demands it.

Profitable when:
    Always.
"""

from reparam import Call, Replace, require, rewrite
from reparam.graph import Apply
from reparam.known import ASSERT, HELD
from reparam.values import IDENTITY, Constant, Opaque, Sum


@rewrite(on=Opaque | Sum)
def drop_noops(call: Call) -> Replace | None:
    """Pass the input of a no-op on to its readers; drop a proven assertion."""
    value = call.value
    if isinstance(value, Sum) and value.coefficients == (1.0,):
        (source,) = call.inputs
        if value is not IDENTITY:  # arithmetic, which returns new memory and may widen a dtype
            dtype = source.shape.dtype if source.shape is not None else None
            floating = dtype is not None and dtype.is_floating_point
            require(floating, "its input is not known to be floating-point")
        return Replace(source)
    if isinstance(value, Opaque) and value.target is ASSERT:
        condition = call.inputs[0] if call.inputs else None
        proven = condition is not None and condition.facts is True and not call.readers
        # What a trace took for granted is known from the example inputs alone, and has to stay.
        proven = proven and not str(call.arguments[-1]).startswith(HELD)
        return Replace({call: Apply(Constant(None), ())}) if proven else None
    return None
