"""Blocks in which one layer follows another."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.planted.examples import Example, block, on, scale

IMAGE = (2, 4, 7, 6)
C1, C2 = nn.Conv1d, nn.Conv2d
B1, B2 = nn.BatchNorm1d, nn.BatchNorm2d


class Shifts(nn.Module):
    """Two shifts, buffers, of which the first number is zero in both."""

    t: torch.Tensor
    u: torch.Tensor

    def __init__(self) -> None:
        """Hold them."""
        super().__init__()
        self.register_buffer("t", torch.tensor([0.0, 2.0, -3.0, 0.5]).reshape(4, 1, 1))
        self.register_buffer("u", torch.tensor([0.0, -0.5, 0.75, 2.5]).reshape(4, 1, 1))


CONVS = {
    "plain": lambda: C2(4, 6, 3, padding=1),
    "no bias": lambda: C2(4, 6, 3, bias=False),
    "grouped": lambda: C2(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2),
    "depthwise": lambda: C2(4, 4, 3, padding=1, groups=4),
    "reflect": lambda: C2(4, 4, 3, padding=1, padding_mode="reflect"),
}

CONV_NORM = [
    *(
        block(
            f"conv {name}, norm", IMAGE, lambda m, x: m.b(m.a(x)),
            lambda make=make: {"a": make(), "b": B2(make().out_channels)},
        )
        for name, make in CONVS.items()
    ),
    block("conv, norm without γ", IMAGE, lambda m, x: m.b(m.a(x)),
          lambda: {"a": C2(4, 6, 3), "b": B2(6, affine=False)}),
    block("linear, norm", (5, 4), lambda m, x: m.b(m.a(x)),
          lambda: {"a": nn.Linear(4, 6), "b": B1(6)}),
]  # fmt: skip

CONV_SCALE = [
    *(
        block(
            f"conv {name}, scale", IMAGE, lambda m, x: m.a(x) * m.s,
            lambda make=make: {"a": make(), "s": scale(make().out_channels, 1, 1)},
        )
        for name, make in CONVS.items()
    ),
    block("linear, scale", (2, 5, 4), lambda m, x: m.s * m.a(x),
          lambda: {"a": nn.Linear(4, 6), "s": scale(6)}),
    block("conv, shift", IMAGE, lambda m, x: m.a(x) + m.s,
          lambda: {"a": C2(4, 6, 3), "s": scale(6, 1, 1)}),
    block("conv, multiple, scale", IMAGE, lambda m, x: (-0.7 * m.a(x)) * m.s,
          lambda: {"a": C2(4, 6, 3), "s": scale(6, 1, 1)}),
]  # fmt: skip


def _pair(name: str, outer: str, inner: str, inner_out: int = 4) -> Example:
    """One convolution after another, given as source."""
    make = {"C2": C2, "C1": C1, "B2": B2, "nn": nn}
    return block(
        f"{name}: {inner}, {outer}", IMAGE, lambda m, x: m.a(m.b(x)),
        lambda: {"a": eval(outer, make), "b": eval(inner, make)},
    )  # fmt: skip


COMPOSED = [
    _pair("kernels overlap", "C2(4, 2, 3)", "C2(4, 4, 2, bias=False)"),
    _pair("kernels overlap, biased", "C2(16, 2, 2)", "C2(4, 16, 2)"),
    _pair("1×1 inside", "C2(24, 2, 3)", "C2(4, 24, 1)"),
    _pair("1×1 inside, padded", "C2(24, 2, 3, padding=1)", "C2(4, 24, 1, bias=False)"),
    _pair("1×1 inside, lopsided", "C2(24, 2, (2, 3), (1, 1), 'same')", "C2(4, 24, 1, bias=False)"),
    _pair("1×1 inside, biased, padded", "C2(4, 4, 3, padding=1)", "C2(4, 4, 1)"),
    _pair("1×1 outside", "C2(24, 4, 1)", "C2(4, 24, 3, padding=1)"),
    _pair("1×1 outside, grouped", "C2(24, 4, 1, groups=2)", "C2(4, 24, 3, groups=2)"),
    _pair("grouped both", "C2(24, 4, 2, groups=2)", "C2(4, 24, 1, groups=4)"),
    _pair("strided both", "C2(24, 2, 2, 2)", "C2(4, 24, 1, 2, bias=False)"),
    _pair("strided inside", "C2(24, 2, 3, 1, 1)", "C2(4, 24, 1, 2, bias=False)"),
    _pair("strided inside, wide", "C2(32, 2, (2, 1), 1)", "C2(4, 32, (1, 2), (2, 1))"),
    _pair("strided twice, padded", "C2(32, 2, 1, 2)", "C2(4, 32, 3, 2, 1)"),
    _pair("strided thrice", "C2(32, 2, 1, 3)", "C2(4, 32, 1, 3)"),
    _pair("dilated inside", "C2(32, 2, (3, 1))", "C2(4, 32, 2, dilation=2)"),
    _pair("dilated outside", "C2(32, 2, 2, dilation=2)", "C2(4, 32, 2)"),
    _pair("dilated both", "C2(32, 2, 2, dilation=(2, 3))", "C2(4, 32, 2, dilation=(2, 1))"),
    _pair("depthwise inside", "C2(4, 4, 3, padding=1)", "C2(4, 4, 1, groups=4)"),
    _pair("depthwise inside, grouped", "C2(4, 4, 3, groups=2)", "C2(4, 4, 1, groups=4)"),
    _pair("depthwise both", "C2(4, 4, 2, groups=4)", "C2(4, 4, (1, 2), groups=4)"),
    _pair("two modes", "C2(4, 4, (3, 1), padding=(1, 0), groups=4)",
          "C2(4, 4, (1, 3), padding=(0, 1), padding_mode='reflect', groups=4, bias=False)"),
    _pair("two borders", "C2(4, 4, (3, 1), padding=(1, 0), groups=4)",
          "C2(4, 4, (1, 3), padding=(0, 1), groups=4)"),
    _pair("a border behind taps", "C2(4, 4, (3, 1), padding=(1, 0), groups=4)",
          "C2(4, 4, (1, 3), groups=4)"),
    _pair("reflect behind 1×1", "C2(24, 2, 3, padding=1, padding_mode='reflect')", "C2(4, 24, 1)"),
    _pair("reflect behind 3×3", "C2(32, 1, 3, padding=1, padding_mode='reflect')",
          "C2(4, 32, 3, padding=1)"),
    _pair("circular behind 2×1", "C2(32, 1, 1, padding=1, padding_mode='circular')",
          "C2(4, 32, (2, 1))"),
    _pair("padded twice", "C2(4, 4, 3, padding=1)", "C2(4, 4, 1, padding=1, bias=False)"),
    _pair("padded kernels", "C2(4, 4, (3, 1), padding=(1, 0), groups=4, bias=False)",
          "C2(4, 4, (3, 1), padding=(1, 0), groups=4, bias=False)"),
    _pair("norm, then padded", "C2(4, 4, 3, padding=1)", "B2(4)"),
    _pair("norm, then conv", "C2(4, 6, 3)", "B2(4)"),
    _pair("norm, then grouped", "C2(4, 6, 3, groups=2)", "B2(4)"),
    _pair("norm, then depthwise", "C2(4, 4, 3, groups=4, padding=1)", "B2(4)"),
]  # fmt: skip

PADDED = [
    *(
        block(f"{name}, conv, norm", IMAGE, lambda m, x, run=run: m.n(m.a(run(x))),
              lambda a=a: {"a": eval(a, {"C2": C2}), "n": B2(eval(a, {"C2": C2}).out_channels)})
        for name, a, run in (
            ("constant", "C2(4, 4, 3)", lambda x: F.pad(x, (1, 2, 0, 1), value=0.5)),
            ("zeros", "C2(4, 4, 3, 2)", lambda x: F.pad(x, (1, 0, 2, 1))),
            ("reflected", "C2(4, 4, 3)", lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect")),
            ("cut on all sides", "C2(4, 4, 2)", lambda x: x[:, :, 2:-1, :-2]),
            ("every second", "C2(4, 4, 1)", lambda x: x[:, :, ::2, 1::2]),
            ("every third", "C2(4, 4, 2, 2)", lambda x: x[:, :, ::3, ::3]),
        )
    ),
    block("norm, constant, conv", IMAGE, lambda m, x: m.a(F.pad(m.b(x), (1, 1, 1, 1), value=0.5)),
          lambda: {"a": C2(4, 4, 3), "b": B2(4)}),
    block("pointwise, constant, conv", IMAGE,
          lambda m, x: m.a(F.pad(m.b(x), (1, 1, 1, 1), value=0.5)),
          lambda: {"a": C2(4, 4, 3), "b": C2(4, 4, 1, groups=4)}),
    block("conv, crop", IMAGE, lambda m, x: m.a(x)[:, :, 2:, :-1], lambda: {"a": C2(4, 4, 3)}),
    block("crop of a padding, conv", IMAGE,
          lambda m, x: m.a(F.pad(x, (2, 2, 2, 2), mode="circular")[:, :, 1:, :-1]),
          lambda: {"a": C2(4, 4, 3)}),
]  # fmt: skip


def _three(name: str, outer: str, middle: str, inner: str) -> Example:
    """Three layers, one after the other: a border costs, so that two alone are not merged."""
    make = {"C2": C2, "B2": B2, "nn": nn}
    return block(
        f"{name}: {inner}, {middle}, {outer}", IMAGE, lambda m, x: m.a(m.n(m.b(x))),
        lambda: {"a": eval(outer, make), "n": eval(middle, make), "b": eval(inner, make)},
    )  # fmt: skip


def _bordered(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A layer with a border of constants, one per channel, as Diverse Branch Blocks write it."""
    padded = F.pad(m.a(x), (1, 1, 1, 1))
    border = m.n.bias.view(1, -1, 1, 1)
    padded[:, :, 0:1, :] = padded[:, :, -1:, :] = border
    padded[:, :, :, 0:1] = padded[:, :, :, -1:] = border
    return padded.sigmoid()


