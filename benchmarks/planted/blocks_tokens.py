"""Blocks over tokens and features: norms, linear layers, attention, and the ways to get there."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.planted.examples import Example, Forward, block, on, scale

IMAGE = (2, 4, 7, 6)
TOKENS = (2, 5, 8)
C1, C2, B1, B2 = nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d
Lin = nn.Linear

AFTER_NORM = [
    block("layer norm, scale", TOKENS, lambda m, x: m.n(x) * m.s,
          lambda: {"n": nn.LayerNorm(8), "s": scale(8)}),
    block("layer norm, affine", TOKENS, lambda m, x: m.s * m.n(x) + m.t,
          lambda: {"n": nn.LayerNorm(8), "s": scale(8), "t": scale(8)}),
    block("plain layer norm, scale, shift", TOKENS, lambda m, x: m.s * m.n(x) + m.t,
          lambda: {"n": nn.LayerNorm(8, elementwise_affine=False), "s": scale(8), "t": scale(8)}),
    block("rms norm, scale", TOKENS, lambda m, x: m.n(x) * m.s,
          lambda: {"n": nn.RMSNorm(8), "s": scale(8)}),
    block("rms norm, shift", TOKENS, lambda m, x: m.n(x) + m.s,
          lambda: {"n": nn.RMSNorm(8), "s": scale(8)}),
    block("layer norm of features, batch norm", (5, 8), lambda m, x: m.b(m.n(x)),
          lambda: {"n": nn.LayerNorm(8), "b": B1(8)}),
    block("group norm, batch norm", IMAGE, lambda m, x: m.b(m.n(x)),
          lambda: {"n": nn.GroupNorm(2, 4), "b": B2(4)}),
    block("layer norm, batch norm over tokens", (2, 6, 6), lambda m, x: m.b(m.n(x)),
          lambda: {"n": nn.LayerNorm(6), "b": B1(6)}),
]  # fmt: skip


def _joint(m: Any, x: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values from one layer, the queries scaled."""
    q, k, v = m.l(x).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return ((-0.5 * q) @ k.transpose(-2, -1)).softmax(-1) @ v


def _scores(m: Any, x: torch.Tensor) -> torch.Tensor:
    """The product of queries and keys, scaled."""
    q, k = (m.l(x).reshape(x.shape[0], -1, 2, 2, 4).permute(2, 0, 3, 1, 4)[i] for i in (0, 1))
    return (q @ k.transpose(-2, -1)) * 0.5


AFTER_LAYOUT = [
    block("queries scaled", TOKENS, _joint, lambda: {"l": Lin(8, 24)}),
    block("scores scaled", TOKENS, _scores, lambda: {"l": Lin(8, 16)}),
    block("a half scaled, the other read", TOKENS,
          lambda m, x: on(m.l(x).chunk(2, -1), lambda y: y[0] * m.s + y[1].sigmoid()),
          lambda: {"l": Lin(8, 8), "s": scale(4)}),
    block("halves of one result, one scaled", TOKENS,
          lambda m, x: on(m.l(x).chunk(2, -1), lambda y: (-0.7 * y[1]) @ (y[0].mT @ y[0])),
          lambda: {"l": Lin(8, 8)}),
    block("halves of one result, one scaled and shifted", TOKENS,
          lambda m, x: on(m.l(x).chunk(2, -1),
                          lambda y: torch.cat([m.s * y[1] + m.t, y[0].sigmoid()], 1)),
          lambda: {"l": Lin(8, 8), "s": scale(4), "t": scale(4)}),
    block("rows read twice, once scaled", TOKENS,
          lambda m, x: on(m.l(x), lambda y: (0.5 * y.split([5, 3], -1)[0]).sigmoid()
                          * y.split([3, 5], -1)[1]),
          lambda: {"l": Lin(8, 8)}),
    block("one of a few selected, scaled", TOKENS,
          lambda m, x: m.l(x).reshape(x.shape[0], -1, 2, 4)[:, :, 1] * m.s,
          lambda: {"l": Lin(8, 8), "s": scale(4)}),
    block("transposed, normed", TOKENS, lambda m, x: m.b(m.l(x).transpose(1, 2)),
          lambda: {"l": Lin(8, 6), "b": B1(6)}),
    block("transposed, shifted", TOKENS, lambda m, x: m.l(x).transpose(1, 2) * m.s + m.t,
          lambda: {"l": Lin(8, 6), "s": scale(6, 1), "t": scale(6, 1)}),
    block("heads before features, scaled", TOKENS,
          lambda m, x: m.l(x).reshape(x.shape[0], -1, 2, 4).permute(2, 0, 3, 1)[1] * m.s,
          lambda: {"l": Lin(8, 8), "s": scale(4, 1)}),
    block("flattened pixels, scaled", (2, 4, 8, 6), lambda m, x: m.a(m.p(x)).flatten(1) * m.s,
          lambda: {"a": C2(4, 4, 1), "p": nn.AdaptiveAvgPool2d(2), "s": scale(16)}),
    block("a slice of shuffled rows, scaled", TOKENS,
          lambda m, x: m.l(x).reshape(x.shape[0], -1, 2, 4).transpose(2, 3).flatten(2)
          .split([1, 3, 4], -1)[1] * m.s,
          lambda: {"l": Lin(8, 8), "s": scale(3)}),
]  # fmt: skip


