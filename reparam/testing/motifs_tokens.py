"""Motifs over tokens and features: norms, linear layers, attention, and the ways to get there."""

from reparam.testing.draft import Draft, Drawn
from reparam.testing.drawn_layers import batch_norm, linear, multiple, options, scaled

MANY = 400
"""Tokens of which no matrix of weights is made: images grow, and it would take all memory."""

IMAGE_TO_TOKENS = (
    "{0}.flatten(2).transpose(1, 2)",
    "{0}.flatten(2).permute(0, 2, 1)",
    "torch.flatten({0}, 2).transpose(-1, -2)",
    "{0}.reshape({0}.shape[0], {0}.shape[1], -1).transpose(1, 2)",
)


def token_norm(d: Draft, x: Drawn) -> Drawn:
    """A layer norm or an RMS norm, sometimes without its own scale."""
    c = x.shape[-1]
    plain = options(elementwise_affine="False" if d.rarely() else None)
    kind = d.choose("Layer", "Layer", "RMS")
    return d.call("norm", f"nn.{kind}Norm({c}{plain})", x)


def to_tokens(d: Draft, x: Drawn) -> Drawn:
    """Images as tokens, perhaps normalized before."""
    y = batch_norm(d, x) if d.flip() else x
    y = d.step(d.choose(*IMAGE_TO_TOKENS), y, n=0)
    return linear(d, y) if d.flip() else y


def norm_linear(d: Draft, x: Drawn) -> Drawn:
    """A norm and the layers that read it, sums of them or products."""
    y = token_norm(d, x)
    y = d.call("drop", "nn.Dropout(0.1)", y) if d.rarely() else y
    first = linear(d, y, 6)
    if d.rarely(3):
        return d.step(d.choose("{0} * {1}", "{0} + {1}"), first, linear(d, y, 6))
    return first


def norm_scale(d: Draft, x: Drawn) -> Drawn:
    """A norm and what scales it once more, perhaps a batch norm over the same channels."""
    y = token_norm(d, x)
    if x.form == "features" and d.flip():
        return batch_norm(d, y)
    return d.choose(scaled, multiple)(d, y)


def linear_scale(d: Draft, x: Drawn) -> Drawn:
    """A linear layer and what scales it, features by a batch norm as well."""
    y = linear(d, x)
    if x.form == "features" and d.flip():
        return batch_norm(d, y)
    return d.choose(scaled, multiple)(d, y)


def linear_norm(d: Draft, x: Drawn) -> Drawn:
    """LeViT's: a linear layer over tokens, and a batch norm over all of them at once."""
    y = linear(d, x)
    if x.form == "features":
        return batch_norm(d, y)
    norm = d.own("bn", f"nn.BatchNorm1d({y.channels})")
    code = d.choose(
        "{p}({0}.flatten(0, 1)).reshape_as({0})",
        "{p}({0}.transpose(1, 2)).transpose(1, 2)",
        "{p}({0}.flatten(0, 1)).view({0}.shape[0], {0}.shape[1], -1)",
    )
    return d.step(code, y, owned=(norm,))


def two_linears(d: Draft, x: Drawn) -> Drawn:
    """A linear layer after another: LoRA, or what was a bottleneck."""
    between = d.choose(12, 1, 2)
    y = linear(d, linear(d, x, between), x.shape[-1])
    return d.step("{0} + {1}", linear(d, x, x.shape[-1]), y) if d.flip() else y


def block(d: Draft, x: Drawn) -> Drawn:
    """A pre-norm block with a layer scale: x + γ · linear(gelu(linear(norm(x))))."""
    c = x.shape[-1]
    y = linear(d, token_norm(d, x), 2 * c)
    y = linear(d, d.step("F.gelu({0})", y), c)
    y = d.call("drop", "nn.Dropout(0.1)", y) if d.rarely(3) else y
    return d.step("{0} + {1}", x, scaled(d, y))


def attention(d: Draft, x: Drawn) -> Drawn:
    """Self-attention of one head or two, written out or as torch has it."""
    c = 4 if x.shape[-1] % 2 else x.shape[-1]
    heads = d.choose(2, 1)
    x = linear(d, x, c) if x.shape[-1] != c else x
    source = token_norm(d, x) if d.rarely(3) else x
    q, k, v = _projected(d, source, c, heads)
    y = _mixed(d, q, k, v)
    merged = f"{{0}}.transpose(1, 2).reshape({{0}}.shape[0], -1, {c})"
    y = d.step(d.choose(merged, "{0}.transpose(1, 2).flatten(2)"), y, n=0)
    y = linear(d, y, c, bias=not d.rarely())
    return d.step("{0} + {1}", x, scaled(d, y) if d.rarely() else y) if d.flip() else y


