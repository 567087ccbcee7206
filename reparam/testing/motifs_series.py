"""Motifs over images in which one layer follows another."""

from reparam.testing.draft import Draft, Drawn
from reparam.testing.drawn_layers import (
    any_conv,
    average,
    batch_norm,
    diagonal,
    linear,
    multiple,
    padded,
    same_conv,
    scaled,
    transposed,
)


def conv_norm(d: Draft, x: Drawn) -> Drawn:
    """A convolution and a batch norm."""
    return batch_norm(d, same_conv(d, x) if d.rarely(3) else any_conv(d, x))


def conv_scale(d: Draft, x: Drawn) -> Drawn:
    """A convolution and what scales it, perhaps with a dropout in between."""
    y = any_conv(d, x)
    y = d.call("drop", "nn.Dropout(0.1)", y) if d.rarely(3) else y
    y = d.choose(scaled, multiple)(d, y)
    return multiple(d, y) if d.rarely(4) else y


def norm_conv(d: Draft, x: Drawn) -> Drawn:
    """A batch norm or scale before a convolution, where its shift may meet the padding."""
    return any_conv(d, diagonal(d, x), padded=d.choose(False, True, None))


def two_convs(d: Draft, x: Drawn) -> Drawn:
    """A convolution after another one; wide in between, where one of them would cost less."""
    between = d.choose(x.channels, 2 * x.channels, 24)
    kind = d.choose("first", "second", "any")
    first = same_conv(d, x, between, 1) if kind == "first" else any_conv(d, x, between)
    first = batch_norm(d, first) if d.rarely(3) else first
    first = d.call("act", "nn.LeakyReLU(1.0)", first) if d.rarely(5) else first
    outer = d.choose(4, 2)
    if kind == "second":
        return same_conv(d, first, outer, 1)
    return any_conv(d, first, outer, padded=d.choose(False, None))


def pad_conv(d: Draft, x: Drawn) -> Drawn:
    """A padding written apart from the convolution, perhaps behind a pointwise one."""
    x = same_conv(d, x, x.channels, 1) if d.rarely(3) else x
    return any_conv(d, padded(d, x), padded=d.choose(False, False, None))


def conv_pad(d: Draft, x: Drawn) -> Drawn:
    """A padding by a constant behind a convolution, and no kernel behind it that takes it in."""
    y = padded(d, any_conv(d, x), constant=True)
    return d.step(d.choose("F.relu({0})", "F.gelu({0})"), y) if d.flip() else y


def average_conv(d: Draft, x: Drawn) -> Drawn:
    """An average pooling before a convolution."""
    y = average(d, x)
    if min(y.sizes) > 2 and d.flip():
        return any_conv(d, y, padded=d.choose(False, None))
    return same_conv(d, y, d.choose(4, 2), stride=d.choose(1, 2))


def conv_average(d: Draft, x: Drawn) -> Drawn:
    """An average pooling after a convolution, then perhaps a batch norm."""
    y = same_conv(d, x, d.choose(4, 8), 1) if d.flip() else any_conv(d, x)
    y = average(d, y)
    return batch_norm(d, y) if d.flip() else y


def rows_conv(d: Draft, x: Drawn) -> Drawn:
    """Some rows before a convolution, or after it: a crop, or every second one."""
    y = x if d.flip() else any_conv(d, x)
    if min(y.sizes) < 3:
        return any_conv(d, y)
    part = d.choose("::2", "1:", "1:-1", "1::2", ":-1")
    y = d.step(f"{{0}}[:, :, {', '.join([part] * y.n)}]", y)
    return same_conv(d, y, d.choose(4, 2), d.choose(1, 3))


def up_norm(d: Draft, x: Drawn) -> Drawn:
    """A transposed convolution and what scales it."""
    y = transposed(d, x)
    return d.choose(batch_norm, scaled, multiple)(d, y)


def norm_up(d: Draft, x: Drawn) -> Drawn:
    """What scales the input of a transposed convolution."""
    y = diagonal(d, x)
    y = d.step("F.relu({0})", y) if d.rarely(4) else y
    return transposed(d, y)


def up_conv(d: Draft, x: Drawn) -> Drawn:
    """A transposed convolution of stride 1 between others."""
    y = transposed(d, x, stride=1)
    return same_conv(d, y, 4, 1) if d.flip() else any_conv(d, y)


def norm_through(d: Draft, x: Drawn) -> Drawn:
    """A scale, then what each channel passes by itself, then a layer."""
    y = scaled(d, x) if d.flip() else batch_norm(d, x)
    size = min(y.sizes)
    kinds = ["relu", "up"] + (["max", "average", "rows"] if size > 2 else [])
    match d.choose(*kinds):
        case "max":
            y = d.call("pool", f"nn.MaxPool{y.n}d(2)", y)
        case "average":
            y = average(d, y, plain=True)
        case "rows":
            y = d.step(f"{{0}}[:, :, {', '.join(['::2'] * y.n)}]", y)
        case "up":
            y = d.step("F.interpolate({0}, scale_factor=2)", y)
        case _:
            y = d.step(d.choose("F.relu({0})", "F.leaky_relu({0}, 0.1)"), y)
    return same_conv(d, y, d.choose(4, 2), d.choose(1, 3), mode="zeros")


def pooled_linear(d: Draft, x: Drawn) -> Drawn:
    """A head: the average over space, a batch norm, one linear layer or the mean of two."""
    y = batch_norm(d, x) if d.flip() else x
    axes = ", ".join(str(axis) for axis in range(2, len(y.shape)))
    pooled = f"F.adaptive_avg_pool{y.n}d({{0}}, 1).flatten(1)"
    y = d.step(d.choose(f"{{0}}.mean(({axes},))", pooled), y, n=0)
    y = batch_norm(d, y) if d.flip() else y
    first = linear(d, y, 6)
    if d.rarely(3):
        second = linear(d, batch_norm(d, y) if d.flip() else y, 6)
        return d.step("({0} + {1}) / 2", first, second)
    return first


def conv_flatten(d: Draft, x: Drawn) -> Drawn:
    """A convolution over a few pixels, flattened before a linear layer."""
    size = d.choose(2, 3)
    y = d.call("pool", f"nn.AdaptiveAvgPool{x.n}d({size})", x)
    y = any_conv(d, y, d.choose(4, 8)) if d.flip() else same_conv(d, y, d.choose(4, 8), 1)
    y = d.step(d.choose("{0}.flatten(1)", "torch.flatten({0}, 1)"), y, n=0)
    return linear(d, y, d.choose(3, 2))


SERIES_MOTIFS = (
    conv_norm,
    conv_scale,
    norm_conv,
    two_convs,
    pad_conv,
    conv_pad,
    average_conv,
    conv_average,
    rows_conv,
    up_norm,
    norm_up,
    up_conv,
    norm_through,
    pooled_linear,
    conv_flatten,
)
