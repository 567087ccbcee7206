"""Follow channels through reshapes, permutations, selections and slices.

Each axis of a tensor is a product of factors, most significant first. A factor either counts
through channels of the tensor that the track began at, with a stride, or through anything else.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reparam import known
from reparam.devices import CPU
from reparam.errors import Declined, require
from reparam.facts import TensorFacts
from reparam.graph import Call
from reparam.operators import AvgPool, Slice
from reparam.sizes import ONE, Size, product
from reparam.values import Constant, Conv, Layout, Opaque


@dataclass(frozen=True)
class Factor:
    """A part of an axis: its size, and by how many channels a step moves; 0 for none."""

    size: Size
    stride: int = 0


@dataclass(frozen=True)
class Track:
    """Where the channels of a tensor are in one that was rearranged from it.

    Attributes:
        axes: the factors of each axis.
        first: the channel at index 0 of all of them.
    """

    axes: tuple[tuple[Factor, ...], ...]
    first: int = 0

    @staticmethod
    def start(shape: TensorFacts, n: int) -> "Track":
        """The track of a tensor whose channel axis stands before n spatial axes."""
        require(shape.exact, "the number of axes of its input is not known")
        channel = len(shape.axes) - n - 1
        require(shape.axes[channel].known, "the number of channels is not known")
        axes = tuple(
            (Factor(size, 1 if axis == channel else 0),) for axis, size in enumerate(shape.axes)
        )
        return Track(axes)

    def through(self, call: Call) -> "Track":
        """The track after one more layout.

        Raises:
            Declined: if it can't be followed.
        """
        layout = call.value
        pool = isinstance(layout, Layout) and layout.kind == "pool"
        if isinstance(layout, Opaque) and (pool or known.kind(layout.target) == "max_pool"):
            for axis in range(-known.pooled_axes(layout.target, len(self.axes)), 0):
                self._require_free(axis)
        if not isinstance(layout, Layout):
            return self._pooled(call)  # it acts on each channel by itself, in its place
        match layout.kind:
            case "permute":
                kept = len(self.axes) - len(layout.axes)
                order = [*range(kept), *(axis % len(self.axes) for axis in layout.axes)]
                return Track(tuple(self.axes[axis] for axis in order), self.first)
            case "select":
                axis, index = layout.index
                position = axis % len(self.axes)
                rest = self.axes[:position] + self.axes[position + 1 :]
                return Track(rest, self.first + self._step(position) * index)
            case "slice":
                axis, start = layout.index
                position = axis % len(self.axes)
                step = self._step(position)
                part = (Factor(Size(layout.length), step),)
                axes = (*self.axes[:position], part, *self.axes[position + 1 :])
                return Track(axes, self.first + step * start)
            case "mean" | "mean out":
                gone = {axis % len(self.axes) for axis in layout.axes}
                for axis in gone:
                    self._require_free(axis)
                kept = ((Factor(ONE),),) if layout.kind == "mean" else ()
                averaged = [kept if a in gone else (f,) for a, f in enumerate(self.axes)]
                return Track(tuple(f for parts in averaged for f in parts), self.first)
            case "pool":
                return self._pooled(call)
            case _:
                require(call.shape is not None, "its shape is not known", call.name)
                assert call.shape is not None
                return Track(_regrouped(self.axes, call.shape.axes), self.first)

    def _pooled(self, call: Call) -> "Track":
        """The track after an average over windows of the axes whose size it changes."""
        require(call.shape is not None, "its shape is not known", call.name)
        assert call.shape is not None
        axes: list[tuple[Factor, ...]] = []
        for position, size in enumerate(call.shape.axes):
            factors = self.axes[position]
            if any(factor.stride for factor in factors):
                same = product(tuple(factor.size for factor in factors)) == size
                require(same, "channels are mixed with each other")
                axes.append(factors)
            else:
                axes.append((Factor(size),))
        return Track(tuple(axes), self.first)

    def _require_free(self, position: int) -> None:
        """Refuse to average over channels."""
        mixed = any(factor.stride for factor in self.axes[position])
        require(not mixed, "channels are mixed with each other")

    def _step(self, position: int) -> int:
        """The stride of an axis of one factor."""
        factors = [f for f in self.axes[position] if f.size != ONE]
        require(len(factors) <= 1, "channels are mixed with other axes")
        return factors[0].stride if factors else 0

    def channels(self, spread: bool = False) -> Tensor:
        """The channel of each index along the channel factors: one axis for each axis here.

        With `spread`, an axis of channels may run over a known number of positions as well.
        """
        grid = torch.zeros((1,) * len(self.axes), dtype=torch.int64, device=CPU) + self.first
        for axis, factors in enumerate(self.axes):
            if not any(factor.stride for factor in factors):
                continue
            fixed = all(f.stride or (spread and f.size.known) for f in factors)
            require(fixed, "channels are mixed with other axes")
            index = torch.zeros((), dtype=torch.int64, device=CPU)
            for factor in factors:
                steps = torch.arange(factor.size.factor, device=CPU) * factor.stride
                index = (index[..., None] + steps).flatten() if index.ndim else steps
            grid = grid + index.reshape(-1, *(1,) * (len(self.axes) - axis - 1))
        return grid


def rearrangements(call: Call) -> tuple[list[Call], Call]:
    """The rearrangements that end in a call, the first one first, and what they began with."""
    chain: list[Call] = []
    while isinstance(call.value, Layout):
        chain.insert(0, call)
        call = call.inputs[0]
    return chain, call


def carries(call: Call, scale: Conv) -> bool:
    """Whether what scales channels can pass a call: it rearranges, averages or picks each alone.

    Averages have weights that sum to one. A maximum commutes with positive scales and with shifts,
    a ReLU with positive scales.
    """
    value = call.value
    if isinstance(value, Opaque) and not isinstance(value, Layout):
        others = [x for x in call.inputs[1:] if not isinstance(x.value, Constant)]
        if others or call.shape is None or scale.weight.is_meta:
            return False
        positive = bool((scale.weight > 0).all())
        still = scale.bias is None or not bool(scale.bias.any())
        maximum = known.kind(value.target) == "max_pool"
        return positive and (maximum or (still and known.homogeneous(value.target)))
    if isinstance(value, AvgPool):
        return value.divisor is None and not any(value.padding)
    return isinstance(value, Layout | Slice)


def _regrouped(
    axes: tuple[tuple[Factor, ...], ...], sizes: tuple[Size, ...]
) -> tuple[tuple[Factor, ...], ...]:
    """The same factors in order, split among axes of these sizes."""
    left = [factor for factors in axes for factor in factors if factor.size != ONE]
    grouped: list[tuple[Factor, ...]] = []
    for size in sizes:
        if not any(factor.stride for factor in left):
            grouped.append((Factor(size),))  # however it is made up: there are no channels in it
            continue
        taken: list[Factor] = []
        wanted = size
        while wanted != ONE:
            if taken and not any(factor.stride for factor in left):
                taken.append(Factor(wanted))
                break
            factor = left.pop(0)
            rest = wanted.divided_by(factor.size)
            if rest is None:
                high, low = _split(factor, wanted)
                left.insert(0, low)
                factor, rest = high, ONE
            taken.append(factor)
            wanted = rest
        grouped.append(tuple(taken) or (Factor(ONE),))
    lost = any(factor.stride for factor in left)
    require(not lost, "its shape is not known well enough")
    return tuple(grouped)


def _split(factor: Factor, high: Size) -> tuple[Factor, Factor]:
    """A factor as one of size `high` and what is left of it, which varies faster."""
    low = factor.size.divided_by(high)
    if low is None:
        raise Declined("channels are mixed with other axes")
    return Factor(high, factor.stride * (low.factor if factor.stride else 0)), replace(
        factor, size=low
    )
