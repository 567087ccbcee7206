"""Check a rewrite as it happens: old and new expression on random tensors, in float64.

Leaves get sizes at which every border shows: smaller than the kernels, and large enough for an
interior. What can't be evaluated is no evidence, and no evidence is a failure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from reparam.arguments import found, mapped
from reparam.errors import Declined, Rejected, first_line
from reparam.graph import INPUT, Apply, Call, Expression, leaves
from reparam.operators import AvgPool
from reparam.sizes import Assignment, Size, Symbol
from reparam.values import BatchNorm, Conv, Layout, Opaque, Shape, Sum, Value
from reparam.verify import EXACT, relative_difference

SEED = 20230814
"""The leaves are the same in every run, so that a compile is reproducible."""

DRAWN = 2**18
"""How many numbers are drawn once for all checks. What a check needs beyond, it draws itself."""


def check(rewrite: Mapping[Call, Expression]) -> float:
    """The largest relative difference that a rewrite makes, over all sizes tried.

    Raises:
        Rejected: if the two sides differ by more than rounding, or the new one fails.
        Declined: if the old one does not run by itself.
    """
    cut = _cut(rewrite)
    computed = {*rewrite, *_between(rewrite, cut)}
    known = _leaves(rewrite, cut, computed)
    window = _window(rewrite, cut, computed)
    numbers, wide = _Numbers(), dict[Value, Value]()
    worst, interior = 0.0, False
    # Where these are too small for a pool in between, or not what a linear layer reads whole.
    others = (window.large, *_flat_sizes(rewrite, known))
    for sizes in (*window.sizes, *others):
        if interior and sizes in others:
            break
        tensors = _draw(known, sizes, numbers, window.images)
        try:
            old = list(map(_Evaluation(tensors, wide), rewrite))
        except RuntimeError:
            continue  # too small for a kernel; the larger size must do
        if any(isinstance(result, Tensor) and not result.numel() for result in old):
            continue  # nothing is left of it
        try:
            new = list(map(_Evaluation(tensors, wide), rewrite.values()))
        except Exception as error:
            raise Rejected(f"its replacement fails: {first_line(error)}") from error
        interior = True
        for before, after in zip(old, new, strict=True):
            same = isinstance(before, Tensor) and isinstance(after, Tensor)
            difference = relative_difference(before, after) if same else float(before != after)
            if not difference <= EXACT:
                raise Rejected(f"its replacement differs by {difference:.1e}, so it was not done")
            worst = max(worst, difference)
    if not interior:
        raise Declined("it can't be checked, since what it replaces does not run by itself")
    return worst


def _cut(rewrite: Mapping[Call, Expression]) -> set[Call]:
    """The tensors that the new side is computed from, and that are given to the old side too."""
    return {call for call in leaves(rewrite.values()) if call not in rewrite and not _sized(call)}


def _sized(call: Call) -> bool:
    """Whether the result is a size or several, which follow from the shapes of tensors."""
    return isinstance(call.value, Shape) or isinstance(call.facts, Size | tuple)


def _between(rewrite: Mapping[Call, Expression], cut: set[Call]) -> set[Call]:
    """The calls that the old side computes from the cut, by way of tensors: none may be drawn."""
    if not cut:
        return set()
    first = min(cut)
    above: set[Call] = set()
    pending = list(rewrite)
    while pending:
        call = pending.pop()
        if call not in above and call not in cut and not _sized(call) and first < call:
            above.add(call)
            pending.extend(call.inputs)
    between: set[Call] = set()
    for call in sorted(above):
        if any(source in cut or source in between for source in call.inputs):
            between.add(call)
    return between


def _leaves(rewrite: Mapping[Call, Expression], cut: set[Call], computed: set[Call]) -> list[Call]:
    """The calls that tensors are drawn for: what both sides are computed from."""
    drawn = set(cut)
    seen: set[Call] = set()
    pending = [*rewrite, *(call for call in leaves(rewrite.values()) if _sized(call))]
    while pending:
        call = pending.pop()
        if call in seen or call in cut:
            continue
        seen.add(call)
        if (
            isinstance(call.value, Shape)
            and _exact(call.inputs[0])
            and call.inputs[0] not in computed
        ):
            drawn.update(call.inputs)  # only its sizes count, whatever it is computed from
            continue
        opaque = isinstance(call.value, Opaque) and not isinstance(call.value, Layout)
        if call.value is INPUT or (opaque and call not in computed and call.shape is not None):
            drawn.add(call)
        else:
            pending.extend(call.inputs)
    return sorted(drawn)


def _exact(call: Call) -> bool:
    """Whether all axes of a tensor are known."""
    return call.shape is not None and call.shape.exact


@dataclass(frozen=True)
class _Window:
    """What either side sees of a tensor at once.

    Attributes:
        reach: the longest kernel, dilation included, or the widest padding.
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