BEFORE_PADDING = [
    block("conv, constants", IMAGE, _bordered, lambda: {"a": C2(4, 6, 3), "n": B2(6)}),
    block("conv without bias, constants", IMAGE, _bordered,
          lambda: {"a": C2(4, 6, 3, groups=2, bias=False), "n": B2(6)}),
]  # fmt: skip

BORDERS = [
    _three("two modes on two axes", "C2(4, 4, 1, padding=(1, 0), bias=False)", "nn.Identity()",
           "C2(4, 4, (1, 3), padding=(0, 1), padding_mode='reflect', bias=False)"),
    _three("two constants on two axes", "C2(4, 4, 1, padding=(1, 0))", "B2(4)",
           "C2(4, 4, 1, padding=(0, 1), groups=4)"),
    _three("a border behind taps", "C2(4, 1, 1, padding=(1, 0))", "B2(4)",
           "C2(4, 4, (1, 3), groups=4)"),
    _three("a border behind mixed channels", "C2(4, 4, 3, padding=1)", "B2(4)", "C2(4, 4, 1)"),
    _three("a pointwise kernel that pads", "B2(4)", "C2(4, 4, 1, padding=1)",
           "C2(4, 4, 1, groups=4)"),
    _three("reflected, pointwise inside", "B2(4)",
           "C2(4, 4, 3, padding=1, padding_mode='reflect')", "C2(4, 4, 1)"),
    block("cut and padded in front", IMAGE,
          lambda m, x: m.a(F.pad(x[:, :, 1:, 1:], (1, 0, 1, 0))), lambda: {"a": C2(4, 4, 2)}),
    block("cut and padded behind", IMAGE,
          lambda m, x: m.a(F.pad(x[:, :, :-1, :-1], (0, 1, 0, 1))), lambda: {"a": C2(4, 4, 2)}),
    block("norm, cut on all sides, conv", IMAGE, lambda m, x: m.a(m.n(x)[:, :, 2:-1, :-2]),
          lambda: {"a": C2(4, 4, 2), "n": B2(4)}),
    block("every second from the third on, padded in front", IMAGE,
          lambda m, x: m.a(F.pad(x[:, :, 2::2, 2::2], (1, 0, 1, 0))), lambda: {"a": C2(4, 4, 1)}),
    block("constant, pointwise, padded conv", IMAGE,
          lambda m, x: m.n(m.a(m.b(F.pad(x, (1, 1, 1, 1), value=0.5)))),
          lambda: {"a": C2(4, 4, 3, padding=1), "b": C2(4, 4, 1), "n": B2(4)}),
    block("a kernel that reaches back", IMAGE, lambda m, x: m.a(x) + m.b(F.pad(x, (1, 0, 1, 0))),
          lambda: {"a": C2(4, 6, 1), "b": C2(4, 6, 2)}),
    block("a kernel that reaches back, first", IMAGE,
          lambda m, x: m.b(F.pad(x, (1, 0, 1, 0))) + m.a(x),
          lambda: {"a": C2(4, 6, 1), "b": C2(4, 6, 2)}),
    block("two shifts that agree in one channel", IMAGE,
          lambda m, x: on(m.z(x).relu(), lambda y: m.a(y + m.s.t) + m.b(y + m.s.u)),
          lambda: {"a": C2(4, 6, 3, padding=1), "b": C2(4, 6, 3, padding=1), "s": Shifts(),
                   "z": C2(4, 4, 1)}),
    block("a padded conv of a shifted cat", IMAGE,
          lambda m, x: m.c(torch.cat([m.n(m.a(x)), m.o(m.b(F.relu(x)))], 1) + m.s),
          lambda: {"a": C2(4, 4, 1, groups=4, bias=False), "n": B2(4, affine=False),
                   "b": C2(4, 4, 1, groups=4), "o": B2(4), "c": C2(8, 2, 3, padding=1),
                   "s": scale(8, 1, 1)}),
    block("a conv of a padded cat of one tensor", IMAGE,
          lambda m, x: on(m.z(x).relu(), lambda y: m.c(
              F.pad(torch.cat([y, y], 1), (1, 1, 1, 1), value=0.5))),
          lambda: {"c": C2(8, 2, 3), "z": C2(4, 4, 1)}),
]  # fmt: skip

