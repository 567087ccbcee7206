"""What a node of the graph computes: frozen, callable values.

A value holds tensors and hyper-parameters and is applied to tensors, so that a
`torch.fx.Graph` whose call targets are values can be printed, linted and interpreted by fx
itself. Channel axes count from the end: for n spatial axes the channel axis is -(n + 1).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

from reparam.cached import cached
from reparam.devices import module_on_cpu
from reparam.functions import Sides, block_linear, convolve, pad


@dataclass(frozen=True, eq=False)
class Value:
    """The base of all values. Equality is identity: values hold tensors."""

    @property
    def __name__(self) -> str:
        """The name that fx derives node names from."""
        return self.__class__.__qualname__.lower()

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Apply the value."""
        raise NotImplementedError(type(self).__name__)  # every kind of value overrides it

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the value holds."""
        return self._tensors

    @cached
    def _tensors(self) -> tuple[Tensor, ...]:
        held = map(vars(self).get, self.__dataclass_fields__)
        return tuple([tensor for tensor in held if isinstance(tensor, Tensor)])


@dataclass(frozen=True, eq=False)
class Conv(Value):
    """A convolution (cross-correlation) over n >= 0 spatial axes; n = 0 is a linear layer.

    Position p of output channel o is
    `bias[o] + sum over i, k of weight[o, i, k] * x[i, stride * p + dilation * k - before]`, where
    `before` is the padding before the axis and x is continued beyond its border by
    `padding_mode`, or in mode "zeros" by the constant `border[i]`.

    Attributes:
        weight: (out, in/groups, *kernel).
        bias: (out,), or None for zero.
        stride, dilation: one per spatial axis.
        padding: per side; a negative one leaves rows out.
        groups: number of independent blocks of channels.
        padding_mode: as torch names them.
        border: (in,), or None for zero.
    """

    weight: Shaped[Tensor, "out in_per_group *kernel"]
    bias: Shaped[Tensor, " out"] | None = None
    stride: tuple[int, ...] = ()
    padding: Sides = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    border: Shaped[Tensor, " in"] | None = None

    def __post_init__(self) -> None:
        """Fill the hyper-parameters that were left out: stride 1, no padding, dilation 1."""
        if self.stride and self.padding and self.dilation:
            return  # as is most often so
        for name, default in (("stride", 1), ("padding", (0, 0)), ("dilation", 1)):
            if not getattr(self, name):
                object.__setattr__(self, name, (default,) * self.n)

    @property
    def n(self) -> int:
        """The number of spatial axes."""
        return self.weight.ndim - 2

    @cached
    def kernel(self) -> tuple[int, ...]:
        """The number of taps on each spatial axis."""
        return tuple(self.weight.shape[2:])

    @property
    def out_channels(self) -> int:
        """The number of output channels."""
        return self.weight.shape[0]

    @property
    def in_channels(self) -> int:
        """The number of input channels."""
        return self.weight.shape[1] * self.groups

    @cached
    def padded(self) -> bool:
        """Whether any side of any axis is padded."""
        return any(side > 0 for sides in self.padding for side in sides)

    @property
    def cropped(self) -> bool:
        """Whether rows are left out at any side: its padding there is negative."""
        return any(side < 0 for sides in self.padding for side in sides)

    @cached
    def symmetric(self) -> bool:
        """Whether torch's own layer pads so: as much before as after, and nothing left out."""
        return not self.cropped and all(before == after for before, after in self.padding)

    @property
    def pointwise(self) -> bool:
        """Whether each output position reads just the same position of the input."""
        one = prod(self.kernel) == 1 and prod(self.stride) == 1
        return one and not self.padded and not self.cropped

    @cached
    def depthwise(self) -> bool:
        """Whether each output channel reads just the input channel of its own index."""
        return self.weight.shape[1] == 1 and self.groups == self.out_channels

    @cached
    def affine(self) -> bool:
        """Whether it is `scale * x + shift`, a number of each per channel."""
        return self.depthwise and self.pointwise

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x, (..., in, *spatial), in the dtype of x."""
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.affine:
            spread = (-1, *(1,) * self.n)
            y = x * weight.reshape(spread)
            return y if bias is None else y + bias.reshape(spread)
        if self.n == 0:
            return block_linear(x, weight, bias, self.groups)
        x = pad(x, self.padding, self.padding_mode, self.border)
        return convolve(x, weight, bias, self.stride, self.dilation, self.groups)


@dataclass(frozen=True, eq=False)
class BatchNorm(Value):
    """Batch normalization by running statistics, exactly as torch computes it.

    Attributes:
        mean, variance: running statistics, (channels,).
        weight, bias: gamma and beta, (channels,), or None for one and zero.
        eps: added to the variance.
        n: number of spatial axes behind the channel axis, None where it is not known.
    """

    mean: Shaped[Tensor, " channels"]
    variance: Shaped[Tensor, " channels"]
    weight: Shaped[Tensor, " channels"] | None
    bias: Shaped[Tensor, " channels"] | None
    eps: float
    n: int | None

    @cached
    def exact_scale(self) -> Tensor:
        """`gamma / sqrt(variance + eps)` in float64, (channels,)."""
        scale = torch.rsqrt(self.variance.double() + self.eps)
        return scale if self.weight is None else scale * self.weight

    @cached
    def exact_shift(self) -> Tensor:
        """`beta - scale * mean` in float64, (channels,)."""
        moved = self.exact_scale * self.mean
        return -moved if self.bias is None else self.bias - moved

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x, (batch, channels, *spatial), in the dtype of x."""
        weight, bias = (
            None if parameter is None else parameter.to(x.dtype)
            for parameter in (self.weight, self.bias)
        )
        mean, variance = self.mean.to(x.dtype), self.variance.to(x.dtype)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)


