"""Fold a batch norm or scale through reshapes into the linear layer behind them.

Before:
    q, k, v = linear(transpose(flatten(BN(x))))

After:
    q, k, v = linear'(transpose(flatten(x)))

Algebra:
    W(s·x + t) + b = (W·s) x + (W t + b): s scales input channels. A rearrangement commutes with
    what treats each channel by itself.

Legal when:
    The linear layer reads just the channels, all of them and in order.

Profitable when:
    Nothing else reads the tensors in between.
"""

from reparam import Call, Replace, require, rewrite
from reparam.algebra import affine, batch_norm_affine, exact
from reparam.composition import compose
from reparam.graph import Expression
from reparam.layout import Track
from reparam.region import diagonal
from reparam.sizes import ONE, Size
from reparam.values import BatchNorm, Conv, Layout


@rewrite
def fold_before_layout(call: Call) -> Replace | None:
    """Fold what scales channels before a chain of layouts into the linear layer after it."""
    value = call.value
    if not (isinstance(value, Conv) and value.n == 0 and not value.affine):
        return None
    chain: list[Call] = []
    source = call.inputs[0]
    while isinstance(source.value, Layout):
        chain.append(source)
        source = source.inputs[0]
    if not chain or not diagonal(source):
        return None
    scale = source.value
    inner = batch_norm_affine(scale) if isinstance(scale, BatchNorm) else scale
    assert isinstance(inner, Conv)
    for link in (source, *chain):
        require(len(link.readers) == 1, "something else reads a tensor in between", link.name)
    shape = source.shape
    require(shape is not None, "the shape of its input is not known", source.name)
    assert shape is not None
    require(
        shape.dtype is not None and call.shape is not None and shape.dtype == call.shape.dtype,
        "the dtypes differ",
    )
    track = Track.start(shape, inner.n)
    for link in reversed(chain):
        track = track.through(link)
    last = [factor for factor in track.axes[-1] if factor.size != ONE]
    whole = len(last) == 1 and last[0].stride == 1 and last[0].size == Size(value.in_channels)
    require(
        whole and track.first == 0, "its channels are not the channels of the scale", source.name
    )
    x: Expression = source.inputs[0]
    for link in reversed(chain):
        x = link.on(x)
    flat = affine(exact(inner).weight.flatten(), exact(inner).bias, 0)
    return Replace(compose(exact(value), flat), x)