AVERAGES = [
    *(
        block(f"conv, {pool}", (2, 1, 7, 6), lambda m, x: m.p(m.a(x)),
              lambda pool=pool: {"a": C2(1, 16, 1, bias=False), "p": eval(f"nn.{pool}")})
        for pool in (
            "AvgPool2d(2)", "AvgPool2d((2, 3), 1)", "AvgPool2d(2, divisor_override=3)",
            "AvgPool2d(3, 1, 1)", "AvgPool2d(3, 1, 1, count_include_pad=False)",
            "AvgPool2d(2, ceil_mode=True)", "AvgPool2d(3, 2, 1, ceil_mode=True)",
        )
    ),
    block("wide conv, average", IMAGE, lambda m, x: m.p(m.a(x)),
          lambda: {"a": C2(4, 16, 1, bias=False), "p": nn.AvgPool2d(2, 1)}),
    block("conv, average", (2, 1, 7, 6), lambda m, x: m.p(m.a(x)),
          lambda: {"a": C2(1, 16, 1), "p": nn.AvgPool2d((3, 2), (1, 2))}),
]  # fmt: skip


def _up(source: str) -> nn.ConvTranspose2d:
    return eval(f"nn.ConvTranspose2d({source})")


UPS = (
    "4, 6, 3, 2, 1, 1", "4, 6, 2, 2", "4, 6, 3, (2, 1), groups=2", "4, 4, 3, 2, groups=4",
    "4, 6, 2, 2, bias=False, dilation=2",
)  # fmt: skip

