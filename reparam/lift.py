"""Transcribe a traced graph into the graph of values. No algebra happens here.

Module attributes are read here and in `reparam.lower` alone. What a call was, and which of its
arguments became part of its value, is kept in the node's `source`, so that a call which no pass
touches is lowered to just what it was.
"""

import itertools
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from reparam import known
from reparam.capture import Capture
from reparam.constants import Constants
from reparam.effects import fenced, out_of_place
from reparam.errors import Declined
from reparam.facts import TensorFacts
from reparam.graph import Call, ValueGraph, removable, traits
from reparam.learned import Learned, given_facts, keeps_axes, refined
from reparam.lift_functions import ARGUMENTS, RULES, Lifted, permutation
from reparam.lift_modules import CONVS, module_value
from reparam.meaning import has_meaning, meaning_of
from reparam.sizes import Size, SymbolTable
from reparam.tracer import hooked
from reparam.values import BatchNorm, Constant, Conv, Layout, Opaque, Shape, Value


@dataclass(frozen=True, eq=False)
class Source:
    """The traced call that a value was transcribed from.

    Attributes:
        node: the traced call.
        inputs: which of its arguments the value is applied to; the others are constants.
    """

    node: fx.Node
    inputs: tuple[fx.Node, ...]


MOST_ROUNDS = 8
"""After so many, whatever is learned in a round is kept."""


class _Lifter:
    """One round of transcription; the symbols of sizes are shared by all rounds."""

    def __init__(self, capture: Capture, learned: Learned, symbols: SymbolTable) -> None:
        self.capture = capture
        self.values = ValueGraph(symbols)
        self.fence = fenced(capture)
        self.constants = Constants(capture, self.fence)
        self.learned = learned.facts
        self.premises = learned.premises
        self.lifted: dict[fx.Node, fx.Node] = {}

    def constant(self, argument: Any) -> Any:
        return self.constants.content(argument)

    def facts(self, argument: Any) -> Any:
        if not isinstance(argument, fx.Node) or argument in self.constants:
            return argument
        return self.lifted[argument].meta.get("facts")

    def run(self) -> ValueGraph:
        for node in self.capture.graph.nodes:
            if node.op == "placeholder":
                copy = self.values.graph.node_copy(node)
                copy.meta = {"facts": self.learned.get(node)}
                self.lifted[node] = copy
            elif node.op == "output":
                self.values.graph.output(self._mapped(node.args[0]))
            elif node not in self.constants:
                self._call(node)
        self._drop_unused()
        return self.values

    def _drop_unused(self) -> None:
        """Drop what only fed arguments that became part of a value."""
        for node in reversed(self.values.graph.nodes):
            if node.op == "call_function" and not node.users and removable(Call(node)):
                self.values.graph.erase_node(node)

    def _mapped(self, argument: Any) -> Any:
        return pytree.tree_map_only(fx.Node, self._node, argument)

    def _node(self, node: fx.Node) -> fx.Node:
        """The node of the graph of values; constants are transcribed when first read."""
        if node not in self.lifted:
            if node.op == "get_attr":
                content = self.capture.attribute(str(node.target))
                self._add(node, Constant(content), (), {}, Source(node, ()), str(node.target))
            else:
                self._opaque(node, None)
        return self.lifted[node]

    def _call(self, node: fx.Node) -> None:
        """Transcribe a call: by its rule, or as opaque."""
        if node.target is known.ASSERT:
            self._heed(node)
        reason = "another call writes to a tensor that it touches" if node in self.fence else None
        try:
            found = None if reason else self._rule(node)
        except Declined as declined:
            found, reason = None, declined.reason
        except (LookupError, TypeError, ValueError) as error:
            # A call that is written in a way no rule foresaw is no reason to refuse a model.
            found, reason = None, f"its arguments are not understood ({error})"
        if found is None:
            self._opaque(node, reason)
            return
        value, args = found
        inputs = tuple(leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, fx.Node))
        self._demand(node, value, args)
        source = None if isinstance(value, Layout) else Source(node, inputs)
        self._add(node, value, self._mapped(args), {}, source)

    def _add(
        self,
        node: fx.Node,
        value: Value,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        source: Source | None,
        path: str | None = None,
    ) -> None:
        call = self.values.apply(value, args, kwargs, node.name)
        if node in self.learned and call.facts is None:
            call.node.meta["facts"] = self.learned[node]
        call.node.meta["path"] = path or _path(node)
        call.node.meta["source"] = source
        call.node.meta["module"] = node.op == "call_module"
        call.node.meta["traits"] = traits(
            self._tensors(node), isinstance(value, Conv) and not _multiplies(node)
        )
        self.lifted[node] = call.node

    def _tensors(self, node: fx.Node) -> list[Any]:
        """The parameters of the module that is called, or the constants that a call reads."""
        if node.op == "call_module":
            return [*self.capture.attribute(str(node.target)).parameters()]
        return [self.constant(source) for source in (node, *node.all_input_nodes)]

    def _opaque(self, node: fx.Node, reason: str | None) -> None:
        """Carry a call through as it is; a write that nobody sees becomes out-of-place."""
        target: Any = node.target
        module = self.capture.attribute(target) if node.op == "call_module" else None
        pinned = node in self.fence or node in self.premises
        kwargs = dict(node.kwargs)
        if node not in self.fence:
            target, kwargs = out_of_place(node)
        value = Opaque(
            module if module is not None else target,
            path=str(node.target) if module is not None else None,
            reason=reason,
            pinned=pinned,
            pure=not pinned and known.pure(module if module is not None else target),
        )
        self._add(node, value, self._mapped(node.args), self._mapped(kwargs), None)

    def _rule(self, node: fx.Node) -> Lifted | None:
        if node.op == "call_module":
            return self._module(node)
        target, options = out_of_place(node)
        name = known.name(target)
        if name is None:
            return None
        if known.kind(name) == "reshape":
            return self._reshape(node)
        if name == "permute":
            layout = permutation(node, self.facts)
            return None if layout is None else (layout, node.args)
        if name not in RULES:
            return None
        names = ARGUMENTS[name]
        return RULES[name](self, dict(zip(names, node.args, strict=False)) | options)

    def _reshape(self, node: fx.Node) -> Lifted | None:
        if node.kwargs:
            return None
        return Layout(node.target, pure=True, kind="reshape"), node.args

    def _module(self, node: fx.Node) -> Lifted | None:
        module: Any = self.capture.attribute(str(node.target))
        if hooked(module):
            raise Declined("it has forward hooks")
        if node.kwargs or len(node.args) != 1:
            return None
        if isinstance(module, nn.Flatten):
            value = Layout(torch.flatten, pure=True, kind="reshape")
            return value, (node.args[0], module.start_dim, module.end_dim)
        facts = self.facts(node.args[0])
        axes = len(facts.axes) if isinstance(facts, TensorFacts) and facts.exact else None
        value = meaning_of(module, facts) if has_meaning(module) else module_value(module, axes)
        return None if value is None else (value, (node.args[0],))

    def _heed(self, node: fx.Node) -> None:
        """Learn the number of axes from an assertion of it, which then stays."""
        condition: Any = node.args[0]
        if not (isinstance(condition, fx.Node) and condition.target is operator.eq):
            return
        rank, axes = condition.args
        value = Call(self.lifted[rank]).value if isinstance(rank, fx.Node) else None
        if not (isinstance(rank, fx.Node) and isinstance(value, Shape) and value.rank):
            return
        if isinstance(axes, int) and axes > 1:
            before = dict(self.learned)
            self._learn(rank.all_input_nodes[0], axes - 2, None, None, exact=True)
            for learned, facts in self.learned.items():
                if before.get(learned) != facts:
                    self.premises[node] = learned

    def _demand(self, node: fx.Node, value: Value, args: tuple[Any, ...]) -> None:
        """Note what a value needs of its input, where the input itself is not known.

        A batch norm over images, for one, takes tensors of four axes only: so much is then known
        of whatever led there by steps that keep the axes.
        """
        if isinstance(value, Conv) and (not value.affine or self._convolves(node)):
            self._learn(args[0], value.n, value.in_channels, value.weight.dtype, exact=False)
        elif isinstance(value, BatchNorm) and value.n is not None:
            self._learn(args[0], value.n, value.mean.numel(), None, exact=True)

    def _convolves(self, node: fx.Node) -> bool:
        """Whether torch runs it as a convolution, which a product with a scale is not."""
        if node.op != "call_module":
            return known.name(node.target) in ("linear", "conv1d", "conv2d", "conv3d")
        module = self.capture.attribute(str(node.target))
        return isinstance(module, (nn.Linear, *CONVS)) and not has_meaning(module)

    def _learn(
        self, node: fx.Node, n: int, channels: int | None, dtype: torch.dtype | None, exact: bool
    ) -> None:
        """Note that a tensor has channels before n spatial axes; if `exact`, one axis more."""
        fresh = self.values.symbols.fresh
        have = self.learned.get(node) or self.facts(node)
        while isinstance(have, TensorFacts) and node not in self.learned:
            # It follows from what came before: if the axes are the same there, learn it there.
            if not exact or have.exact or not keeps_axes(Call(self.lifted[node])):
                return
            node = node.all_input_nodes[0]
            have = self.learned.get(node) or self.facts(node)
            channels, dtype = None, None
        if isinstance(have, TensorFacts):
            self.learned[node] = refined(have, n, channels, dtype, exact, fresh)
        elif have is None:
            width = fresh() if channels is None else Size(channels)
            axes = (width, *(fresh() for _ in range(n)))
            self.learned[node] = TensorFacts((fresh(), *axes) if exact else axes, exact, dtype)
            self.lifted[node].meta["facts"] = self.learned[node]


