"""Motifs of all that is no linear map, does nothing, rearranges, or computes its weights anew."""

from reparam.testing.draft import Draft, Drawn
from reparam.testing.drawn_layers import batch_norm, linear, number, same_conv

ACTIVATIONS = (
    "F.relu({0})",
    "F.gelu({0})",
    "torch.sigmoid({0})",
    "F.silu({0})",
    "F.relu6({0})",
    "F.hardswish({0})",
    "torch.tanh({0})",
    "{0}.abs()",
    "{0}.clamp(-1, 1)",
)
NOTHING = (
    "{0} * 1",
    "{0} + 0",
    "{0} / 1",
    "F.dropout({0}, 0.5, training=False)",
    "{0} - 0.0",
    "1.0 * {0}",
    "assert {0}.ndim > 1\n{out} = {0} * 1",
    'assert {0}.shape[1] > 0, "no channels"\n{out} = {0}.contiguous()',
)


def activation(d: Draft, x: Drawn) -> Drawn:
    """A nonlinearity, as a function, a layer, or in place."""
    if d.flip():
        return d.step(d.choose(*ACTIVATIONS), x)
    if d.flip():
        # In place, and so on a tensor of its own.
        return d.step(d.choose("({0} * 1.5).relu_()", "F.relu({0} + 0.5, inplace=True)"), x)
    layer = d.choose("nn.ReLU()", "nn.GELU()", "nn.PReLU()", "nn.ReLU(inplace=True)", "nn.Mish()")
    if "inplace" in layer:
        return d.call("act", layer, d.step("{0} * 2", x))
    return d.call("act", layer, x)


def nothing(d: Draft, x: Drawn) -> Drawn:
    """What does nothing in evaluation mode."""
    if d.flip():
        return d.step(d.choose(*NOTHING), x)
    layer = d.choose("nn.Dropout(0.5)", "nn.Identity()", "nn.AlphaDropout(0.2)")
    return d.call("drop", layer, x)


def gate(d: Draft, x: Drawn) -> Drawn:
    """Squeeze and excite, or a plain gate."""
    if x.form == "images" and d.flip():
        y = d.step(f"F.adaptive_avg_pool{x.n}d({{0}}, 1)", x)
        y = same_conv(d, same_conv(d, y, 2, 1, groups=1), x.channels, 1, groups=1)
        return d.step("{0} * {1}.sigmoid()", x, y)
    return d.step(d.choose("{0} * {0}.sigmoid()", "{0} * F.hardsigmoid({0})"), x)


def back_and_forth(d: Draft, x: Drawn) -> Drawn:
    """Rearrangements that undo each other, or do not quite."""
    rank = len(x.shape)
    last = ", ".join(map(str, (0, *range(2, rank), 1)))
    first = ", ".join(map(str, (0, rank - 1, *range(1, rank - 1))))
    if rank == 2:
        return d.step(d.choose("{0}.t().t()", "{0}.reshape(-1).reshape({0}.shape)"), x)
    code = d.choose(
        f"{{0}}.permute({last}).permute({first})",
        "{0}.flatten(1).reshape({0}.shape)",
        "{0}.transpose(1, 2).transpose(2, 1)",
        "{0}.flatten(1).view_as({0})",
        f"{{0}}.flatten(1).unflatten(1, {x.shape[1:]})"
        if x.n == 0
        else "{0}.flatten(1).reshape({0}.shape)",
        f"torch.permute({{0}}, ({last})).permute(({first}))",
    )
    if "unflatten" in code:
        d.fixed = True
    return d.step(code, x)


def channels_last(d: Draft, x: Drawn) -> Drawn:
    """ConvNeXt's: channels go last for a norm and linear layers, and back."""
    rank = len(x.shape)
    last = ", ".join(map(str, (0, *range(2, rank), 1)))
    first = ", ".join(map(str, (0, rank - 1, *range(1, rank - 1))))
    y = d.step(f"{{0}}.permute({last})", x, n=0)
    y = d.call("norm", f"nn.LayerNorm({x.channels})", y) if d.flip() else y
    y = linear(d, y, x.channels) if d.flip() else y
    if d.flip():
        y = d.step("{0} * {p}", y, owned=(d.parameter(x.channels),))
    return d.step(f"{{0}}.permute({first})", y, n=x.n)


def group_norm(d: Draft, x: Drawn) -> Drawn:
    """A group norm, and what reads or scales it."""
    groups = d.choose(*[g for g in (1, 2) if x.channels % g == 0])
    y = d.call("norm", f"nn.GroupNorm({groups}, {x.channels})", x)
    return batch_norm(d, y) if d.rarely(3) else same_conv(d, y, 4, d.choose(1, 3))