UP_NORM = [
    *(block(f"up {source}, norm", IMAGE, lambda m, x: m.b(m.a(x)),
            lambda s=source: {"a": _up(s), "b": B2(_up(s).out_channels)}) for source in UPS),
    *(block(f"up {source}, multiple", IMAGE, lambda m, x: -0.7 * m.a(x),
            lambda s=source: {"a": _up(s)}) for source in UPS[:3]),
    *(block(f"up {source}, scale", IMAGE, lambda m, x: m.a(x) * m.s,
            lambda s=source: {"a": _up(s), "s": scale(_up(s).out_channels, 1, 1)})
      for source in UPS),
]  # fmt: skip

NORM_UP = [
    *(block(f"scale, up {source}", IMAGE, lambda m, x: m.a(m.z(x) * m.s),
            lambda s=source: {"a": _up(s), "s": scale(4, 1, 1), "z": C2(4, 4, 1)})
      for source in UPS),
    *(block(f"norm, up {source}", IMAGE, lambda m, x: m.a(m.b(x)),
            lambda s=source: {"a": _up(s), "b": B2(4)}) for source in UPS),
]  # fmt: skip

FLAT_UPS = (
    "6, 4, 3", "4, 4, 2, bias=False", "4, 4, (3, 2), padding=(1, 0), groups=2",
    "4, 4, 3, dilation=2, padding=2", "4, 4, 2, dilation=2, output_padding=1",
)  # fmt: skip

