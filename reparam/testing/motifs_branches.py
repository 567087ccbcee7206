"""Motifs over images in which paths part and meet: branches, skips, joins, shared layers."""

from reparam.testing.draft import Draft, Drawn
from reparam.testing.drawn_layers import (
    any_conv,
    batch_norm,
    diagonal,
    multiple,
    number,
    options,
    same_average,
    same_conv,
    scaled,
)

SUMS = (
    "{0} + {1}",
    "{0} + {1}",
    "{0} - {1}",
    "torch.add({0}, {1}, alpha=0.5)",
    "{0} + 0.5 * {1}",
    "torch.sub({0}, {1}, alpha=2)",
)


def branch(d: Draft, x: Drawn, outer: int, stride: int) -> Drawn:
    """One branch from x to so many channels, at the size of x divided by the stride."""
    same = outer == x.channels and stride == 1
    kinds = ["conv", "conv norm", "pointwise", "pointwise norm", "series", "scaled", "average"]
    kinds += ["identity", "norm", "multiple", "depthwise"] if same else []
    mode = "zeros" if not d.rarely(8) else None
    match d.choose(*kinds):
        case "conv norm":
            return batch_norm(d, same_conv(d, x, outer, stride=stride, mode=mode))
        case "pointwise":
            return same_conv(d, x, outer, 1, stride=stride)
        case "pointwise norm":
            return batch_norm(d, same_conv(d, x, outer, 1, stride=stride))
        case "series":  # as diverse branch blocks and edge-oriented convolutions have them
            first = same_conv(d, x, d.choose(outer, 2 * outer), 1)
            first = batch_norm(d, first) if d.flip() else first
            return same_conv(d, first, outer, 3, stride=stride, mode="zeros")
        case "scaled":
            return scaled(d, same_conv(d, x, outer, stride=stride, mode=mode))
        case "average" if stride == 1 and min(x.sizes) > 2:
            return same_average(d, same_conv(d, x, outer, 1))
        case "identity":
            return x
        case "norm":
            return batch_norm(d, x)
        case "multiple":
            return multiple(d, x)
        case "depthwise":
            return same_conv(d, x, x.channels, groups=x.channels)
        case _:
            return same_conv(d, x, outer, stride=stride, mode=mode)


def summed(d: Draft, branches: list[Drawn]) -> Drawn:
    """The branches added up, in one of several ways."""
    if len(branches) > 2 and d.rarely(4):
        several = ", ".join(f"{{{index}}}" for index in range(len(branches)))
        return d.step(f"sum([{several}])", *branches)
    total = branches[0]
    for other in branches[1:]:
        total = d.step(d.choose(*SUMS), total, other)
    return total


def branches(d: Draft, x: Drawn) -> Drawn:
    """RepVGG, ACNet, diverse branch blocks: parallel branches of one input, then a batch norm."""
    outer = x.channels if d.flip() else d.choose(4, 2, 6)
    stride = 2 if d.rarely(4) else 1
    y = summed(d, [branch(d, x, outer, stride) for _ in range(d.choose(2, 3, 4))])
    return batch_norm(d, y) if d.rarely(3) else y


def skip(d: Draft, x: Drawn) -> Drawn:
    """A convolution and its input."""
    y = same_conv(d, x, x.channels, mode="zeros")
    y = diagonal(d, y) if d.rarely(3) else y
    return d.step(d.choose("{0} + {1}", "{1} + {0}", "{0} - {1}"), x, y)


def depthwise_skip(d: Draft, x: Drawn) -> Drawn:
    """A conditional position encoding: a depthwise convolution and its input."""
    y = same_conv(d, x, x.channels, d.choose(3, 1, 5), groups=x.channels, mode="zeros")
    return d.step("{0} + {1}", x, batch_norm(d, y) if d.rarely(3) else y)


def token_mixer(d: Draft, x: Drawn) -> Drawn:
    """FastViT's: x + γ(mixer(x) − norm(x)), the mixer one of depthwise branches."""
    mixed = same_conv(d, x, x.channels, 3, groups=x.channels, mode="zeros")
    mixed = batch_norm(d, mixed)
    if d.flip():
        other = same_conv(d, x, x.channels, 1, groups=x.channels)
        mixed = d.step("{0} + {1}", mixed, batch_norm(d, other))
    difference = d.step("{0} - {1}", mixed, batch_norm(d, x)) if not d.rarely(4) else mixed
    return d.step("{0} + {1}", x, scaled(d, difference))


