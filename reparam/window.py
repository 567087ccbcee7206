"""How far the two sides of a rewrite see, and so the sizes at which every border shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from torch import nn

from reparam.arguments import found
from reparam.evaluation import Operands
from reparam.functions import Sides
from reparam.graph import Apply, Call
from reparam.operators import AvgPool, ConvTranspose, Pad, Slice
from reparam.residue import UnmodelledError
from reparam.values import BatchNorm, Conv, Layout, Opaque, Shape, Sum, Value

FARTHEST = 32
"""How far images are drawn at most, for a number that a function is given: a shift, a bound."""

SPATIAL = ("kernel_size", "stride", "padding", "dilation")
"""What pooling modules call how far they see."""


@dataclass(frozen=True)
class Window:
    """What either side sees of a tensor at once.

    Attributes:
        reach: the longest kernel, dilation included, or the widest border.
        stride: the largest one.
        linear: whether convolutions, batch norms and sums are all that is computed: then no image
            of a batch has a part in the result of another.
        alike: whether, moreover, each side has just one kernel that is not 1×1, both with the same
            padding and dilation, and nothing is strided. At the larger size each of its taps is
            then seen inside and behind either border, and no smaller one shows more.
    """

    reach: int
    stride: int
    linear: bool
    alike: bool

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Heights and widths: smaller than the kernels, and large enough for an interior."""
        if self.linear and self.reach == self.stride == 1:
            return ((2, 3),)
        reach, far = max(self.reach, 3), max(self.reach, 3) + self.stride
        large = [(size, size + 1) for size in range(far, far + self.stride)]  # with every remainder
        return tuple(large) if self.alike else ((reach // 2 + 1, reach - 1), *large)

    @property
    def large(self) -> tuple[int, int]:
        """A height and width for what knows no window of its own."""
        return 4 * max(self.reach, 3), 4 * max(self.reach, 3) + 1

    @property
    def images(self) -> int:
        """Images of a batch: one, where none can have a part in the result of another."""
        return 1 if self.linear else 2


def window(operands: Operands) -> Window:
    """What the sides of a rewrite see."""
    longest, stride, linear = 1, 1, True
    kernels: dict[type, list[Any]] = {Call: [], Apply: []}
    seen: set[Call | Apply] = set()
    pending: list[Call | Apply] = [*operands.rewrite, *operands.rewrite.values()]
    while pending:
        part = pending.pop()
        if part in operands.cut or part in seen or isinstance(part.value, Shape):
            continue
        seen.add(part)
        linear &= isinstance(part.value, Conv | BatchNorm | Sum)
        far, step = _view(part)
        longest = max(longest, min(far, FARTHEST) if _given(part) else far)
        stride = max(stride, step)
        if isinstance(part.value, Conv) and not part.value.pointwise:
            kernels[type(part)].append(_span(part.value))
        pending.extend(_read(part, operands))
    old, new = kernels[Call], kernels[Apply]
    alike = linear and stride == 1 and len(old) == 1 and old == new
    return Window(longest, stride, linear, alike)


def _read(part: Call | Apply, operands: Operands) -> list[Call | Apply]:
    """What a part of either side is computed from, as far as both sides compute it."""
    opaque = isinstance(part.value, Opaque) and part not in operands.computed
    if isinstance(part, Call) and opaque:
        return []
    options = dict(part.options) if isinstance(part, Apply) else {}
    return found((part.inputs, options), (Call, Apply))


def tried(
    sizes: Sequence[tuple[int, ...]], seen: Window, operands: Operands
) -> Iterator[tuple[int, tuple[int, ...], bool]]:
    """What to try: images, sizes, and whether it is only for where none of those before runs.

    Sizes may be too small for a pool in between, or not what a linear layer reads whole.
    """
    yield from ((seen.images, several, False) for several in sizes)
    if seen.images > 1:  # an axis of one is another case for what drops it
        yield 1, sizes[-1], False
    yield seen.images, seen.large, True
    yield from ((seen.images, several, True) for several in flat_sizes(operands))


def swept(operands: Operands) -> tuple[tuple[int, ...], ...]:
    """Sizes of two axes, and of three, at which every class of borders is met on each of them.

    A window that is no larger than an axis reaches beyond one end of it at most. So what both sides
    see at once tells how long an axis has to be, and the strides, how many lengths more.
    """
    whole = [
        _extent(part, operands, {}) for part in (*operands.rewrite, *operands.rewrite.values())
    ]
    reach, stride = (max(numbers) for numbers in zip(*whole, strict=True))
    longest = reach + stride
    # Axes are treated one by one: what shows at a size of one does, whatever the other's is. But
    # two that are exchanged look alike where one of them is of one pixel, or both are of a size.
    pairs = [(size, size % longest + 1) for size in range(1, longest + 1)]
    return ((1, 1), *pairs, (longest, longest), (longest + 1, longest + 2, longest + 3))


def _extent(
    part: Call | Apply, operands: Operands, known: dict[Call | Apply, tuple[int, int]]
) -> tuple[int, int]:
    """How many pixels of what is drawn one pixel sees, and how far they are from the next one's."""
    if part in operands.cut or part in operands.drawn or isinstance(part.value, Shape):
        return 1, 1
    if part not in known:
        inputs = [_extent(source, operands, known) for source in _read(part, operands)]
        reach, stride = (max(numbers) for numbers in zip((1, 1), *inputs, strict=True))
        far, step = _view(part)
        if far > FARTHEST and _given(part):
            name = getattr(part.value, "__name__", "a function")
            raise UnmodelledError(f"{name} is given {far - 1}, and no images so large were tried")
        known[part] = reach + stride * (far - 1), stride * step
    return known[part]


def _given(part: Call | Apply) -> list[int]:
    """The numbers that a function which nothing else is known of is given; up to these it may see.

    A rearrangement says itself what it does.
    """
    value = part.value
    if not isinstance(value, Opaque) or isinstance(value, Layout):
        return []
    if isinstance(value.target, nn.Module):
        return found([getattr(value.target, name, None) for name in SPATIAL], int)
    if isinstance(part, Call):
        return found((part.node.args, part.node.kwargs), int)
    return found((part.inputs, dict(part.options)), int)


def _view(part: Call | Apply) -> tuple[int, int]:
    """How many pixels one pixel of the result sees, and how far they are from the next one's.

    A border is seen as far as it is wide, and what is cut off at both ends is seen past.
    """
    value: Value = part.value
    match value:
        case Conv():
            wide = max([*_reach(value), *(side for pair in value.padding for side in pair), 1])
            return wide + _cropped(value.padding), max([*value.stride, 1])
        case AvgPool():
            return max(*value.kernel, *value.padding), max(value.stride)
        case Pad():
            return max(1, *(side for pair in value.padding for side in pair)) + 1 + _cropped(
                value.padding
            ), 1
        case Slice():
            cuts = zip(value.start, value.cut, strict=True)
            return max(start + cut for start, cut in cuts) + 1, max(value.stride)
        case ConvTranspose():  # between two pixels that it reads lie as many results as its stride
            kernel = value.weight.shape[2:]
            axes = zip(value.dilation, kernel, value.padding, value.stride, strict=True)
            return max(ceil((d * (k - 1) + 2 * side) / s) for d, k, side, s in axes) + 1, 1
        case _:
            return max((abs(number) + 1 for number in _given(part)), default=1), 1


def _cropped(padding: Sides) -> int:
    """How much is cut off at both ends of an axis, at most: padding that is negative."""
    return max((max(-low, 0) + max(-high, 0) for low, high in padding), default=0)


def _span(conv: Conv) -> tuple[Any, ...]:
    """Which pixels of its input each pixel is computed from, those behind the border included."""
    border = None if conv.border is None else id(conv)
    return conv.kernel, conv.stride, conv.padding, conv.dilation, conv.padding_mode, border


def flat_sizes(operands: Operands) -> set[tuple[int, int]]:
    """Sizes of images that a linear layer reads whole: so many pixels that it takes them."""
    inputs = {call.value.in_channels for call in operands.rewrite if isinstance(call.value, Conv)}
    axes = [
        call.shape.axes for call in operands.drawn if call.shape is not None and call.shape.exact
    ]
    channels = {sizes[1].factor for sizes in axes if len(sizes) > 2 and sizes[1].known}
    return {(n // c, 1) for n in inputs for c in channels if n % c == 0}


def _reach(conv: Conv) -> list[int]:
    return [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel, strict=True)]