def _shuffled(y: torch.Tensor, c: int, groups: int = 2) -> torch.Tensor:
    n, h, w = y.shape[0], y.shape[2], y.shape[3]
    return y.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


ROWS = [
    block("half of a linear", TOKENS, lambda m, x: m.l(x).split([3, 5], -1)[1],
          lambda: {"l": Lin(8, 8)}),
    block("half of a conv", IMAGE, lambda m, x: m.a(x)[:, 2:5], lambda: {"a": C2(4, 6, 3)}),
    block("a shuffled conv", IMAGE, lambda m, x: _shuffled(m.a(x), 8),
          lambda: {"a": C2(4, 8, 3)}),
    block("a shuffled conv without bias", IMAGE, lambda m, x: _shuffled(m.a(x), 6, 3),
          lambda: {"a": C2(4, 6, 3, bias=False)}),
    block("a shuffled grouped conv", IMAGE, lambda m, x: _shuffled(m.a(x), 8),
          lambda: {"a": C2(4, 8, 3, groups=2)}),
    block("a slice of a shuffled conv", IMAGE, lambda m, x: _shuffled(m.a(x), 8)[:, 1:4],
          lambda: {"a": C2(4, 8, 3)}),
    block("a slice of groups", IMAGE,
          lambda m, x: m.a(x).reshape(x.shape[0], 4, 2, -1)[:, 1:3].reshape(
              x.shape[0], 4, x.shape[2], x.shape[3]),
          lambda: {"a": C2(4, 8, 1)}),
    block("a slice of each group", IMAGE,
          lambda m, x: m.a(x).reshape(x.shape[0], 2, 4, -1)[:, :, 1:3].reshape(
              x.shape[0], 4, x.shape[2], x.shape[3]),
          lambda: {"a": C2(4, 8, 1)}),
    block("a conv, its axes swapped", (2, 4, 8, 8), lambda m, x: m.a(m.p(x)).transpose(2, 3),
          lambda: {"a": C2(4, 4, 1), "p": nn.AdaptiveAvgPool2d(4)}),
    block("a conv, its axes reshaped", IMAGE,
          lambda m, x: m.a(x).reshape(x.shape[0], 4, x.shape[3], x.shape[2]),
          lambda: {"a": C2(4, 4, 1)}),
]  # fmt: skip


def _through(name: str, run: Forward, **layers: Callable[[], nn.Module]) -> list[Example]:
    """A norm or a scale, a shift too, and what is between it and a convolution."""
    return [
        block(f"{kind}, {name}", IMAGE, lambda m, x: run(m, m.z(x).sigmoid()),
              lambda kind=kind: {
                  "n": _diagonal(kind), "a": C2(4, 6, 1), "z": C2(4, 4, 1),
                  **{name: make() for name, make in layers.items()}})
        for kind in ("norm", "scale", "positive scale", "mixed scale", "positive scale and shift")
    ]  # fmt: skip


