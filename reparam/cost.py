"""What a call costs: operations, and multiply-adds per output pixel."""

from dataclasses import dataclass
from math import gcd, prod

from reparam.algebra import sum_grid
from reparam.operators import AvgPool, ConvTranspose, Norm, Pad
from reparam.values import BatchNorm, Constant, Conv, Shape, Sum, Value


@dataclass(frozen=True, order=True)
class Cost:
    """Operations that run, and multiply-adds per pixel of a reference tensor.

    The order is that of preference: fewer operations first.
    """

    operations: float
    madds: float

    def __add__(self, other: "Cost") -> "Cost":
        """Both one after the other."""
        return Cost(self.operations + other.operations, self.madds + other.madds)


FREE = Cost(0, 0)


def cost(value: Value, channels: int, pixels: float = 1, layer: bool = False) -> Cost:
    """The cost of applying a value.

    Args:
        value: what is applied.
        channels: of its output, where the value does not say.
        pixels: of its output, per pixel of the reference tensor.
        layer: whether a scale and shift per channel runs as a convolution.
    """
    match value:
        case Conv():
            operations = _affine_operations(value) if value.affine and not layer else 1
            operations += (value.border is not None) + (not value.symmetric)
            madds = conv_madds(value) + (value.in_channels if value.border is not None else 0)
            return Cost(operations, madds * pixels)
        case BatchNorm():
            return Cost(1, value.mean.numel() * pixels)
        case Sum(coefficients):
            multiples = sum(abs(c) != 1 for c in coefficients) + (coefficients == (-1.0,))
            additions = len(coefficients) - 1
            unary = coefficients == (1.0,)
            return Cost(multiples + additions + unary, (multiples + additions) * channels * pixels)
        case Pad():  # a constant of each channel's own takes a padding, a difference and a sum more
            several = value.border is not None and value.border.numel() > 1
            return Cost(4 if several else 1, 0)
        case Constant() | Shape():
            return FREE
        case AvgPool():
            return Cost(1, channels * prod(value.kernel) * pixels)
        case ConvTranspose():
            return Cost(1, value.weight.numel() / prod(value.stride) * pixels)
        case Norm():  # the affine part is no kernel of its own, but it is not for nothing either
            affine = value.weight is not None or value.bias is not None
            return Cost(1.5 if affine else 1, 0)
        case _:
            return Cost(1, 0)


def _affine_operations(conv: Conv) -> int:
    """A scale and a shift per channel run as a product and a sum, where they do anything."""
    scaled = not bool((conv.weight == 1).all())
    return max(scaled + (conv.bias is not None), 1)


def conv_madds(conv: Conv) -> int:
    """Multiply-adds per output pixel."""
    return conv.weight.numel()


def summed_madds(a: Conv, b: Conv) -> int:
    """Multiply-adds per output pixel of `add(a, b)`, without computing it.

    Raises:
        Declined: if the two can't be added.
    """
    groups = gcd(a.groups, b.groups)
    return a.out_channels * (a.in_channels // groups) * prod(sum_grid(a, b).taps)
