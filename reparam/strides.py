"""Results that no longer lie in memory as they did, since what laid them out anew is gone.

`bn(x.transpose(1, 2)).view(n, -1)` works because a batch norm returns new memory in order; folded
into what made x, it leaves a view of no `view`. A reshape is the same, and copies where it must.
"""

from torch import fx

from reparam.arguments import found
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

ELEMENTWISE = ("pointwise", "elementwise", "clamp")
"""What lets axes lie as they do in its input, and closes gaps."""


class Strides:
    """Which results may lie otherwise than in the model, told call by call."""

    def __init__(self, capture: Capture) -> None:
        """Start with none."""
        self._capture = capture
        self._lies: dict[fx.Node, int] = {}
        self._loose: set[fx.Node] = set()

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
        moved = any(self._changed(traced, now) for traced, now in pairs)
        keeps = elementwise or not fresh(call.value)
        if keeps and (moved or any(x.node in self._loose for x in call.inputs)):
            self._loose.add(call.node)

    def method(self, call: Call, name: str) -> str:
        """The method to call: one that takes what the inputs have become."""
        moved = call.node in self._loose or "traced" not in call.node.meta
        return COPYING.get(name, name) if moved else name

    def returned(self, results: fx.Node) -> set[fx.Node]:
        """The results of the model that may not lie as they did, by the node that returns them."""
        (own,) = self._capture.graph.find_nodes(op="output")
        pairs = zip(found(own.args, fx.Node), found(results.args, fx.Node), strict=True)
        return {
            now for traced, now in pairs if now in self._loose or self._changed(traced, Call(now))
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


def _elementwise(call: Call) -> bool:
    """Whether a result may lie as what it is made of does."""
    value = call.value
    if isinstance(value, Opaque):
        return not value.pinned and kind(value.target) in ELEMENTWISE
    multiplied = isinstance(value, Conv) and value.affine and not call.traits.convolution
    return isinstance(value, Sum) or multiplied
