"""What is learned of a tensor from the calls that read it, where its maker does not tell."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import torch
from torch import fx

from reparam import known
from reparam.facts import TensorFacts
from reparam.graph import Call
from reparam.operators import AvgPool, ConvTranspose, Norm, Pad, Slice
from reparam.runs import split_inputs
from reparam.sizes import Size, SymbolTable
from reparam.values import BatchNorm, Conv, Layout, Opaque, Shape, Sum

Learned = dict[fx.Node, TensorFacts]
"""Facts of tensors that are known from what reads them, by the call that makes the tensor."""


@dataclass(frozen=True)
class Told:
    """What is known of tensors before anything is transcribed, and the symbols of their sizes."""

    symbols: SymbolTable = field(default_factory=SymbolTable)
    learned: Mapping[fx.Node, TensorFacts] = field(default_factory=dict[fx.Node, TensorFacts])

    def and_examples(self, graph: fx.Graph, example_inputs: Any) -> Learned:
        """The same, with what example inputs tell of a graph's."""
        return {**self.learned, **given_facts(graph, example_inputs, self.symbols)}


Enough: TypeAlias = Callable[[Learned], bool]
"""Whether what is learned is all that is asked."""


def never(_: Learned) -> bool:
    """As much as can be."""
    return False


CAT_NAMES = ("cat", "concat", "concatenate")
"""What torch calls a concatenation: whatever it joins has as many axes as the result."""


def given_facts(graph: fx.Graph, example_inputs: Any, symbols: SymbolTable) -> Learned:
    """What example inputs tell of a graph's inputs: dtypes and numbers of axes, not sizes."""
    args, kwargs = split_inputs(() if example_inputs is None else example_inputs)
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    placeholders = [node for node in inputs if not node.target.startswith("*")]
    named = {node: kwargs[node.target] for node in placeholders if node.target in kwargs}
    return {
        node: TensorFacts(tuple(symbols.fresh() for _ in given.shape), True, given.dtype)
        for node, given in [*zip(placeholders, args, strict=False), *named.items()]
        if isinstance(given, torch.Tensor)
    }


def knows_more(learned: TensorFacts, have: TensorFacts | None) -> bool:
    """Whether a reader told what does not follow from what makes the tensor."""
    if have is None or have.dtype is None:
        return True
    both = zip(reversed(learned.axes), reversed(have.axes), strict=False)
    return any(told.known and not own.known for told, own in both)


def completed(now: TensorFacts | None, before: TensorFacts | None) -> bool:
    """Whether all that a tensor takes is known of it, and was not before."""
    return now is not None and now != before and now.exact and now.dtype is not None


def refined(
    have: TensorFacts,
    n: int,
    channels: int | None,
    dtype: torch.dtype | None,
    exact: bool,
    fresh: Callable[[], Size],
) -> TensorFacts:
    """Facts with what a reader adds: channels before n spatial axes, a dtype, a batch axis."""
    axes = have.axes
    if channels is not None and len(axes) > n and not axes[-n - 1].known:
        axes = (*axes[: len(axes) - n - 1], Size(channels), *axes[len(axes) - n :])
    if exact and not have.exact and len(axes) == n + 1:
        axes = (fresh(), *axes)
    return TensorFacts(axes, have.exact or len(axes) > len(have.axes), have.dtype or dtype)


def _acts_on_one(call: Call) -> bool:
    """Whether a function acts on each element, or each channel, of one tensor, and keeps its sizes.

    The bounds of a clamp may be tensors, with which it is broadcast.
    """
    if not isinstance(call.value, Opaque):
        return False
    does = known.kind(call.value.target)
    return does == "pointwise" or (does == "clamp" and len(call.inputs) == 1)


def keeps_axes(call: Call) -> bool:
    """Whether the result has as many axes as the first input."""
    value = call.value
    if isinstance(value, Conv | BatchNorm | ConvTranspose | Pad | Slice | AvgPool):
        return True
    return _acts_on_one(call)


def keeps_channels(call: Call, n: int) -> bool:
    """Whether the result has the channels of its one input, if n axes come behind them."""
    value = call.value
    if isinstance(value, Sum):
        return len(value.coefficients) == 1
    if isinstance(value, Pad | Slice | AvgPool):
        return value.n <= n  # of an image without a batch, it is another axis that stays
    if isinstance(value, BatchNorm | Norm):
        return True
    return _acts_on_one(call)


def keeps_dtype(call: Call) -> bool:
    """Whether the result has the dtype of the first input, whatever the dtypes of weights."""
    value = call.value
    if isinstance(value, BatchNorm | Norm | Pad | Slice | AvgPool | Layout):
        return True
    if not isinstance(value, Opaque) or not _acts_on_one(call) or "dtype" in call.options:
        return False
    return not known.promotes(value.target) and known.kind(value.target) != "clamp"