def stacked(d: Draft, x: Drawn) -> Drawn:
    """Convolutions of one input, joined."""
    stride, kernel = (2 if d.rarely() else 1), d.choose(1, 3, None)
    outputs = [d.choose(4, 2, 3) for _ in range(d.choose(2, 3))]
    groups = 1 if not d.rarely(4) else None
    parts = [same_conv(d, x, o, kernel, stride=stride, groups=groups) for o in outputs]
    return joined(d, parts)


def joined(d: Draft, parts: list[Drawn]) -> Drawn:
    """Tensors side by side along their channels."""
    several = ", ".join(f"{{{index}}}" for index in range(len(parts)))
    axis = d.choose(len(parts[0].shape) - parts[0].n - 1, -parts[0].n - 1)
    return d.step(f"torch.cat([{several}], {axis})", *parts)


def joined_norm(d: Draft, x: Drawn) -> Drawn:
    """Convolutions of one tensor or two, joined, and what scales all of them."""
    other = d.step("F.relu({0})", x) if d.flip() else x
    parts = [same_conv(d, source, d.choose(4, 2), mode="zeros") for source in (x, other)]
    parts += [x] if d.rarely() else []
    return diagonal(d, joined(d, parts))


def conv_joined(d: Draft, x: Drawn) -> Drawn:
    """A convolution over tensors that are joined, raw and normalized."""
    parts = [x, batch_norm(d, x) if d.flip() else same_conv(d, x, d.choose(4, 2))]
    y = joined(d, parts if d.flip() else parts[::-1])
    return any_conv(d, y, padded=d.choose(None, False))


def several_readers(d: Draft, x: Drawn) -> Drawn:
    """A batch norm or scale that several convolutions read, each in its own way."""
    y = diagonal(d, x)
    kernel = d.choose(1, 3)
    first, second = (same_conv(d, y, 4, d.choose(1, kernel)) for _ in range(2))
    if d.flip():
        first = d.step("F.relu({0})", first)
    return d.step("{0} * {1}", first, second) if d.flip() else joined(d, [first, second])


def selected(d: Draft, x: Drawn) -> Drawn:
    """Some channels of a convolution, or all of them in another order."""
    y = any_conv(d, x, d.choose(4, 8))
    c = y.channels
    sizes = ", ".join(f"{{0}}.shape[{axis}]" for axis in range(2, len(y.shape)))
    shuffled = (
        f"{{0}}.reshape({{0}}.shape[0], 2, {c // 2}, {sizes}).transpose(1, 2)"
        f".reshape({{0}}.shape[0], {c}, {sizes})"
    )
    code = d.choose(
        f"{{0}}[:, :{c // 2}]",
        "{0}.chunk(2, 1)[1]",
        f"{{0}}.split([1, {c - 1}], 1)[1]",
        shuffled,
        f"{{0}}[:, {c // 2}:]",
    )
    return d.step(code, y)


def partial(d: Draft, x: Drawn) -> Drawn:
    """A convolution of a part of the channels; the others go past it (FasterNet)."""
    half = x.channels // 2
    if not half:
        return skip(d, x)
    first, rest = (d.step(f"{{0}}[:, {part}]", x) for part in (f":{half}", f"{half}:"))
    return joined(d, [same_conv(d, first, half), rest])


def shared_conv(d: Draft, x: Drawn) -> Drawn:
    """A convolution that is called twice; one result or both are normalized."""
    layer = d.own("conv", f"nn.Conv{x.n}d({x.channels}, {x.channels}, 1)")
    first = d.step("{p}({0})", x, owned=(layer,))
    norm = d.own("bn", f"nn.BatchNorm{x.n}d({x.channels})")
    second = d.step("{p}({0})", first if d.flip() else x, owned=(layer,))
    first = d.step("{p}({0})", first, owned=(norm,))
    second = d.step("{p}({0})", second, owned=(norm,)) if d.flip() else second
    return d.step("{0} * {1}", first, second)


def weight_read(d: Draft, x: Drawn) -> Drawn:
    """A convolution whose weight, or result, is read elsewhere as well."""
    source = f"nn.Conv{x.n}d({x.channels}, {x.channels}, {number([1] * x.n)}"
    layer = d.own("conv", source + options(bias="False" if d.flip() else None) + ")")
    first = d.step("{p}({0})", x, owned=(layer,))
    y = batch_norm(d, first)
    if d.flip():
        return d.step(f"{{0}} + F.conv{x.n}d({{1}}, {{p}}.weight)", y, x, owned=(layer,))
    return d.step("{0} * {1}", y, first)


BRANCH_MOTIFS = (
    branches,
    skip,
    depthwise_skip,
    token_mixer,
    stacked,
    joined_norm,
    conv_joined,
    several_readers,
    selected,
    partial,
    shared_conv,
    weight_read,
)