def _multiplies(node: fx.Node) -> bool:
    """Whether a call is arithmetic, not a layer."""
    return node.op != "call_module" and known.kind(node.target) == "elementwise"


def _path(node: fx.Node) -> str:
    """Where the call stands in the model, for names and remarks."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    owner = next(reversed(stack.values()))[0] if stack else ""
    return f"{owner}.{node.name}" if owner else node.name


def lift_graph(capture: Capture, example_inputs: Any = None) -> ValueGraph:
    """Transcribe a traced model. Example inputs tell dtypes and numbers of axes, not sizes.

    What a call demands of a tensor becomes known only after that tensor was transcribed, so this
    goes on until nothing more is learned. The rest often follows from what is learned first, so
    in the first rounds just that is kept.
    """
    symbols = SymbolTable()
    learned = Learned(given_facts(capture.graph, example_inputs, symbols), {})
    for round_ in itertools.count():
        before = replace(learned, facts=dict(learned.facts), premises=dict(learned.premises))
        values = _Lifter(capture, learned, symbols).run()
        new = [node for node, facts in learned.facts.items() if before.facts.get(node) != facts]
        if not new:
            return values
        if round_ < MOST_ROUNDS:
            first = min(new)
            premises = {p: node for p, node in learned.premises.items() if node is first}
            learned = Learned(
                before.facts | {first: learned.facts[first]}, before.premises | premises
            )
    raise AssertionError("each round learns something of a finite graph")
