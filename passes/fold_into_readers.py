"""Fold a batch norm, a scale, or the affine part of a norm into all the layers that read it.

Before:
    q, k, v = linear(transpose(flatten(BN(x))));   y = linear(LN(x; γ, β))

After:
    q, k, v = linear'(transpose(flatten(x)));   y = linear'(LN(x))

Algebra:
    W(s·x + t) + b = (W·s) x + (W t + b): s scales input channels. A norm is one without γ and β,
    followed by a scale of γ and a shift of β. Rearrangements commute with what treats each channel
    by itself, and so do averages whose weights sum to one: means, pools, resizing. What is scaled
    by positive numbers alone passes a ReLU, and a maximum passes shifts as well.

Legal when:
    Whatever reads the tensor, by way of these, is linear in just the channels, and no padding that
    it adds would show the shift.

Profitable when:
    All readers take it in, so that it is gone.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from reparam import Call, Replace, require, rewrite
from reparam.algebra import affine
from reparam.composition import compose
from reparam.facts import TensorFacts
from reparam.graph import Apply, Expression, same_dtype
from reparam.layout import Track, carries
from reparam.operator_laws import as_convolution, scale_transposed_input
from reparam.operators import ConvTranspose, Norm
from reparam.region import affine_call, diagonal
from reparam.values import BatchNorm, Conv


@rewrite(on=BatchNorm | Conv | Norm)
def fold_into_readers(call: Call) -> Replace | None:
    """Fold what scales channels forwards, through rearrangements, into every reader."""
    value = call.value
    plain = not isinstance(value, Norm)
    if (plain and not diagonal(call)) or (not plain and value.weight is None is value.bias):
        return None
    readers = call.readers
    scale = _scale(call)
    if plain and len(readers) == 1 and affine_call(readers[0]) and not carries(readers[0], scale):
        return None  # a region of two calls
    if plain and not any(carries(reader, scale) or _layer(reader) for reader in readers):
        return None
    shape = call.shape
    require(shape is not None, "the shape of its input is not known", call.inputs[0].name)
    assert shape is not None
    x: Expression = call.inputs[0]
    if isinstance(value, Norm):
        x = Apply(replace(value, weight=None, bias=None), call.inputs)
    roots: dict[Call, Expression] = {}
    for reader, track, read in _absorbers(call, scale, shape, None, x):
        require(same_dtype(call, reader), "the dtypes differ", reader.name)
        absorbed = _absorbed(reader, scale, track)
        shown = isinstance(absorbed, Conv) and absorbed.border is not None
        require(not shown, "its shift meets zero padding", reader.name)
        roots[reader] = Apply(absorbed, (read,))
    require(bool(roots), "nothing reads it")
    return Replace(roots)


def _scale(call: Call) -> Conv:
    """What the call does to each channel, in float64."""
    value = call.value
    if not isinstance(value, Norm):
        return as_convolution(value, None)
    n = 0
    if value.kind == "group":
        require(call.shape is not None and call.shape.exact, "its number of axes is not known")
        n = len(call.shape.axes) - 2 if call.shape is not None else 0
    parameter = value.bias if value.weight is None else value.weight
    assert parameter is not None
    ones = torch.ones_like(parameter, dtype=torch.float64)
    weight = ones if value.weight is None else value.weight.double()
    return affine(weight, None if value.bias is None else value.bias.double(), n)


def _absorbers(
    call: Call, scale: Conv, shape: TensorFacts, track: Track | None, x: Expression
) -> Iterator[tuple[Call, Track | None, Expression]]:
    """Each layer that reads a tensor in the end, where the channels are there, and what it reads.

    There is no track as long as nothing was rearranged.

    Raises:
        Declined: at the first reader that is neither a layer nor a rearrangement.
    """
    for reader in dict.fromkeys(call.readers):
        if carries(reader, scale):
            begun = Track.start(shape, scale.n) if track is None else track
            yield from _absorbers(reader, scale, shape, begun.through(reader), reader.on(x))
            continue
        reason = f"{reader.value.__name__} reads it, which a scale and shift can't pass"
        # A norm does its own scaling in passing: it is no gain to put that into another scale.
        gained = _layer(reader) and not (isinstance(call.value, Norm) and diagonal(reader))
        require(gained, reason, reader.name)
        yield reader, track, x


def _layer(reader: Call) -> bool:
    """Whether a call could take in what scales its input."""
    return isinstance(reader.value, Conv | BatchNorm | ConvTranspose)


def _absorbed(reader: Call, scale: Conv, track: Track | None) -> Conv | ConvTranspose:
    """The layer that does what the scale and the reader did."""
    value = reader.value
    strided = not affine_call(reader)  # of what can take it in, just a transposed convolution
    outer = value if strided and isinstance(value, ConvTranspose) else as_convolution(value, None)
    if track is not None:
        channels = track.channels(spread=True)
        axis = channels.ndim - outer.n - 1
        alone = axis >= 0 and channels.numel() == channels.shape[axis] == outer.in_channels
        require(alone, "its channels are not the channels of what reads it", reader.name)
        rows = channels.flatten()
        shift = None if scale.bias is None else scale.bias[rows]
        scale = affine(scale.weight.flatten()[rows], shift, outer.n)
    if isinstance(outer, ConvTranspose):
        return scale_transposed_input(outer, scale)
    return compose(outer, scale)