class Fixed(nn.Module):
    """A scale that keeps its sign, whatever numbers the rest is given."""

    s: torch.Tensor

    def __init__(self) -> None:
        """Hold buffers, which are left as they are."""
        super().__init__()
        self.register_buffer("s", torch.tensor([0.5, 1.5, 0.75, 3.0]).reshape(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale x."""
        return x * self.s


class Mixed(Fixed):
    """A scale of which one number is negative."""

    def __init__(self) -> None:
        """Hold it."""
        super().__init__()
        self.s[1] *= -1


class Scaled(nn.Module):
    """A layer scale."""

    s: torch.Tensor

    def __init__(self) -> None:
        """Own it."""
        super().__init__()
        self.s = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale x."""
        return x * self.s


class Shifted(Fixed):
    """A positive scale, and a shift."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift x."""
        return x * self.s - 2 * self.s


def _diagonal(kind: str) -> nn.Module:
    kinds: dict[str, Callable[[], nn.Module]] = {
        "norm": lambda: B2(4),
        "scale": Scaled,
        "positive scale": Fixed,
        "mixed scale": Mixed,
        "positive scale and shift": Shifted,
    }
    return kinds[kind]()


INTO_READERS = [
    *_through("relu, conv", lambda m, x: m.a(F.relu(m.n(x)))),
    *_through("square, conv", lambda m, x: m.a(torch.square(m.n(x)))),
    *_through("average, conv", lambda m, x: m.a(F.avg_pool2d(m.n(x), 2))),
    *_through("padded average, conv", lambda m, x: m.a(F.avg_pool2d(m.n(x), 2, 1, 1)).sigmoid()),
    *_through("divided average, conv",
              lambda m, x: m.a(F.avg_pool2d(m.n(x), 2, divisor_override=3)).sigmoid()),
    *_through("rows, conv", lambda m, x: m.a(m.n(x)[:, :, ::2, 1:])),
    *_through("shuffle, conv", lambda m, x: m.a(_shuffled(m.n(x), 4)).sigmoid()),
    *_through("halves, convs",
              lambda m, x: on(m.n(x), lambda y: m.c(y[:, :2]) * m.d(y[:, 2:])),
              c=lambda: C2(2, 4, 3), d=lambda: C2(2, 4, 3)),
    *_through("two convs", lambda m, x: on(m.n(x), lambda y: m.a(y) * m.c(y)),
              c=lambda: C2(4, 6, 1)),
    *_through("mean, linear", lambda m, x: m.l(m.n(x).mean((2, 3))), l=lambda: Lin(4, 3)),
    *_through("tokens, linears",
              lambda m, x: on(m.n(x).flatten(2).transpose(1, 2), lambda y: m.k(y) @ m.l(y).mT),
              k=lambda: Lin(4, 3), l=lambda: Lin(4, 3)),
    *_through("mean over channels, conv", lambda m, x: m.c(m.n(x).mean(1, keepdim=True)),
              c=lambda: C2(1, 4, 3)),
    *_through("transposed, conv over what was not channels",
              lambda m, x: m.c(m.n(m.p(x)).transpose(1, 2)),
              c=lambda: C2(4, 4, 1), p=lambda: nn.AdaptiveAvgPool2d(4)),
    *_through("turned, linear over what was not channels",
              lambda m, x: m.l(m.n(m.p(x)).permute(0, 3, 1, 2)),
              l=lambda: Lin(4, 3), p=lambda: nn.AdaptiveAvgPool2d(4)),
    *_through("max, conv", lambda m, x: m.a(F.max_pool2d(m.n(x), 2))),
]  # fmt: skip

NORM_READERS = [
    block("layer norm, linear", TOKENS, lambda m, x: m.l(m.n(x)),
          lambda: {"n": nn.LayerNorm(8), "l": Lin(8, 3)}),
    block("rms norm, two linears", TOKENS, lambda m, x: m.l(m.n(x)) * m.k(m.n(x)),
          lambda: {"n": nn.RMSNorm(8), "l": Lin(8, 3), "k": Lin(8, 3)}),
    block("layer norm without β, linear", TOKENS, lambda m, x: m.l(m.n(x)),
          lambda: {"n": nn.LayerNorm(8, bias=False), "l": Lin(8, 3)}),
    block("group norm, conv", IMAGE, lambda m, x: m.a(m.n(x)),
          lambda: {"n": nn.GroupNorm(2, 4), "a": C2(4, 6, 3)}),
    block("layer norm, mean, linear", TOKENS, lambda m, x: m.l(m.n(x).mean(1)),
          lambda: {"n": nn.LayerNorm(8), "l": Lin(8, 3)}),
]  # fmt: skip


def _attention(kind: str) -> Forward:
    """Self-attention of two heads; the queries and keys are of no layer with a bias."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        q, k, v = (layer(x).reshape(n, -1, 2, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
        if kind == "features first":
            v = m.v(x).reshape(n, -1, 4, 2).permute(0, 3, 1, 2)
        if kind == "torch's":
            y = F.scaled_dot_product_attention(q, k, v)
        elif kind == "causal":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
        else:
            y = (q @ k.transpose(-2, -1)).softmax(-2 if kind == "over queries" else -1) @ v
        return m.o(y.transpose(1, 2).reshape(n, -1, 8))

    return run


ATTENTION = [
    block(f"attention, {kind}", TOKENS, _attention(kind),
          lambda: {name: Lin(8, 8) for name in "qkvo"})
    for kind in ("written out", "torch's", "causal", "over queries", "features first")
]  # fmt: skip

LAYOUTS = [
    block("there and back", IMAGE, lambda m, x: F.relu(x).flatten(1).reshape(x.shape), dict),
    block("flattened twice", IMAGE, lambda m, x: F.relu(x).flatten(2).flatten(1), dict),
    block("permuted back", IMAGE,
          lambda m, x: F.relu(x).permute(0, 2, 3, 1).permute(0, 3, 1, 2).sigmoid(), dict),
    block("transposed, then seen as it was", IMAGE,
          lambda m, x: F.relu(x).transpose(1, 2).reshape(x.shape).sigmoid(), dict),
    block("permuted among equals", (2, 16),
          lambda m, x: m.l(x).reshape(-1, 4, 4, 4).permute(0, 2, 1, 3).permute(0, 1, 3, 2).exp(),
          lambda: {"l": Lin(16, 64)}),
    block("permuted among equals, halfway back", (2, 16),
          lambda m, x: m.l(x).reshape(-1, 4, 4, 4).permute(0, 2, 3, 1).permute(0, 2, 3, 1).exp(),
          lambda: {"l": Lin(16, 64)}),
    block("permuted twice", IMAGE,
          lambda m, x: F.relu(x).permute(0, 2, 3, 1).permute(0, 2, 3, 1).sigmoid(), dict),
    block("seen as other sizes, twice", (2, 16),
          lambda m, x: m.l(x).reshape(-1, 4, 16).reshape(-1, 8, 8).exp(),
          lambda: {"l": Lin(16, 64)}),
    block("rows of a transposed one", (2, 16),
          lambda m, x: m.l(x).reshape(-1, 4, 16).transpose(1, 2).reshape(-1, 64).exp(),
          lambda: {"l": Lin(16, 64)}),
    block("tokens of averages", IMAGE,
          lambda m, x: F.relu(x).mean((2, 3), True).permute(0, 2, 3, 1).reshape(-1, 4).exp(), dict),
]  # fmt: skip

NOTHING = [
    block("times one, plus zero", IMAGE, lambda m, x: (F.relu(x) * 1 + 0).sigmoid(), dict),
    block("minus", IMAGE, lambda m, x: (-F.relu(x)).sigmoid(), dict),
    block("a factor of 0.7", IMAGE, lambda m, x: (F.relu(x) * 0.7).sigmoid(), dict),
    block("a half", IMAGE, lambda m, x: (F.relu(x) / 2).sigmoid(), dict),
    block("the input itself", IMAGE, lambda m, x: x * 1, dict),
    block("a view of the input", IMAGE, lambda m, x: x.flatten(2) * 1, dict),
]  # fmt: skip
