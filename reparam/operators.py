"""Values that run as torch's own operators.

Padding, slicing and average pooling are convolutions too, but of a width that is not known until
they stand beside one; a transposed convolution and a norm have laws of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

from reparam.functions import Sides, pad
from reparam.values import Value

AVERAGES: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
TRANSPOSED: tuple[Callable[..., Tensor], ...] = (
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
"""The torch functions by number of spatial axes, less one."""


@dataclass(frozen=True, eq=False)
class Pad(Value):
    """A tensor continued beyond its border.

    Attributes:
        padding: per side of the last axes, first axis first.
        padding_mode: as convolutions name them.
        border: the constant of mode "zeros", (1,) or (channels,); None for zero.
    """

    padding: Sides
    padding_mode: str = "zeros"
    border: Shaped[Tensor, " channels"] | None = None

    @property
    def n(self) -> int:
        """The number of spatial axes."""
        return len(self.padding)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x, (..., channels, *spatial)."""
        return pad(x, self.padding, self.padding_mode, self.border)


@dataclass(frozen=True, eq=False)
class Slice(Value):
    """Some rows of the last axes: a crop, a subsampling.

    Attributes:
        start: the first row, one per spatial axis.
        cut: how many rows at the end are left out, at least.
        stride: the distance of the rows.
    """

    start: tuple[int, ...]
    cut: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def n(self) -> int:
        """The number of spatial axes."""
        return len(self.start)

    @property
    def index(self) -> tuple[Any, ...]:
        """The index that torch takes."""
        axes = zip(self.start, self.cut, self.stride, strict=True)
        return (..., *(slice(first, -last if last else None, step) for first, last, step in axes))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x, (..., channels, *spatial)."""
        return x[self.index]


@dataclass(frozen=True, eq=False)
class AvgPool(Value):
    """Average pooling.

    Attributes:
        kernel, stride, padding: one per spatial axis.
        ceil_mode: whether a window may begin inside and end outside of the padded image.
        count_include_pad: whether padding counts in the divisor.
        divisor: in the place of the number of elements, if given.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None

    @property
    def n(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x, (..., channels, *spatial)."""
        options = (self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        divisor = () if self.n == 1 else (self.divisor,)
        return AVERAGES[self.n - 1](x, *options, *divisor)


@dataclass(frozen=True, eq=False)
class Cat(Value):
    """Tensors side by side.

    Attributes:
        n: number of axes behind the one along which they are joined.
    """

    n: int

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Apply to tensors that differ in that axis at most."""
        return torch.cat(inputs, -self.n - 1)


@dataclass(frozen=True, eq=False)
class ConvTranspose(Value):
    """A transposed convolution.

    Attributes:
        weight: (in, out/groups, *kernel).
        bias: (out,), or None for zero.
        stride, padding, output_padding, dilation: one per spatial axis.
        groups: number of independent blocks of channels.
    """

    weight: Shaped[Tensor, "in out_per_group *kernel"]
    bias: Shaped[Tensor, " out"] | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def n(self) -> int:
        """The number of spatial axes."""
        return self.weight.ndim - 2

    @property
    def out_channels(self) -> int:
        """The number of output channels."""
        return self.weight.shape[1] * self.groups

    @property
    def in_channels(self) -> int:
        """The number of input channels."""
        return self.weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x, (batch, in, *spatial), in the dtype of x."""
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return TRANSPOSED[self.n - 1](
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups,
            self.dilation,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Norm(Value):
    """A normalization by statistics of the input itself, and a scale and shift per channel.

    Attributes:
        kind: over the last axis ("layer", "rms"), or over groups of channels ("group").
        channels: how many.
        weight, bias: gamma and beta, (channels,), or None for one and zero.
        eps: added to the variance; None for torch's choice by dtype.
        groups: of a group norm.
    """

    kind: Literal["layer", "group", "rms"]
    channels: int
    weight: Shaped[Tensor, " channels"] | None
    bias: Shaped[Tensor, " channels"] | None
    eps: float | None
    groups: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x, (..., channels), or (batch, channels, ...) of a group norm."""
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        if self.kind == "rms":
            return F.rms_norm(x, (self.channels,), weight, self.eps)
        eps = 1e-5 if self.eps is None else self.eps
        if self.kind == "group":
            return F.group_norm(x, self.groups, weight, bias, eps)
        return F.layer_norm(x, (self.channels,), weight, bias, eps)


Operator: TypeAlias = Pad | Slice | AvgPool | Cat | ConvTranspose | Norm
"""The values of this module."""
