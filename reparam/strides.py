"""Results that no longer lie in memory as they did, since what laid them out anew is gone.

`bn(x.transpose(1, 2)).view(n, -1)` works because a batch norm returns new memory in order; folded
into what made x, it leaves a view of no `view`. A reshape is the same, and copies where it must.
"""

from collections.abc import Iterable
from typing import Any

from torch import fx

from reparam import known
from reparam.arguments import found, mapped
from reparam.capture import Capture, Source
from reparam.effects import fresh_result
from reparam.graph import Call
from reparam.known import kind
from reparam.memory import fresh
from reparam.values import Constant, Conv, Layout, Opaque, Sum

COPYING = {"view": "reshape", "view_as": "reshape_as"}
"""What does the same of any tensor as of one that lies in order."""


ORDERED, PERMUTED, GAPPED = range(3)
"""How a tensor lies: as whatever makes new memory has it; its axes rearranged; with gaps."""

READING = {
    "as_strided", "view_as_complex", "view_as_real", "is_contiguous", "stride", "storage_offset",
}  # fmt: skip
"""What asks how a tensor lies."""

ELEMENTWISE = ("pointwise", "elementwise", "clamp")
"""What lets axes lie as they do in its input, and closes gaps."""


class Strides:
    """Which results may lie otherwise than in the model, told call by call."""

    def __init__(self, capture: Capture) -> None:
        """Start with none."""
        self._capture = capture
        self._lies: dict[fx.Node, int] = {}
        self._loose: set[fx.Node] = set()
        self._read: dict[fx.Node, set[fx.Node]] = {}

    def note(self, call: Call) -> None:
        """Tell of a call; of what it reads, it was told before."""
        source = call.node.meta.get("traced")
        elementwise = _elementwise(call)
        below = max(map(self._how, call.inputs), default=ORDERED)
        unwritten = (
            source is None and isinstance(call.value, Sum) and call.value.coefficients == (1.0,)
        )
        if unwritten:  # it is written as its input
            self._lies[call.node] = below
        elif fresh(call.value) or isinstance(call.value, Constant):
            self._lies[call.node] = min(below, PERMUTED) if elementwise else ORDERED
        elif isinstance(call.value, Layout) and call.value.kind in ("permute", "reshape"):
            turned = PERMUTED if call.value.kind == "permute" else ORDERED
            self._lies[call.node] = max(below, turned)
        else:
            self._lies[call.node] = GAPPED
        pairs = zip(source.inputs, call.inputs, strict=True) if isinstance(source, Source) else ()
        moved = {now.node for traced, now in pairs if self._changed(traced, now)}
        moved |= {x.node for x in call.inputs if x.node in self._loose}
        keeps = elementwise or not fresh(call.value)
        if keeps and moved:
            self._loose.add(call.node)
        if moved and isinstance(call.value, Opaque) and _reads_strides(call):
            self._read[call.node] = moved

    def method(self, call: Call, name: str) -> str:
        """The method to call: one that takes what the inputs have become."""
        moved = call.node in self._loose or "traced" not in call.node.meta
        return COPYING.get(name, name) if moved and call.node not in self._read else name

    def to_order(self, call: Call) -> set[fx.Node]:
        """The inputs of a call that have to lie in order, as they did, for it to do the same."""
        return self._read.get(call.node, set())

    def returned(self, results: fx.Node) -> set[fx.Node]:
        """The results of the model that may not lie as they did, by the node that returns them."""
        (own,) = self._capture.graph.find_nodes(op="output")
        pairs = zip(found(own.args, fx.Node), found(results.args, fx.Node), strict=True)
        return {
            now
            for traced, now in pairs
            # What is not known to be a tensor may have no memory.
            if (now in self._loose and Call(now).shape is not None)
            or self._changed(traced, Call(now))
        }

    def _changed(self, traced: fx.Node, now: Call) -> bool:
        """Whether new memory has become what lies otherwise."""
        source = now.node.meta.get("traced")
        if (isinstance(source, Source) and source.node is traced) or traced.op == "get_attr":
            return False
        module = traced.op == "call_module"
        called = self._capture.attribute(str(traced.target)) if module else traced.target
        allowed = PERMUTED if kind(called) in ELEMENTWISE else ORDERED
        return self._how(now) > allowed and fresh_result(traced, self._capture)

    def _how(self, call: Call) -> int:
        """How a result lies; sizes, which are told of later, are no tensors."""
        return self._lies.get(call.node, GAPPED if call.node.op == "placeholder" else ORDERED)


def _reads_strides(call: Call) -> bool:
    """Whether what a call does depends on how its inputs lie."""
    called = known.name(call.value.target) if isinstance(call.value, Opaque) else None
    return called in READING or (
        called == "view" and any(map(known.tells_dtype, call.node.args[1:]))
    )


def in_order(inputs: Any, nodes: Iterable[fx.Node]) -> Any:
    """Arguments of which some tensors are laid out in order first."""
    ordered = {node: node.graph.call_method("contiguous", (node,)) for node in nodes}
    return mapped(inputs, fx.Node, lambda node: ordered.get(node, node)) if ordered else inputs


def _elementwise(call: Call) -> bool:
    """Whether a result may lie as what it is made of does."""
    value = call.value
    if isinstance(value, Opaque):
        return not value.pinned and kind(value.target) in ELEMENTWISE
    multiplied = isinstance(value, Conv) and value.affine and not call.traits.convolution
    return isinstance(value, Sum) or multiplied