def _projected(d: Draft, x: Drawn, c: int, heads: int) -> list[Drawn]:
    """Queries, keys and values, (batch, heads, tokens, features), from one layer or three."""
    h = c // heads
    if not d.rarely(3):
        split = f"{{0}}.reshape({{0}}.shape[0], -1, {heads}, {h}).transpose(1, 2)"
        return [d.step(split, linear(d, x, c, bias=not d.rarely())) for _ in range(3)]
    qkv = linear(d, x, 3 * c)
    parts = d.step(
        f"{{0}}.reshape({{0}}.shape[0], -1, 3, {heads}, {h}).permute(2, 0, 3, 1, 4)", qkv
    )
    if d.flip():
        parts = d.step("{0}.unbind(0)", parts)
    return [d.step(f"{{0}}[{index}]", parts, n=0) for index in range(3)]


def _mixed(d: Draft, q: Drawn, k: Drawn, v: Drawn) -> Drawn:
    """The values, weighted."""
    if q.shape[-2] > MANY:
        return d.step("{0}.sigmoid() * {1} + {2}", q, k, v)
    if d.rarely(3):
        arguments = d.choose("", ", scale=0.5", ", is_causal=True", ", dropout_p=0.0")
        code = f"F.scaled_dot_product_attention({{0}}, {{1}}, {{2}}{arguments})"
        return d.step(code, q, k, v, n=0)
    q = d.step(d.choose("{0} * 0.5", "{0} / 2"), q) if d.flip() else q
    weights = d.step(d.choose("{0} @ {1}.transpose(-2, -1)", "{0} @ {1}.mT"), q, k)
    weights = d.step("{0} * 0.7", weights) if d.rarely(3) else weights
    softmax = d.choose("{0}.softmax(-1)", "F.softmax({0}, dim=-1)", "{0}.softmax(dim=-1)")
    weights = d.step("F.softmax({0}, 2)" if d.rarely(12) else softmax, weights)
    weights = d.call("drop", "nn.Dropout(0.1)", weights) if d.rarely() else weights
    return d.step("{0} @ {1}", weights, v)


def image_attention(d: Draft, x: Drawn) -> Drawn:
    """Attention over the pixels of images, perhaps back to images by their own sizes."""
    y = attention(d, d.step(d.choose(*IMAGE_TO_TOKENS), batch_norm(d, x) if d.flip() else x, n=0))
    if d.flip():
        return y
    sizes = ", ".join(f"{{1}}.shape[{axis}]" for axis in range(2, len(x.shape)))
    code = f"{{0}}.transpose(1, 2).reshape({{1}}.shape[0], {y.shape[-1]}, {sizes})"
    return d.step(code, y, x, n=x.n)


def scaled_heads(d: Draft, x: Drawn) -> Drawn:
    """A scale behind the reshape or transpose of a linear layer, of all its rows or some."""
    y = linear(d, x, 8)
    if x.form == "features":
        y = d.step("{0}.reshape(-1, 2, 4)", y)
        y = multiple(d, y) if d.flip() else d.step("{0} * {p}", y, owned=(d.parameter(4),))
        return d.step("{0}.flatten(1)", y)
    if d.flip():
        first, rest = (d.step(f"{{0}}[..., {part}]", y) for part in (":4", "4:"))
        return d.step("{0} @ ({1}.transpose(1, 2) @ {1})", multiple(d, first), rest)
    y = d.step("{0}.transpose(1, 2)", y, n=1)
    y = d.choose(scaled, multiple, batch_norm)(d, y)
    return d.step("{0}.transpose(1, 2)", y, n=0)


def split_linear(d: Draft, x: Drawn) -> Drawn:
    """A linear layer whose rows are taken apart, gated or thrown away."""
    y = linear(d, x, 8)
    if d.flip():
        halves = [d.step(f"{{0}}.chunk(2, -1)[{index}]", y) for index in (0, 1)]
        return d.step("{0} * {1}.sigmoid()", *halves)
    return d.step(d.choose("{0}[..., :4]", "{0}.split([2, 6], -1)[1]", "{0}[..., 3:]"), y)


def joined_linears(d: Draft, x: Drawn) -> Drawn:
    """Linear layers of one input, joined."""
    parts = [linear(d, x, d.choose(4, 2)) for _ in range(d.choose(2, 3))]
    several = ", ".join(f"{{{index}}}" for index in range(len(parts)))
    y = d.step(f"torch.cat([{several}], -1)", *parts)
    return scaled(d, y) if d.rarely(3) else y


def tokens_mean(d: Draft, x: Drawn) -> Drawn:
    """A head over the mean of all tokens, or the first of them."""
    if x.form == "features":
        return linear(d, batch_norm(d, x))
    y = token_norm(d, x) if d.flip() else x
    y = d.step(d.choose("{0}.mean(1)", "{0}[:, 0]"), y)
    return linear(d, batch_norm(d, y) if d.flip() else y)


TOKEN_MOTIFS = (
    norm_linear,
    linear_scale,
    norm_scale,
    linear_norm,
    two_linears,
    block,
    scaled_heads,
    split_linear,
    joined_linears,
    tokens_mean,
)
"""They take tokens and features."""

MAP_MOTIFS = (norm_linear, linear_scale, norm_scale, two_linears, block, joined_linears)
"""They take images whose channels stand last as well."""

ATTENTION_MOTIFS = (attention,)
TO_TOKENS = (to_tokens, image_attention)