class Learner:
    """Notes what calls demand of their inputs, where the inputs themselves are not known.

    A batch norm over images, for one, takes tensors of four axes only: so much is then known of
    whatever led there by steps that keep the axes.
    """

    def __init__(
        self,
        learned: Learned,
        lifted: dict[fx.Node, fx.Node],
        facts: Callable[[Any], Any],
        symbols: SymbolTable,
    ) -> None:
        """`lifted` are the nodes of the graph of values, by the traced ones; so are the facts."""
        self._learned = learned
        self._lifted = lifted
        self._facts = facts
        self._fresh = symbols.fresh

    def _demand_channels(self, node: fx.Node, n: int, channels: int) -> None:
        """Note how many channels a tensor has, and what led there by steps that keep them."""
        while True:
            have = self._learned.get(node) or self._facts(node)
            if not isinstance(have, TensorFacts) or not have.exact or have.channels(n) is not None:
                return
            self._learned[node] = refined(have, n, channels, None, False, self._fresh)
            if node not in self._lifted or not keeps_channels(Call(self._lifted[node]), n):
                return
            node = node.all_input_nodes[0]

    def heed(self, node: fx.Node) -> None:
        """Learn a number of axes from an assertion, a permutation or a read of sizes."""
        called = known.calls(node)
        if node.target is known.ASSERT:
            self._heed_assertion(node)
        elif called == "getitem" and isinstance(node.args[0], fx.Node):
            self._heed_index(node.args[0], node.args[1])
            self._heed_slices(node.args[0], node.args[1])
        elif called in CAT_NAMES and node in self._learned and self._learned[node].exact:
            for part in node.all_input_nodes:
                self.demand(part, len(self._learned[node].axes) - 2, exact=True)
        elif called == "permute" and not node.kwargs and isinstance(node.args[0], fx.Node):
            order = node.args[1:]
            several = order[0] if len(order) == 1 else order
            if isinstance(several, tuple | list) and len(several) > 1:
                self.demand(node.args[0], len(several) - 2, exact=True)

    def _heed_assertion(self, node: fx.Node) -> None:
        """Whether what a convolution makes has a batch axis is all that is learned so.

        Where the number of axes could be any, the assertion is all there is, and has to stay.
        """
        condition: Any = node.args[0]
        if str(node.args[-1]).startswith(known.HELD):
            return
        if not (isinstance(condition, fx.Node) and condition.target is operator.eq):
            return
        rank, axes = condition.args
        value = Call(self._lifted[rank]).value if rank in self._lifted else None
        if isinstance(rank, fx.Node) and isinstance(value, Shape) and value.rank:
            tensor = rank.all_input_nodes[0]
            if isinstance(axes, int) and self._lacks_batch(tensor, axes):
                self.demand(tensor, axes - 2, exact=True)

    def _heed_index(self, sizes: fx.Node, index: Any) -> None:
        """A convolution takes one axis in front of its channels at most: a size of it is read."""
        value = Call(self._lifted[sizes]).value if sizes in self._lifted else None
        if not isinstance(value, Shape) or value.rank or value.axis is not None:
            return
        tensor = sizes.all_input_nodes[0]
        if type(index) is int and self._lacks_batch(tensor, index + 1):
            self.demand(tensor, index - 1, exact=True)

    def _heed_slices(self, tensor: fx.Node, index: Any) -> None:
        """As many slices as a convolution takes axes at most: it has so many."""
        parts = list(cast("tuple[Any, ...]", index)) if isinstance(index, tuple) else []
        slices = bool(parts) and all(isinstance(part, slice) for part in parts)
        if slices and self._lacks_batch(tensor, len(parts)):
            self.demand(tensor, len(parts) - 2, exact=True)

    def _lacks_batch(self, tensor: fx.Node, axes: int) -> bool:
        """Whether a tensor is known to have so many axes, or one less and no batch."""
        have = self._facts(tensor)
        return isinstance(have, TensorFacts) and not have.exact and len(have.axes) == axes - 1 > 1

    def demand(
        self,
        node: fx.Node,
        n: int,
        channels: int | None = None,
        dtype: torch.dtype | None = None,
        exact: bool = False,
    ) -> None:
        """Note that a tensor has channels before n spatial axes; if `exact`, one axis more."""
        have = self._learned.get(node) or self._facts(node)
        if isinstance(have, TensorFacts) and have.exact and have.dtype is not None:
            if channels is not None:
                self._demand_channels(node, n, channels)
            return
        while isinstance(have, TensorFacts) and node not in self._learned:
            # It follows from what came before: if that is alike, learn it there.
            call = Call(self._lifted[node])
            if have.dtype is not None or not keeps_dtype(call):
                dtype, known_here = None, dtype
            else:
                known_here = dtype
            if have.dtype is None and known_here is not None:
                self._learned[node] = replace(have, dtype=known_here)
            lacks_axes = exact and not have.exact and keeps_axes(call)
            if not lacks_axes and dtype is None:
                return
            node = node.all_input_nodes[0]
            have = self._learned.get(node) or self._facts(node)
            channels = None
            if have is None and isinstance(call.value, Layout):
                return  # nothing tells how its axes were arranged
        if isinstance(have, TensorFacts):
            self._learned[node] = refined(have, n, channels, dtype, exact, self._fresh)
        elif have is None:
            width = self._fresh() if channels is None else Size(channels)
            axes = (width, *(self._fresh() for _ in range(n)))
            facts = TensorFacts((self._fresh(), *axes) if exact else axes, exact, dtype)
            self._learned[node] = facts
            self._lifted[node].meta["facts"] = facts
