"""Blocks in which paths part and meet."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.planted.examples import Example, block, scale

IMAGE = (2, 4, 7, 6)
C2, B2 = nn.Conv2d, nn.BatchNorm2d
NAMES = {"C2": C2, "B2": B2, "nn": nn}


def _sum(a: str, b: str, run: str = "m.a(x) + m.b(x)", channels: int = 4) -> Example:
    """Two branches of one input."""
    forward = eval(f"lambda m, x: {run}", {"torch": torch, "F": F})
    return block(
        f"{run}: {a}, {b}", (2, channels, 7, 6), forward,
        lambda: {"a": eval(a, NAMES), "b": eval(b, NAMES)},
    )  # fmt: skip


SUMS = [
    _sum("C2(4, 6, 3, padding=1)", "C2(4, 6, 1)"),
    _sum("C2(4, 6, 3, padding=1)", "C2(4, 6, 1)", "m.a(x) - m.b(x)"),
    _sum("C2(4, 6, 3, padding=1)", "C2(4, 6, 1)", "m.a(x) + 0.5 * m.b(x)"),
    _sum("C2(4, 6, 1)", "C2(4, 6, 3, padding=1)", "torch.sub(m.a(x), m.b(x), alpha=2)"),
    _sum("C2(4, 6, 3, padding=1)", "C2(4, 6, 3, padding=1, bias=False)"),
    _sum("C2(4, 6, 3, padding=1, bias=False)", "C2(4, 6, 3, padding=1)"),
    _sum("C2(4, 6, (1, 3), padding=(0, 1))", "C2(4, 6, (3, 1), padding=(1, 0), bias=False)"),
    _sum("C2(4, 6, 3, padding=1, groups=2)", "C2(4, 6, 1)"),
    _sum("C2(4, 6, 1)", "C2(4, 6, 3, padding=1, groups=2)"),
    _sum("C2(4, 8, 3, padding=1, groups=2)", "C2(4, 8, 3, padding=1, groups=4)"),
    _sum("C2(4, 6, 3, 2, 1)", "C2(4, 6, 1, 2)"),
    _sum("C2(4, 6, 3, padding=2, dilation=2)", "C2(4, 6, 1)"),
    _sum("C2(4, 6, 5, padding=2)", "C2(4, 6, 3, padding=2, dilation=2)"),
    _sum("C2(4, 6, 3, padding=2, dilation=2)", "C2(4, 6, 2, padding='same', dilation=2)"),
    _sum("C2(4, 6, (2, 3), padding='same')", "C2(4, 6, (1, 3), padding='same')"),
    _sum("C2(4, 6, 2, padding='same')", "C2(4, 6, 1)"),
    _sum("C2(4, 6, 1)", "C2(4, 6, 2, padding='same')"),
    _sum("C2(4, 6, 3)", "C2(4, 6, 3)"),
    _sum("C2(4, 6, 3, padding=1, padding_mode='reflect')", "C2(4, 6, 1)"),
    _sum("C2(4, 6, 1)", "C2(4, 6, 3, padding=1, padding_mode='circular')"),
    _sum("C2(4, 6, 3, padding=1, padding_mode='reflect')", "C2(4, 6, 3, padding=1)"),
    _sum("C2(4, 6, 3, padding=1, padding_mode='reflect')",
         "C2(4, 6, 5, padding=2, padding_mode='reflect')"),
    _sum("C2(4, 6, 3)", "C2(4, 6, 3)",
         "m.a(F.pad(x, (1, 1, 1, 1), value=0.5)) + m.b(F.pad(x, (1, 1, 1, 1)))"),
    _sum("C2(4, 6, 3)", "C2(4, 6, 3)",
         "m.a(F.pad(x, (1, 1, 1, 1), value=0.5)) + m.b(F.pad(x, (1, 1, 1, 1), value=-0.5))"),
    _sum("C2(4, 6, 1)", "C2(4, 6, 3)", "m.a(x) + m.b(F.pad(x, (1, 1, 1, 1), value=0.5))"),
    _sum("B2(4)", "C2(4, 6, 3)",
         "m.b(F.pad(m.a(x), (1, 1, 1, 1), value=0.5)) + m.b(F.pad(m.a(x), (1, 1, 1, 1)))"),
]  # fmt: skip

NORMED_SUMS = [
    block("two normed branches", IMAGE, lambda m, x: m.n(m.a(x)) + m.o(m.b(x)),
          lambda: {"a": C2(4, 4, 3, padding=1, bias=False), "b": C2(4, 4, 1), "n": B2(4),
                   "o": B2(4)}),
    block("three branches, norm behind", IMAGE, lambda m, x: m.n(m.a(x) - m.b(x) + 2 * m.c(x)),
          lambda: {"a": C2(4, 4, 3, padding=1), "b": C2(4, 4, 1, bias=False),
                   "c": C2(4, 4, (3, 1), padding=(1, 0)), "n": B2(4)}),
    block("a narrow kernel before a wide one", IMAGE, lambda m, x: m.a(x) + m.b(x),
          lambda: {"a": C2(4, 4, (1, 3), padding=(0, 1)), "b": C2(4, 4, 3, padding=1)}),
    block("a conv of a sum", IMAGE, lambda m, x: m.b(m.a(x) - 0.5 * m.c(x)),
          lambda: {"a": C2(4, 16, 1), "b": C2(16, 4, 1), "c": C2(4, 16, 3, padding=1)}),
    block("a conv of a difference of two tensors", IMAGE,
          lambda m, x: m.b(m.a(x) - 0.5 * m.c(F.relu(x))),
          lambda: {"a": C2(4, 16, 1), "b": C2(16, 4, 1), "c": C2(4, 16, 1)}),
    block("a padded conv of a shifted difference", IMAGE,
          lambda m, x: m.b(F.pad(0.5 * m.n(x) - m.o(F.relu(x)), (1, 1, 1, 1), value=0.5)),
          lambda: {"n": B2(4), "o": B2(4), "b": C2(4, 4, 3)}),
    block("a padded conv of a multiple", IMAGE,
          lambda m, x: m.b(F.pad(0.5 * x, (1, 1, 1, 1), value=0.5)),
          lambda: {"b": C2(4, 4, 3)}),
    block("a sum that is broadcast", IMAGE,
          lambda m, x: m.b(m.a(x) + m.c(F.adaptive_avg_pool2d(x, 1))),
          lambda: {"a": C2(4, 32, 1, bias=False), "b": C2(32, 2, 3, padding=1),
                   "c": C2(4, 32, 1, bias=False)}),
    block("a sum of unlike tensors", IMAGE,
          lambda m, x: m.n(m.a(x) + m.s * F.adaptive_avg_pool2d(x, 1)),
          lambda: {"a": C2(4, 4, 1), "n": B2(4), "s": scale(4, 1, 1)}),
    block("multiples of multiples", IMAGE, lambda m, x: 0.5 * (x * 0.75) - 0.25 * x, dict),
    block("a multiple of a multiple", IMAGE, lambda m, x: -(x * 0.75), dict),
    block("a sum of multiples of convs", IMAGE, lambda m, x: 0.5 * (m.a(x) + x) - m.b(x),
          lambda: {"a": C2(4, 4, 3, padding=1), "b": C2(4, 4, 1)}),
    block("relu of one, conv of both", IMAGE, lambda m, x: m.a(x) + m.b(F.relu(x)) - m.c(x),
          lambda: {"a": C2(4, 4, 3, padding=1), "b": C2(4, 4, 1), "c": C2(4, 4, 1)}),
    block("a tensor less than a multiple", IMAGE,
          lambda m, x: m.a(x) + m.b(x) - 2 * F.relu(x),
          lambda: {"a": C2(4, 4, 3, padding=1), "b": C2(4, 4, 1)}),
]  # fmt: skip

SKIPS = [
    _sum("C2(4, 4, 3, padding=1)", "B2(4)", "x + m.a(x)"),
    _sum("C2(4, 4, 3, padding=1)", "B2(4)", "m.b(x) - m.a(x)"),
    _sum("C2(4, 4, 3, padding=1)", "B2(4)", "m.a(x) + m.b(x)"),
    _sum("C2(4, 4, (3, 5), padding=(1, 2), bias=False)", "B2(4)", "0.5 * x + m.a(x)"),
    _sum("C2(4, 4, 3, padding=1)", "B2(4)", "m.a(x) - 0.7 * x"),
    _sum("C2(4, 4, 2, padding='same')", "B2(4)", "m.a(x) - 2 * x"),
    _sum("C2(4, 4, 1)", "B2(4)", "m.a(x) - x"),
    _sum("C2(4, 4, 3, padding=2, dilation=2, groups=2)", "B2(4)", "x + m.a(m.b(x))"),
    _sum("C2(4, 4, 3, padding=1, padding_mode='reflect')", "B2(4)", "x + m.b(m.a(x))"),
]

DEPTHWISE = [
    _sum("C2(4, 4, 3, padding=1, groups=4)", "B2(4)", "x + m.a(x)"),
    _sum("C2(4, 4, 3, padding=1, groups=4)", "B2(4)", "m.b(x) - m.a(x)"),
    _sum("C2(4, 4, (3, 5), padding=(1, 2), groups=4)", "B2(4)", "m.a(m.b(x)) + x"),
    _sum("C2(4, 4, 3, padding=1, groups=4)", "C2(4, 4, 1, groups=4)", "x + m.a(x) - 0.5 * m.b(x)"),
    _sum("C2(4, 4, 3, padding=2, dilation=2, groups=4, bias=False)", "B2(4)", "m.a(x) - 0.7 * x"),
    _sum("C2(4, 4, (2, 4), padding='same', groups=4)", "B2(4)", "m.b(m.a(x)) + 2 * x"),
    block("a token mixer", IMAGE, lambda m, x: x + m.s * (m.n(m.a(x)) - m.o(x)),
          lambda: {"a": C2(4, 4, 3, padding=1, groups=4, bias=False), "n": B2(4), "o": B2(4),
                   "s": scale(4, 1, 1)}),
]  # fmt: skip

JOINED = [
    block("two convs, norm", IMAGE, lambda m, x: m.n(torch.cat([m.a(x), m.b(F.relu(x))], 1)),
          lambda: {"a": C2(4, 4, 1), "b": C2(4, 2, 3, padding=1), "n": B2(6)}),
    block("two convs as wide as each other, norm", IMAGE,
          lambda m, x: m.n(torch.cat([m.a(x), m.b(F.relu(x))], 1)),
          lambda: {"a": C2(4, 4, 1), "b": C2(4, 4, 1), "n": B2(8)}),
    block("two convs, 6 and 2, norm", IMAGE,
          lambda m, x: m.n(torch.cat([m.a(x), m.b(F.relu(x))], 1)),
          lambda: {"a": C2(4, 6, 1), "b": C2(4, 2, 1, bias=False), "n": B2(8)}),
    block("two linears, scale", (2, 5, 4),
          lambda m, x: torch.cat([m.a(x), m.b(x.relu())], -1) * m.s,
          lambda: {"a": nn.Linear(4, 4), "b": nn.Linear(4, 2), "s": scale(6)}),
]  # fmt: skip

CONV_JOINED = [
    block("a conv of a cat of convs", IMAGE, lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
          lambda: {"a": C2(4, 16, 1), "b": C2(4, 16, 1), "c": C2(32, 2, 1)}),
    block("a conv of a cat of two tensors' convs", IMAGE,
          lambda m, x: m.c(torch.cat([m.a(x), m.b(F.relu(x))], 1)),
          lambda: {"a": C2(4, 16, 1), "b": C2(4, 8, 1), "c": C2(24, 2, 1)}),
    block("a conv of a cat of a norm and its input", IMAGE,
          lambda m, x: m.c(torch.cat([x, m.n(x)], 1)),
          lambda: {"n": B2(4), "c": C2(8, 4, 3)}),
    block("a grouped conv of a cat", IMAGE, lambda m, x: m.c(torch.cat([x, m.n(x)], 1)),
          lambda: {"n": B2(4), "c": C2(8, 4, 3, groups=2)}),
    block("a padded conv of a padded cat", IMAGE,
          lambda m, x: m.c(F.pad(torch.cat([m.n(x), x], 1), (1, 1, 1, 1), value=0.5)),
          lambda: {"n": B2(4), "c": C2(8, 4, 3)}),
    block("a conv of a padded cat of convs", IMAGE,
          lambda m, x: m.c(F.pad(torch.cat([m.a(x), m.b(x)], 1), (1, 1, 1, 1), value=0.5)),
          lambda: {"a": C2(4, 4, 1, groups=4), "b": C2(4, 4, 1, groups=4), "c": C2(8, 2, 3)}),
    block("a conv of a cat along rows", (2, 2, 2, 2),
          lambda m, x: m.c(torch.cat([m.a(m.p(x)), m.b(m.p(x))], 3)),
          lambda: {"a": C2(2, 4, 1), "b": C2(2, 4, 1), "c": C2(4, 1, 1),
                   "p": nn.AdaptiveAvgPool2d(2)}),
]  # fmt: skip

STACKED = [
    block("two kernels", IMAGE, lambda m, x: torch.cat([m.a(x), m.b(x)], 1),
          lambda: {"a": C2(4, 4, 3, padding=1), "b": C2(4, 2, 3, padding=1)}),
    block("two linears", (2, 5, 4), lambda m, x: torch.cat([m.a(x), m.b(x), m.c(x)], -1),
          lambda: {"a": nn.Linear(4, 4), "b": nn.Linear(4, 2, bias=False), "c": nn.Linear(4, 3)}),
    block("without bias first", IMAGE, lambda m, x: torch.cat([m.a(x), m.b(x)], 1),
          lambda: {"a": C2(4, 4, 1, bias=False), "b": C2(4, 4, 1)}),
    block("side by side along rows", IMAGE, lambda m, x: torch.cat([m.a(x), m.b(x)], 2),
          lambda: {"a": C2(4, 4, 3, padding=1), "b": C2(4, 4, 3, padding=1)}),
    block("two modes", IMAGE, lambda m, x: torch.cat([m.a(x), m.b(x)], 1),
          lambda: {"a": C2(4, 4, 3, padding=1), "b": C2(4, 2, 3, padding=1,
                                                       padding_mode="circular")}),
]  # fmt: skip
