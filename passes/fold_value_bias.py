"""Fold the bias of an attention's values into the projection behind it.

Before:
    y = linear(merge(softmax(a) @ split(linear(x; V, v)));  W, b)

After:
    y = linear(merge(softmax(a) @ split(linear(x; V)));  W, W v + b)

Algebra:
    The rows of softmax(a) sum to one, so that what is added to every value comes out as it is.

Legal when:
    Each row of the weights sums to one: a softmax over the last axis, without a mask in torch's own
    attention, which returns zeros where all is masked. There is a key for it to read: there are as
    many as queries, or a convolution or pooling made them, which fail where they make nothing.
    Nothing else reads what is in between.

Profitable when:
    The values have a layer of their own, and the projection has a bias anyway.
"""

from dataclasses import replace

import torch

from reparam import Call, Declined, Replace, require, rewrite
from reparam.algebra import affine, exact
from reparam.composition import compose
from reparam.graph import Apply, Expression
from reparam.known import kind, softmax_axis
from reparam.layout import Factor, Track, rearrangements
from reparam.operators import AvgPool, Norm
from reparam.region import diagonal
from reparam.values import BatchNorm, Conv, Layout, Opaque


@rewrite(on=Conv)
def fold_value_bias(call: Call) -> Replace | None:
    """Move a bias from the layer of the values to the projection."""
    projection = call.value
    if not isinstance(projection, Conv) or projection.n or projection.bias is None:
        return None
    behind, product = rearrangements(call.inputs[0])
    values = _values(product)
    if values is None or diagonal(call):
        return None
    before, source = rearrangements(values)
    layer = source.value
    if not isinstance(layer, Conv) or layer.n or layer.bias is None:
        return None
    between = (source, *before, *product.inputs, product, *behind)
    alone = all(len(link.readers) == 1 for link in between)
    require(alone, "something else reads the values or what becomes of them", source.name)
    made, read, mixed = (c.shape for c in (source, values, product))
    if made is None or read is None or mixed is None or len(mixed.axes) < 2:
        raise Declined("the shapes of the attention are not known", product.name)
    if not (read.exact and mixed.exact and len(read.axes) == len(mixed.axes)):
        raise Declined("the shapes of the attention are not known", product.name)
    keys = read.axes[-2]
    some = keys == mixed.axes[-2] or (keys.known and keys.factor > 0) or _never_empty(source)
    require(some, "there may be no keys, and a softmax over none does not sum to one", product.name)
    track = Track.start(made, 0)
    for link in before:
        track = track.through(link)
    apart = read.axes[:-2] == mixed.axes[:-2]
    still = apart and not any(factor.stride for factor in track.axes[-2])
    require(still, "the attention does not treat each feature by itself", product.name)
    track = replace(track, axes=(*track.axes[:-2], (Factor(mixed.axes[-2]),), track.axes[-1]))
    for link in behind:
        track = track.through(link)
    rows = track.channels()
    alike = rows.numel() == rows.shape[-1] == projection.in_channels
    require(alike, "its channels are not the features of the values", source.name)
    added = layer.bias.double()[rows.flatten()]
    shifted = affine(torch.ones_like(added), added, 0)
    x: Expression = Apply(replace(exact(layer), bias=None), source.inputs)
    for link in before:
        x = link.on(x)
    # The softmax is built anew, so that a check sees weights that sum to one.
    weights = product.arguments[:-1]
    if len(weights) == 1:
        weights = (weights[0].on(weights[0].inputs[0]),)
    x = Apply(product.value, (*weights, x), product.options)
    for link in behind:
        x = link.on(x)
    return Replace(compose(exact(projection), shifted), x)


def _never_empty(call: Call) -> bool:
    """Whether a convolution or a pooling, which fail where they make nothing, made so much."""
    while call.inputs:
        value = call.value
        if isinstance(value, AvgPool) or (isinstance(value, Conv) and value.n > 0):
            return isinstance(value, AvgPool) or call.traits.convolution
        rearranged = isinstance(value, Layout) and value.kind in ("reshape", "permute")
        if not (rearranged or isinstance(value, BatchNorm | Conv | Norm)):
            return False
        call = call.inputs[0]
    return False


def _values(product: Call) -> Call | None:
    """What a product weighs by rows that sum to one, as the last of its arguments."""
    value, given = product.value, product.arguments
    if not isinstance(value, Opaque) or not value.pure:
        return None
    if kind(value.target) == "attention":
        plain = {name for name, option in product.options.items() if option not in (None, 0)}
        return given[2] if len(given) == 3 and plain <= {"is_causal", "scale"} else None
    if kind(value.target) != "matmul" or len(given) != 2:
        return None
    weights, values = given
    if not isinstance(weights.value, Opaque):
        return None
    axis = softmax_axis(weights.value.target, weights.arguments, weights.options)
    return values if axis == -1 else None
