"""Fold a convolution over images of a fixed size into the linear layer that reads all of it.

Before:
    y = linear(flatten(conv(pool(x))))

After:
    y = linear'(flatten(pool(x)))

Algebra:
    Over a fixed size a convolution is a matrix A with a shift, and W (A x + a) + b = (W A) x +
    (W a + b); the rows of W A are what the transposed convolution makes of the rows of W.

Legal when:
    The size of the image is known, padding included.

Profitable when:
    The linear layer does not grow more than the convolution costs.
"""

from math import prod

import torch

from reparam import Call, Replace, require, rewrite
from reparam.algebra import exact
from reparam.cost import conv_madds
from reparam.expansion import dearer
from reparam.flattened import compose_flattened
from reparam.graph import Apply, same_dtype
from reparam.region import diagonal
from reparam.values import Conv, Layout


@rewrite(on=Conv)
def fold_into_linear(call: Call) -> Replace | None:
    """Merge a linear layer with the convolution whose flattened result it reads."""
    linear = call.value
    if not isinstance(linear, Conv) or linear.n != 0 or diagonal(call):
        return None
    (flat,) = call.inputs
    if not isinstance(flat.value, Layout) or flat.value.kind != "reshape":
        return None
    source = flat.inputs[0]
    conv = source.value
    if not isinstance(conv, Conv) or conv.n == 0 or diagonal(source):
        return None
    image, made = source.inputs[0].shape, source.shape
    known = image is not None and made is not None and image.exact and made.exact
    require(known, "the number of axes of its input is not known", source.name)
    assert image is not None
    assert made is not None
    batch = image.axes[: -conv.n - 1]
    whole = flat.shape is not None and flat.shape.exact and flat.shape.axes[:-1] == batch
    require(whole and len(batch) == 1, "it is not flattened whole", flat.name)
    sizes = [size.factor for size in image.axes[2:] if size.known]
    require(len(sizes) == conv.n, "the size of the image is not known", source.name)
    require(all(len(c.readers) == 1 for c in (source, flat)), "something else reads it", flat.name)
    require(same_dtype(source, call), "the dtypes differ", source.name)
    pixels = prod(size.factor for size in made.axes[2:])
    before = conv_madds(linear) + conv_madds(conv) * pixels
    after = linear.out_channels * conv.in_channels * prod(sizes)
    require(after <= before, dearer(before, after, "image"), source.name)
    merged = compose_flattened(exact(linear), exact(conv), tuple(sizes))
    whole = Layout(torch.flatten, pure=True, kind="reshape")
    return Replace(merged, Apply(whole, (source.inputs[0], 1)))