def computed_conv(d: Draft, x: Drawn) -> Drawn:
    """A convolution whose weight is computed in every call, or read from somewhere else."""
    c, n = x.channels, x.n
    ones = ", ".join(["1"] * n)
    kernel = [3] * n
    plain = f"nn.Conv{n}d({c}, {c}, {number(kernel)}, padding=1)"
    match d.choose("gain", "sum", "standardized", "parametrized", "functional", "softmax"):
        case "gain":
            owned = (d.own("conv", plain), d.parameter(c, 1, *(1,) * n))
            return d.step(f"F.conv{n}d({{0}}, {{p}}.weight * {{q}}, padding=1)", x, owned=owned)
        case "sum":
            owned = (d.own("conv", plain), d.own("conv", plain))
            code = f"F.conv{n}d({{0}}, {{p}}.weight + {{q}}.weight, {{p}}.bias, 1, 1)"
            return d.step(code, x, owned=owned)
        case "standardized" if n == 2:
            return d.call("conv", f"layers.StandardizedConv2d({c}, {c}, 3, padding=1)", x)
        case "parametrized":
            source = (
                f"nn.utils.parametrizations.{d.choose('weight_norm', 'spectral_norm')}({plain})"
            )
            return d.step("{p}({0})", x, owned=(d.own("conv", source),))
        case "softmax":
            owned = (d.own("conv", plain), d.parameter(c))
            code = f"F.conv{n}d({{0}}, {{p}}.weight * {{q}}.softmax(0).view(-1, 1, {ones}))"
            return d.step(code, x, owned=owned) if min(x.sizes) > 2 else nothing(d, x)
        case _:
            owned = (d.own("conv", plain), d.own("bn", f"nn.BatchNorm{n}d({c})"))
            y = d.step(f"F.conv{n}d({{0}}, weight={{p}}.weight, padding=1)", x, owned=owned[:1])
            code = "F.batch_norm({0}, {p}.running_mean, {p}.running_var, {p}.weight, {p}.bias)"
            return d.step(code, y, owned=owned[1:])


def computed_scale(d: Draft, x: Drawn) -> Drawn:
    """A factor or a shift per channel that is computed from a parameter in every call."""
    owned = (d.parameter(x.channels, *(1,) * x.n),)
    codes = ("{0} * {p}.sigmoid()", "{0} + {p}.exp()", "{0} * (1 + {p})", "{0} * F.softplus({p})")
    return d.step(d.choose(*codes), x, owned=owned)


def computed_linear(d: Draft, x: Drawn) -> Drawn:
    """A linear layer whose weight is computed: masked, scaled, or low-rank added."""
    c = x.shape[-1]
    weight = d.parameter(3, c)
    if d.flip():
        owned = (weight, d.parameter(3, 2), d.parameter(2, c))
        return d.step("F.linear({0}, {p} + {q} @ {r})", x, owned=owned)
    return d.step("F.linear({0}, {p} * {q})", x, owned=(weight, d.parameter(3, 1)))


def nested(d: Draft, x: Drawn) -> Drawn:
    """Layers in a module in a module."""
    c, n = x.channels, x.n
    conv = f"nn.Conv{n}d({c}, {c}, 3, padding=1, bias=False)"
    inner = f"nn.Sequential({conv}, nn.BatchNorm{n}d({c}))"
    code = d.choose("{p}({0})", "{p}({0}) + {0}", "{p}[0]({0})")
    block = d.own("block", f"nn.Sequential({inner}, nn.Identity(), nn.Dropout(0.1))")
    return d.step(code, x, owned=(block,))


def own_norm(d: Draft, x: Drawn) -> Drawn:
    """A batch norm whose class has a forward of its own, or that has no running statistics."""
    kinds = ["nn.InstanceNorm{n}d({c})", "nn.BatchNorm{n}d({c}, track_running_stats=False)"]
    kinds += ["layers.DoubledBatchNorm2d({c})"] if x.n == 2 else []
    y = same_conv(d, x, x.channels)
    return d.call("bn", d.choose(*kinds[::-1]).format(n=x.n, c=x.channels), y)


ANY_MOTIFS = (activation, nothing, gate, back_and_forth, computed_scale)
"""They take tensors of any form."""

IMAGE_MOTIFS = (computed_conv, channels_last, group_norm, nested, own_norm)
FLAT_MOTIFS = (computed_linear,)
