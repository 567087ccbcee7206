"""Layers with drawn hyper-parameters that fit what they read: each adds one step to a draft."""

from collections.abc import Sequence

from reparam.testing.draft import Draft, Drawn

MODES = ("reflect", "replicate", "circular")
OUTPUTS = (4, 2, 6, 8, 12)
"""How many channels a layer may make."""


def number(values: Sequence[int]) -> str:
    """One number where all are alike, as people write it; else a tuple."""
    return str(values[0]) if len(set(values)) == 1 else repr(tuple(values))


def options(**given: str | None) -> str:
    """Keyword arguments, without those that are None."""
    return "".join(f", {name}={text}" for name, text in given.items() if text is not None)


def drawn_groups(d: Draft, inner: int, outer: int) -> int:
    """A number of groups that divides both."""
    shared = [g for g in range(1, inner + 1) if inner % g == 0 == outer % g]
    return 1 if not d.rarely(3) else d.choose(*shared)


def same_conv(
    d: Draft,
    x: Drawn,
    outer: int | None = None,
    kernel: int | None = None,
    *,
    groups: int | None = None,
    stride: int = 1,
    mode: str | None = None,
) -> Drawn:
    """A convolution that keeps the size, or divides it by the stride and rounds up.

    Args:
        d: the draft.
        x: images.
        outer: output channels, those of x if None.
        kernel: extent on every axis, drawn if None.
        groups: drawn if None.
        stride: on every axis.
        mode: padding mode, drawn if None.
    """
    inner, outer = x.channels, x.channels if outer is None else outer
    kernels = [kernel or d.choose(3, 1, 5)] * x.n
    if kernel is None and x.n > 1 and d.rarely():
        kernels[0] = 1  # asymmetric, as ACNet has them
    dilation = 2 if kernel != 1 and d.rarely() else 1
    groups = drawn_groups(d, inner, outer) if groups is None else groups
    sides = [dilation * (k // 2) for k in kernels]
    padding: str | None = number(sides) if any(sides) else None
    if stride == 1 and kernel is None and d.rarely(8):
        padding = '"same"'
        kernels = [d.choose(k, k + 1) for k in kernels]
        sides = [-(dilation * (k - 1) // -2) for k in kernels]  # the wider one of each axis
    narrow = any(s >= size for s, size in zip(sides, x.sizes, strict=True))
    mode = mode or ("zeros" if narrow or not d.rarely(8) else d.choose(*MODES))
    source = f"nn.Conv{x.n}d({inner}, {outer}, {number(kernels)}" + options(
        stride=str(stride) if stride > 1 else None,
        padding=padding,
        dilation=str(dilation) if dilation > 1 else None,
        groups=str(groups) if groups > 1 else None,
        bias="False" if d.flip() else None,
        padding_mode=f'"{mode}"' if mode != "zeros" and padding is not None else None,
    )
    return d.call("conv", source + ")", x)


def any_conv(d: Draft, x: Drawn, outer: int | None = None, *, padded: bool | None = None) -> Drawn:
    """A convolution of any kernel, stride, padding and dilation that fits its input."""
    inner, outer = x.channels, outer or d.choose(*OUTPUTS)
    groups = drawn_groups(d, inner, outer)
    uniform = not d.rarely(4)
    axes: list[tuple[int, int, int, int]] = []
    for size in x.sizes:
        if axes and uniform and axes[0][0] <= size:
            axes.append(axes[0])
            continue
        kernel = d.choose(*[k for k in (3, 1, 2, 4, 5) if k <= size])
        dilation = 2 if 2 * (kernel - 1) < size and d.rarely() else 1
        if padded is False:
            side = 0
        else:
            side = d.choose(*range(min(3, size))) if padded is None else min(1, size - 1)
        axes.append((kernel, d.choose(1, 1, 2), side, dilation))
    if any(dl * (k - 1) >= s + 2 * p for (k, _, p, dl), s in zip(axes, x.sizes, strict=True)):
        axes = [(1, stride, side, 1) for _, stride, side, _ in axes]
    kernels, strides, sides, dilations = zip(*axes, strict=True)
    fits = all(side < size for side, size in zip(sides, x.sizes, strict=True))
    mode = d.choose(*MODES) if fits and any(sides) and d.rarely(3) else "zeros"
    source = f"nn.Conv{x.n}d({inner}, {outer}, {number(kernels)}" + options(
        stride=number(strides) if max(strides) > 1 else None,
        padding=number(sides) if any(sides) else None,
        dilation=number(dilations) if max(dilations) > 1 else None,
        groups=str(groups) if groups > 1 else None,
        bias="False" if d.flip() else None,
        padding_mode=f'"{mode}"' if mode != "zeros" else None,
    )
    return d.call("conv", source + ")", x)


def batch_norm(d: Draft, x: Drawn) -> Drawn:
    """A batch norm, rarely without γ and β."""
    affine = options(affine="False" if d.rarely() else None)
    return d.call("bn", f"nn.BatchNorm{max(x.n, 1)}d({x.channels}{affine})", x)


def linear(d: Draft, x: Drawn, outer: int | None = None, *, bias: bool | None = None) -> Drawn:
    """A linear layer over the last axis."""
    outer = outer or d.choose(*OUTPUTS)
    flag = d.flip() if bias is None else not bias
    last = x.shape[-1]
    return d.call("linear", f"nn.Linear({last}, {outer}{', bias=False' if flag else ''})", x)


def scaled(d: Draft, x: Drawn) -> Drawn:
    """A factor per channel, in one of the forms in which people write it."""
    ones = (1,) * x.n
    match d.choose("parameter", "layer", "batched", "affine", "one", "shift"):
        case "parameter":
            return d.step("{0} * {p}", x, owned=(d.parameter(x.channels, *ones),))
        case "layer":
            return d.call("scale", f"layers.Scale({x.channels}, {x.n})", x)
        case "batched":
            lead = (1,) * (len(x.shape) - x.n - 1)
            return d.step("{p} * {0}", x, owned=(d.parameter(*lead, x.channels, *ones),))
        case "affine":
            return d.call("affine", f"layers.Affine({x.channels}, {x.n})", x)
        case "one":
            return d.step("{0} * {p}", x, owned=(d.parameter(1),))
        case _:
            return d.step("{0} + {p}", x, owned=(d.parameter(x.channels, *ones),))


def multiple(d: Draft, x: Drawn) -> Drawn:
    """A multiple of a tensor by a number."""
    return d.step(d.choose("{0} * 0.5", "-{0}", "{0} / 4", "1.5 * {0}"), x)


def diagonal(d: Draft, x: Drawn) -> Drawn:
    """What scales, and perhaps shifts, each channel."""
    if x.form == "tokens":
        return scaled(d, x)
    return d.choose(batch_norm, scaled)(d, x)


def average(d: Draft, x: Drawn, *, plain: bool = False) -> Drawn:
    """An average pooling, with torch's options for it unless it is to be a plain one."""
    kernel = d.choose(*[k for k in (2, 3, 1) if k <= min(x.sizes)])
    stride = d.choose(1, 2, kernel)
    padding = 0 if plain else d.choose(*range(kernel // 2 + 1))
    partial = not plain and d.rarely(5)
    given = options(
        padding=str(padding) if padding else None,
        ceil_mode="True" if partial else None,
        count_include_pad="False" if padding and d.rarely(3) else None,
        divisor_override=str(d.choose(3, 2)) if x.n > 1 and not plain and d.rarely() else None,
    )
    return d.call("pool", f"nn.AvgPool{x.n}d({kernel}, {stride}{given})", x)


def same_average(d: Draft, x: Drawn) -> Drawn:
    """An average over three pixels that keeps the size."""
    counted = options(count_include_pad="False" if d.rarely(4) else None)
    return d.call("pool", f"nn.AvgPool{x.n}d(3, 1, padding=1{counted})", x)


def padded(d: Draft, x: Drawn, *, constant: bool = False) -> Drawn:
    """A tensor continued beyond its border: by a function, a layer, or an assignment.

    With `constant`, by one that is not zero.
    """
    sides = [d.choose(1, 0, 2) for _ in range(2 * x.n)]
    narrow = max(sides) >= min(x.sizes)
    forms = ("zeros", "constant", "layer", "border", "reflect", "circular")
    form = d.choose(*(("border", "border", "constant") if constant else forms))
    if form == "border" and x.n == 2:
        parameter = d.parameter(x.channels)
        rows = (":, :, 0:1, :", ":, :, -1:, :", ":, :, :, 0:1", ":, :, :, -1:")
        code = "{out} = F.pad({0}, (1, 1, 1, 1))\nborder = {p}.view(1, -1, 1, 1)\n"
        code += "\n".join(f"{{out}}[{index}] = border" for index in rows)
        return d.step(code, x, owned=(parameter,))
    if form == "constant" or constant:
        return d.step(f"F.pad({{0}}, {tuple(sides)}, value=0.5)", x)
    if form == "layer" and x.n == 2:
        name = d.choose("Zero", "Replication", "Reflection") if not narrow else "Zero"
        return d.call("pad", f"nn.{name}Pad2d({tuple(sides)})", x)
    if form in ("reflect", "circular") and not narrow:
        return d.step(f'F.pad({{0}}, {tuple(sides)}, mode="{form}")', x)
    return d.step(f"F.pad({{0}}, {tuple(sides)})", x)


def transposed(d: Draft, x: Drawn, *, stride: int | None = None) -> Drawn:
    """A transposed convolution; its kernel is no shorter than its stride."""
    outer = d.choose(*OUTPUTS)
    groups = drawn_groups(d, x.channels, outer)
    stride = d.choose(2, 1, 3) if stride is None else stride
    kernel = stride + d.choose(0, 1, 2)
    source = f"nn.ConvTranspose{x.n}d({x.channels}, {outer}, {kernel}" + options(
        stride=str(stride) if stride > 1 else None,
        padding=str(1) if kernel > 2 and d.flip() else None,
        output_padding=str(1) if stride > 1 and d.rarely(3) else None,
        groups=str(groups) if groups > 1 else None,
        dilation=str(2) if d.rarely() else None,
        bias="False" if d.flip() else None,
    )
    return d.call("up", source + ")", x)
