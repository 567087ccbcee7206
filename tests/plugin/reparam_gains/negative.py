"""Passes that are wrong, each in one way that people get wrong, and one that does nothing.

`reparam check-pass reparam_gains.negative:drop_epsilon` shows what is wrong with the first.
"""

from dataclasses import replace

import torch

from reparam import Apply, Call, Replace, require, rewrite
from reparam.algebra import batch_norm_affine, exact
from reparam.composition import compose
from reparam.values import BatchNorm, Conv


def norm_behind_conv(call: Call) -> tuple[BatchNorm, Call, Conv] | None:
    """A batch norm, and the convolution that it reads."""
    if not isinstance(call.value, BatchNorm):
        return None
    (source,) = call.inputs
    return (call.value, source, source.value) if isinstance(source.value, Conv) else None


@rewrite
def drop_epsilon(call: Call) -> Replace | None:
    """Fold a batch norm as if its ε were 0."""
    if (match := norm_behind_conv(call)) is None:
        return None
    norm, source, conv = match
    require(len(source.readers) == 1, "something else reads the convolution", source.name)
    scale = batch_norm_affine(replace(norm, eps=0.0))
    return Replace(compose(scale, exact(conv)), *source.inputs)


@rewrite
def scale_wrong_axis(call: Call) -> Replace | None:
    """Fold a batch norm into the input channels of the weight, where there are as many."""
    if (match := norm_behind_conv(call)) is None:
        return None
    norm, source, conv = match
    if conv.weight.shape[0] != conv.weight.shape[1]:
        return None
    require(len(source.readers) == 1, "something else reads the convolution", source.name)
    shift = 0 if conv.bias is None else norm.exact_scale * conv.bias.double()
    weight = conv.weight.double() * norm.exact_scale.reshape(1, -1, *(1,) * conv.n)
    return Replace(replace(conv, weight=weight, bias=norm.exact_shift + shift), *source.inputs)


@rewrite
def ignore_border(call: Call) -> Replace | None:
    """Fold a batch norm forwards, though its shift meets the padding."""
    conv = call.value
    if not isinstance(conv, Conv) or not conv.n or conv.affine:
        return None
    (source,) = call.inputs
    norm = source.value
    if not isinstance(norm, BatchNorm) or norm.n != conv.n:
        return None
    require(len(source.readers) == 1, "something else reads the batch norm", source.name)
    inside = replace(exact(conv), padding=((0, 0),) * conv.n, padding_mode="zeros")
    merged = compose(inside, batch_norm_affine(norm))
    return Replace(
        replace(merged, padding=conv.padding, padding_mode=conv.padding_mode), *source.inputs
    )


@rewrite
def forget_readers(call: Call) -> Replace | None:
    """Fold a batch norm, and give the result to all who read the convolution."""
    if (match := norm_behind_conv(call)) is None:
        return None
    norm, source, conv = match
    merged = Apply(compose(batch_norm_affine(norm), exact(conv)), source.inputs)
    return Replace({source: merged, call: merged})


@rewrite
def leave_bias(call: Call) -> Replace | None:
    """Fold a batch norm, but not over the bias: right wherever there is none."""
    if (match := norm_behind_conv(call)) is None:
        return None
    norm, source, conv = match
    require(len(source.readers) == 1, "something else reads the convolution", source.name)
    merged = compose(batch_norm_affine(norm), replace(exact(conv), bias=None))
    bias = torch.zeros_like(norm.exact_shift) if conv.bias is None else conv.bias.double()
    assert merged.bias is not None, "a batch norm shifts"
    return Replace(replace(merged, bias=merged.bias + bias), *source.inputs)


@rewrite
def look_for_nothing(call: Call) -> Replace | None:
    """Match nothing at all."""
    return None
