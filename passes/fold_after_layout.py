"""Fold a scale behind reshapes into the rows of the linear layer before them.

Before:
    q = scale · heads(linear(x)[:C]);   a = scale · (q @ k);   y = γ · reshape(transpose(linear(x)))

After:
    q = heads(linear'(x)[:C]);   y = reshape(transpose(linear'(x)))

Algebra:
    s·(Wx + b) + t = (sW) x + (sb + t), on the rows that the scaled tensor holds; the other rows
    keep s = 1 and t = 0. A number passes a product of matrices: c·(q @ k) = (c·q) @ k.

Legal when:
    Each element of the scaled tensor holds one known row, and whatever else reads the linear
    layer holds other rows.

Profitable when:
    Always: the scale is gone.
"""

import torch

from reparam import Call, Replace, require, rewrite
from reparam.algebra import affine, exact
from reparam.composition import compose
from reparam.expansion import diagonal, multiple
from reparam.graph import Apply, Expression, same_dtype
from reparam.known import kind
from reparam.layout import Track, rearrangements
from reparam.operator_laws import as_convolution
from reparam.values import BatchNorm, Conv, Layout, Opaque, Sum


@rewrite(on=BatchNorm | Conv | Sum)
def fold_after_layout(call: Call) -> Replace | None:
    """Fold what scales a rearranged tensor into the layer that it was rearranged from."""
    if not (multiple(call) or diagonal(call)):
        return None
    product = call.inputs[0] if multiple(call) and _is_product(call.inputs[0]) else None
    chain, source = rearrangements((product or call).inputs[0])
    linear = source.value
    if not chain or not isinstance(linear, Conv) or diagonal(source):
        return None
    shape = source.shape
    known = shape is not None and call.shape is not None
    require(known, "the shape of the layer's output is not known", source.name)
    assert shape is not None
    assert call.shape is not None
    require(same_dtype(source, call), "the dtypes differ")
    start = track = Track.start(shape, linear.n)
    rebuilt: dict[Call, Track] = {source: start}
    for link in chain:
        track = rebuilt[link] = track.through(link)
    rows = track.channels()
    scale, shift = _rows(call, linear, rows)
    merged: Expression = Apply(
        compose(affine(scale, shift, linear.n), exact(linear)), source.inputs
    )
    roots: dict[Call, Expression] = {}
    built: dict[Call, Expression] = {source: merged}
    for link in chain:
        built[link] = link.on(built[link.inputs[0]])
    roots[call] = built[chain[-1]] if product is None else product.on(built[chain[-1]])
    for link in (source, *chain):
        for reader in link.readers:
            if reader in (call, product) or reader in chain:
                continue
            require(isinstance(reader.value, Layout), "something else reads the layer", reader.name)
            others = rebuilt[link].through(reader).channels()
            apart = not torch.isin(others, rows).any()
            require(bool(apart), "something else reads the same rows", reader.name)
            roots[reader] = reader.on(built[link])
    return Replace(roots)


def _is_product(call: Call) -> bool:
    """Whether a call is a product of two matrices that nothing else reads."""
    value = call.value
    named = isinstance(value, Opaque) and value.pure and kind(value.target) == "matmul"
    return named and len(call.readers) == 1 and len(set(call.inputs)) == 2


def _rows(call: Call, linear: Conv, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of each row of the layer: (out,) both."""
    scale = linear.weight.new_ones(linear.out_channels, dtype=torch.float64)
    shift = torch.zeros_like(scale)
    value = call.value
    if isinstance(value, Sum):
        scale[rows.flatten()] = value.coefficients[0]
        return scale, shift
    outer = as_convolution(value, None)
    spread = (-1, *(1,) * outer.n)
    known = rows.shape[-outer.n - 1] == outer.out_channels if rows.ndim > outer.n else False
    require(known, "its channels are not the rows of the layer")
    scale[rows] = outer.weight.reshape(spread).expand(rows.shape)
    if outer.bias is not None:
        shift[rows] = outer.bias.reshape(spread).expand(rows.shape)
    return scale, shift