@dataclass(frozen=True, eq=False)
class Sum(Value):
    """A weighted sum of tensors. With one coefficient it is a multiple; with (1.0,), nothing."""

    coefficients: tuple[float, ...]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Apply to as many tensors as there are coefficients."""
        total: Tensor | None = None
        for coefficient, x in zip(self.coefficients, inputs, strict=True):
            term = x if coefficient == 1 else x * coefficient
            total = term if total is None else total + term
        assert total is not None, "a sum has at least one operand"
        return total


IDENTITY = Sum((1.0,))
"""The value that returns its input."""


@dataclass(frozen=True, eq=False)
class Constant(Value):
    """A tensor, or a number, that no input of the model has a part in."""

    content: Any

    def __call__(self) -> Any:
        """Return it."""
        return self.content


@dataclass(frozen=True, eq=False)
class Shape(Value):
    """The sizes of a tensor, one of them, or their number. That is not reading the tensor.

    Attributes:
        axis: which size; None for all.
        rank: whether it is the number of axes instead.
    """

    axis: int | None = None
    rank: bool = False

    def __call__(self, x: Tensor) -> torch.Size | int:
        """Apply to any tensor."""
        if self.rank:
            return x.ndim
        return x.shape if self.axis is None else x.shape[self.axis]


@dataclass(frozen=True, eq=False)
class Opaque(Value):
    """Any other computation, carried through as it is.

    Attributes:
        target: a function, a module, or the name of a method.
        path: where the module stands in the model.
        reason: why it is not something better known, for the remarks.
        pinned: whether calls must not be moved past it (it writes to a tensor, or reads one that
            is written to).
        pure: whether the result is all it has: no effect, no randomness.
    """

    target: Callable[..., Any] | nn.Module | str
    path: str | None = None
    reason: str | None = None
    pinned: bool = False
    pure: bool = False

    def widened(self) -> "Opaque":
        """The same, able to take float64 on the CPU: a module's own parameters may be elsewhere."""
        if not isinstance(self.target, nn.Module):
            return self
        return replace(self, target=module_on_cpu(copy.deepcopy(self.target)).double())

    @property
    def __name__(self) -> str:
        """The name of what is called."""
        if isinstance(self.target, str):
            return self.target
        if isinstance(self.target, nn.Module):
            return type(self.target).__name__.lower()
        return getattr(self.target, "__name__", type(self.target).__name__)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call the target."""
        if isinstance(self.target, str):
            return getattr(inputs[0], self.target)(*inputs[1:], **options)
        return self.target(*inputs, **options)


@dataclass(frozen=True, eq=False)
class Layout(Opaque):
    """A rearrangement of a tensor, which commutes with whatever treats its channels one by one.

    Attributes:
        kind: "reshape", "permute", "select" or "slice"; "mean" and "mean out", over axes that are
            kept or not, and "pool", which average each channel by itself.
        axes: of a permutation, counted from the end: output axis -j reads input axis axes[-j]; of
            a mean, those that it runs over.
        index: of a selection or slice, (axis from the end, first position).
        length: of a slice.
    """

    kind: str = field(default="reshape", kw_only=True)
    axes: tuple[int, ...] = field(default=(), kw_only=True)
    index: tuple[int, int] = field(default=(0, 0), kw_only=True)
    length: int = field(default=1, kw_only=True)