def _window(rewrite: Mapping[Call, Expression], cut: set[Call], computed: set[Call]) -> _Window:
    longest, stride, linear = 1, 1, True
    kernels: dict[type, list[Any]] = {Call: [], Apply: []}
    seen: set[Call | Apply] = set()
    pending: list[Call | Apply] = [*rewrite, *rewrite.values()]
    while pending:
        part = pending.pop()
        if part in cut or part in seen or isinstance(part.value, Shape):
            continue
        seen.add(part)
        linear &= isinstance(part.value, Conv | BatchNorm | Sum)
        if isinstance(part.value, Conv):
            # A kernel of one tap that is padded or cropped has a border as well.
            sides = [abs(side) for sides in part.value.padding for side in sides]
            longest = max(longest, *_reach(part.value), *sides, 1)
            stride = max(stride, *part.value.stride, 1)
            if not part.value.pointwise:
                kernels[type(part)].append(_span(part.value))
        elif isinstance(part.value, AvgPool):
            longest = max(longest, *part.value.kernel)
            stride = max(stride, *part.value.stride)
        if isinstance(part, Apply) or not isinstance(part.value, Opaque) or part in computed:
            options = dict(part.options) if isinstance(part, Apply) else {}
            pending.extend(found((part.inputs, options), (Call, Apply)))
    old, new = kernels[Call], kernels[Apply]
    alike = linear and stride == 1 and len(old) == 1 and old == new
    return _Window(longest, stride, linear, alike)


def _span(conv: Conv) -> tuple[Any, ...]:
    """Which pixels of its input each pixel is computed from, those behind the border included."""
    border = None if conv.border is None else id(conv)
    return conv.kernel, conv.stride, conv.padding, conv.dilation, conv.padding_mode, border


def _flat_sizes(rewrite: Mapping[Call, Expression], drawn: list[Call]) -> set[tuple[int, int]]:
    """Sizes of images that a linear layer reads whole: so many pixels that it takes them."""
    inputs = {call.value.in_channels for call in rewrite if isinstance(call.value, Conv)}
    axes = [call.shape.axes for call in drawn if call.shape is not None and call.shape.exact]
    channels = {sizes[1].factor for sizes in axes if len(sizes) > 2 and sizes[1].known}
    return {(n // c, 1) for n in inputs for c in channels if n % c == 0}


def _reach(conv: Conv) -> list[int]:
    return [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel, strict=True)]


@cache
def _drawn() -> Tensor:
    """The first numbers of every check: to draw them takes longer than all else of a small one."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(DRAWN, generator=generator, dtype=torch.float64)


class _Numbers:
    """The random numbers of one check, each given out once."""

    def __init__(self) -> None:
        self._used = 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        first, self._used = self._used, self._used + prod(shape)
        if self._used <= DRAWN:
            return _drawn()[first : self._used].reshape(shape)
        generator = torch.Generator().manual_seed(SEED + self._used)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


def _draw(
    calls: list[Call], sizes: tuple[int, int], numbers: _Numbers, images: int
) -> dict[Call, Tensor]:
    """Random float64 tensors of the calls' shapes; equal symbols get equal sizes."""
    batch = {
        c.shape.axes[0].symbols[0]
        for c in calls
        if c.shape and c.shape.exact and c.shape.axes and c.shape.axes[0].symbols
    }
    given: dict[Symbol, int] = dict.fromkeys(batch, images)
    assignment = Assignment(sizes, given)
    every = {s for c in calls if c.shape for axis in c.shape.axes for s in axis.symbols}
    for symbol in sorted(every, key=lambda symbol: symbol.serial):
        assignment.number(symbol)
    tensors: dict[Call, Tensor] = {}
    for call in calls:
        # Of a tensor that nothing is known of, any shape is a test, if what reads it takes it.
        axes = (
            (images, 3, *sizes) if call.shape is None else tuple(map(assignment, call.shape.axes))
        )
        shape = axes if call.shape is None or call.shape.exact else (1, *axes)
        tensors[call] = numbers(shape).to(_device(call))
    return tensors


def _device(call: Call) -> torch.device:
    held = (t for c in (call, *call.readers) for t in c.value.tensors())
    return next((t.device for t in held), torch.device("cpu"))


class _Evaluation:
    """Evaluates calls and expressions from given tensors, each once."""

    def __init__(self, tensors: dict[Call, Tensor], wide: dict[Value, Value]) -> None:
        """`wide` keeps values in float64, from one size to the next."""
        self._wide = wide
        # A value of anyone's may write to what it is given.
        self._results: dict[Any, Any] = {call: drawn.clone() for call, drawn in tensors.items()}

    def __call__(self, part: Call | Apply) -> Any:
        if part not in self._results:
            if isinstance(part, Call):
                args, kwargs = mapped(
                    (part.node.args, part.node.kwargs), fx.Node, lambda node: self(Call(node))
                )
            else:
                args, kwargs = mapped((part.inputs, dict(part.options)), (Call, Apply), self)
            if isinstance(part.value, Opaque) and not isinstance(part.value, Layout):
                # A module that works in place writes to what others may read.
                args, kwargs = mapped((args, kwargs), Tensor, Tensor.clone)
            with torch.no_grad():
                self._results[part] = self._widened(part.value)(*args, **kwargs)
        return self._results[part]

    def _widened(self, value: Value) -> Value:
        if isinstance(value, Opaque):
            return value.widened()
        if isinstance(value, BatchNorm | Conv) and value not in self._wide:
            held = {name: getattr(value, name) for name in value.__dataclass_fields__}
            wide = {name: t.double() for name, t in held.items() if isinstance(t, Tensor)}
            self._wide[value] = replace(value, **wide)
        return self._wide.get(value, value)
