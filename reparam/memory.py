"""Which results may lie in one memory: what a rewrite returns is as much its own as it was."""

from reparam.graph import INPUT, OUTPUT, Apply, Call, Expression
from reparam.operators import AvgPool, Cat, ConvTranspose, Norm, Pad
from reparam.storage import makes_memory
from reparam.values import IDENTITY, BatchNorm, Constant, Conv, Layout, Opaque, Sum, Value

FRESH = (Conv, BatchNorm, Norm, AvgPool, ConvTranspose, Cat, Pad, Sum)


def fresh(value: Value) -> bool:
    """Whether a result is known to be a tensor that was not there before."""
    if isinstance(value, Opaque):
        return not value.pinned and makes_memory(value.target)
    return isinstance(value, FRESH) and value is not IDENTITY


def written_later(call: Call) -> bool:
    """Whether a layer's result may be written to by what reads it."""
    readers = (reader.value for reader in call.readers)
    pinned = any(isinstance(value, Opaque) and value.pinned for value in readers)
    return pinned and isinstance(call.value, Conv | BatchNorm)


def ends_in_layer(expression: Expression) -> bool:
    """Whether an expression ends in a layer, whose result may be written to."""
    return isinstance(expression, Apply) and isinstance(expression.value, Conv | BatchNorm)


def shared_result(root: Call, expression: Expression) -> bool:
    """Whether a result of the model that may be a tensor of its own would no longer be one.

    It would lie in the memory of an input, of a constant, or of another result.

    Args:
        root: a call that is to be replaced.
        expression: by what.
    """
    viewed: object = expression
    while isinstance(viewed, Apply) and not fresh(viewed.value) and viewed.inputs:
        viewed = viewed.inputs[0]
    if not isinstance(viewed, Call) or _view(root.value) or not _returned(root, root):
        return False
    holders = _holders(viewed)
    given = any(holder.value is INPUT or isinstance(holder.value, Constant) for holder in holders)
    return given or any(_returned(holder, root) for holder in holders)


def _view(value: Value) -> bool:
    """Whether a result is known to lie in the memory of the input. Of a reshape, who knows."""
    return value is IDENTITY or (isinstance(value, Layout) and value.kind == "permute")


def _holders(call: Call) -> set[Call]:
    """The calls in whose memory the result of one may lie, its own included."""
    found: set[Call] = set()
    pending = [call]
    while pending:
        holder = pending.pop()
        if holder not in found:
            found.add(holder)
            pending.extend(() if fresh(holder.value) else holder.inputs)
    return found


def _returned(call: Call, replaced: Call) -> bool:
    """Whether a result, or a view of it that does not lead through a call, leaves the model."""
    pending, seen = [call], {replaced}
    while pending:
        for reader in pending.pop().readers:
            if reader.value is OUTPUT:
                return True
            if reader not in seen and not fresh(reader.value):
                seen.add(reader)
                pending.append(reader)
    return False