UP_SERIES = [
    *(block(f"up {s}, norm, conv", (2, int(s[0]), 7, 6), lambda m, x: m.c(m.b(m.a(x))),
            lambda s=s: {"a": _up(s), "b": B2(4), "c": C2(4, 4, 1)}) for s in FLAT_UPS),
    *(block(f"up {s}, conv", (2, int(s[0]), 7, 6), lambda m, x: m.c(m.a(x)),
            lambda s=s: {"a": _up(s), "c": C2(4, 4, 1)}) for s in FLAT_UPS),
]  # fmt: skip

INTO_LINEAR = [
    *(
        block(f"{conv}, flatten, linear", (2, 4, 8, 6), lambda m, x: m.l(m.a(m.p(x)).flatten(1)),
              lambda conv=conv, size=size, n=n: {
                  "a": eval(conv, {"C2": C2}), "p": nn.AdaptiveAvgPool2d(size),
                  "l": nn.Linear(n, 3)})
        for conv, size, n in (
            ("C2(4, 8, 1)", (2, 3), 48), ("C2(4, 8, (1, 2), bias=False)", (3, 2), 24),
            ("C2(4, 8, 3, padding=1)", (2, 3), 48), ("C2(4, 8, 1, groups=2)", (1, 3), 24),
            ("C2(4, 8, 2, 2, (1, 0))", (3, 4), 32),
        )
    ),
    block("conv over one axis, flatten, linear", (2, 4, 9),
          lambda m, x: m.l(m.a(m.p(x)).flatten(1)),
          lambda: {"a": C1(4, 6, 2), "p": nn.AdaptiveAvgPool1d(3), "l": nn.Linear(12, 3)}),
    block("one channel, flattened in part", (2, 4, 8, 6),
          lambda m, x: m.l(m.a(m.p(x)).flatten(2)),
          lambda: {"a": C2(4, 1, 1), "p": nn.AdaptiveAvgPool2d(2), "l": nn.Linear(4, 1)}),
]  # fmt: skip

COMPUTED = [
    block("a power of a computed constant", IMAGE,
          lambda m, x: m.a(x) * F.leaky_relu(m.s, negative_slope=0.3),
          lambda: {"a": C2(4, 4, 1), "s": scale(4, 1, 1)}),
    block("a computed gate", IMAGE, lambda m, x: torch.maximum(x, m.s.sigmoid()),
          lambda: {"s": scale(4, 1, 1)}),
    block("a computed gate with an option", IMAGE,
          lambda m, x: torch.maximum(x, F.leaky_relu(m.s, negative_slope=0.3)),
          lambda: {"s": scale(4, 1, 1)}),
    block("a gate of two parameters", IMAGE, lambda m, x: torch.maximum(x, m.s * m.t.exp()),
          lambda: {"s": scale(4, 1, 1), "t": scale(4, 1, 1)}),
    block("a gate of a matrix by another", IMAGE, lambda m, x: torch.maximum(x, m.s @ m.t),
          lambda: {"s": scale(7, 7), "t": scale(7, 1)}),
    block("a computed weight", IMAGE, lambda m, x: F.conv2d(x, m.a.weight * m.s, m.a.bias),
          lambda: {"a": C2(4, 4, 3), "s": scale(4, 1, 1, 1)}),
]  # fmt: skip
