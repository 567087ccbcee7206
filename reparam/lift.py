"""Transcribe a traced graph into the graph of values. No algebra happens here.

Module attributes are read here and in `reparam.lower` alone. What a call was, and which of its
arguments became part of its value, is kept in the node's `source`, so that a call which no pass
touches is lowered to just what it was.
"""

import functools
import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from reparam import known, lift_functions, lift_layouts, lift_modules, lift_operators
from reparam.arguments import found, mapped
from reparam.capture import Capture, Source, path_of
from reparam.constants import Constants
from reparam.effects import fenced, out_of_place
from reparam.errors import Declined
from reparam.facts import TensorFacts
from reparam.graph import Call, ValueGraph, removable
from reparam.learned import Enough, Learned, Learner, Told, completed, knows_more, never
from reparam.lift_functions import Lifted
from reparam.lift_layouts import layout_module, permutation, rank
from reparam.lift_modules import CONVS, module_value, own_forward
from reparam.lift_operators import pad_with
from reparam.meaning import has_meaning, meaning_of
from reparam.operators import ConvTranspose, Norm
from reparam.sizes import SymbolTable
from reparam.traits import traits
from reparam.values import BatchNorm, Constant, Conv, Layout, Opaque, Value

ARGUMENTS = lift_functions.ARGUMENTS | lift_layouts.ARGUMENTS | lift_operators.ARGUMENTS
RULES = lift_functions.RULES | lift_layouts.RULES | lift_operators.RULES
KINDS = {**lift_modules.KINDS, **lift_operators.KINDS}
"""What is known of functions and modules, all together."""

OPTIONS = ("alpha", "dtype", "inplace", "rounding_mode")
"""Keyword arguments that rules heed beside."""

MOST_ROUNDS = 8
"""After so many, whatever is learned in a round is kept."""


class _Lifter:
    """One round of transcription; the symbols of sizes are shared by all rounds."""

    def __init__(
        self,
        capture: Capture,
        fence: set[fx.Node],
        constants: Constants,
        learned: Learned,
        symbols: SymbolTable,
    ) -> None:
        self.capture = capture
        self.values = ValueGraph(symbols)
        self.fence = fence
        self.constants = constants
        self.learned = learned
        self.lifted: dict[fx.Node, fx.Node] = {}
        self.learner = Learner(learned, self.lifted, self.facts, symbols)

    def constant(self, argument: Any) -> Any:
        return self.constants.content(argument)

    def facts(self, argument: Any) -> Any:
        if not isinstance(argument, fx.Node) or argument in self.constants:
            return argument
        return self.lifted[argument].meta.get("facts")

    def run(self) -> ValueGraph:
        first = next(iter(self.capture.graph.nodes))
        before = self.learned.get(first)
        for node in self.capture.graph.nodes:
            if completed(self.learned.get(first), before):
                break  # the next round keeps that alone, and starts from it
            if node.op == "placeholder":
                copy = self.values.graph.node_copy(node)
                copy.meta = {"facts": self.learned.get(node)}
                self.lifted[node] = copy
            elif node.op == "output":
                self.values.graph.output(self._mapped(node.args[0]))
            elif node not in self.constants:
                self._call(node)
        self._drop_unused()
        del self.learner  # it asks this for facts: a cycle, that would keep all calls ever made
        return self.values

    def _drop_unused(self) -> None:
        """Drop what only fed arguments that became part of a value."""
        for node in reversed(self.values.graph.nodes):
            if node.op == "call_function" and not node.users and removable(Call(node)):
                self.values.graph.erase_node(node)

    def _mapped(self, argument: Any) -> Any:
        return mapped(argument, fx.Node, self._node)

    def _node(self, node: fx.Node) -> fx.Node:
        """The node of the graph of values; constants are transcribed when first read."""
        if node not in self.lifted:
            if node.op == "get_attr":
                content = self.capture.attribute(str(node.target))
                self._add(node, Constant(content), (), {}, Source(node, ()), path=str(node.target))
            else:
                self._opaque(node, None, constant=True)
        return self.lifted[node]

    def _call(self, node: fx.Node) -> None:
        """Transcribe a call: by its rule, or as opaque."""
        self.learner.heed(node)
        reason = "another call may write to a tensor it touches" if node in self.fence else None
        try:
            lifted = None if reason else self._rule(node)
        except Declined as declined:
            lifted, reason = None, declined.reason
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # A call that is written in a way no rule foresaw is no reason to refuse a model.
            lifted, reason = None, f"its arguments are not understood ({error})"
        if lifted is None or not found(lifted[1], fx.Node):  # a layer may be called on None
            self._opaque(node, reason)
            return
        value, args = lifted
        if node.op != "call_module" and found(list(vars(value).values()), fx.Node):
            self._opaque(node, "one of its hyper-parameters is computed in the forward")
            return
        inputs = tuple(found(args, fx.Node))
        if isinstance(value, ConvTranspose) or (
            isinstance(value, Conv) and (not value.affine or self._convolves(node))
        ):
            dtype = self._weight_dtype(node)
            self.learner.demand(args[0], value.n, value.in_channels, dtype)
        elif isinstance(value, BatchNorm) and value.n is not None:
            self.learner.demand(args[0], value.n, value.mean.numel(), exact=True)
        elif isinstance(value, Norm):
            axes = rank(self, args[0])
            if value.kind != "group" or axes is not None:
                behind = 0 if value.kind != "group" or axes is None else axes - 2
                self.learner.demand(args[0], behind, value.channels)
        rewritten = isinstance(value, Layout) and "mean" not in value.kind
        plain = rewritten or node.target is pad_with
        self._add(node, value, self._mapped(args), {}, Source(node, inputs), plain)

    def _add(
        self,
        node: fx.Node,
        value: Value,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        source: Source,
        plain: bool = False,
        path: str | None = None,
    ) -> None:
        """Add a call; what is `plain` is written anew, as torch writes such values."""
        call = self.values.apply(value, args, kwargs, node.name)
        if node in self.learned and knows_more(self.learned[node], call.shape):
            call.node.meta["facts"] = self.learned[node]
        elif isinstance(value, Conv) and value.affine and call.shape and call.shape.dtype:
            call.node.meta["facts"] = replace(call.shape, dtype=self._promoted(node))
        call.node.meta["path"] = path or path_of(node)
        call.node.meta["traced"] = source
        call.node.meta["source"] = None if plain else source
        call.node.meta["constant_operations"] = (
            0 if plain else self.constants.operations(node, source.inputs)
        )
        call.node.meta["module"] = node.op == "call_module"
        call.node.meta["traits"] = traits(
            self._tensors(node), isinstance(value, Conv) and not known.multiplies(node)
        )
        self.lifted[node] = call.node

    def _promoted(self, node: fx.Node) -> torch.dtype | None:
        """The dtype of a product with a scale, whose content may be wider than in the model."""
        inputs = node.all_input_nodes
        known_ones = [self.facts(s) for s in inputs if s not in self.constants]
        dtypes = [f.dtype if isinstance(f, TensorFacts) else None for f in known_ones]
        dtypes += [self.constants.dtype(s) for s in inputs if s in self.constants]
        if node.op == "call_module":
            dtypes += [parameter.dtype for parameter in self._tensors(node)]
        given = [dtype for dtype in dtypes if dtype is not None]
        return functools.reduce(torch.promote_types, given) if len(given) == len(dtypes) else None

    def _tensors(self, node: fx.Node) -> list[Any]:
        """The parameters of the module that is called, or the constants that a call reads."""
        if node.op == "call_module":
            module = self.capture.attribute(str(node.target))
            if module._modules:
                return [*module.parameters()]
            # To ask a layer for all that is below it takes much longer.
            return [own for own in module._parameters.values() if own is not None]
        return [self.constants.plain(source) for source in (node, *node.all_input_nodes)]

    def _opaque(self, node: fx.Node, reason: str | None, constant: bool = False) -> None:
        """Carry a call through as it is; a write that nobody sees becomes out-of-place.

        What is `constant` was computed once already, and so is known to have no effect.
        """
        target: Any = node.target
        module = self.capture.attribute(target) if node.op == "call_module" else None
        pinned = node in self.fence
        kwargs = dict(node.kwargs)
        if node not in self.fence:
            target, kwargs = out_of_place(node)
        value = Opaque(
            module if module is not None else target,
            path=str(node.target) if module is not None else None,
            reason=reason,
            pinned=pinned,
            pure=constant or (not pinned and known.pure(module if module is not None else target)),
        )
        source = Source(node, tuple(found((node.args, kwargs), fx.Node)))
        self._add(node, value, self._mapped(node.args), self._mapped(kwargs), source, plain=True)

    def _rule(self, node: fx.Node) -> Lifted | None:
        if node.op == "call_module":
            return self._module(node)
        target, options = out_of_place(node)
        name = known.name(target)
        if target is pad_with:
            return RULES["pad_with"](self, dict(zip(ARGUMENTS["pad_with"], node.args, strict=True)))
        if name is None:
            return None
        if known.kind(name) == "reshape":
            return self._reshape(node)
        if name == "permute":
            layout = permutation(node, self.facts)
            return None if layout is None else (layout, node.args)
        if name not in RULES:
            return None
        names = ARGUMENTS.get(target) or ARGUMENTS[name]
        options = known.renamed(options)
        if len(node.args) > len(names) or not {*names, *OPTIONS}.issuperset(options):
            return None  # a form that nobody here knows, such as `torch.add(x, alpha, y)`
        return RULES[name](self, dict(zip(names, node.args, strict=False)) | options)

    def _reshape(self, node: fx.Node) -> Lifted | None:
        if node.kwargs or any(map(known.tells_dtype, node.args)):
            return None
        return Layout(node.target, pure=True, kind="reshape"), node.args

    def _module(self, node: fx.Node) -> Lifted | None:
        module: Any = self.capture.attribute(str(node.target))
        if known.hooked(module):
            raise Declined("it has hooks")
        if node.kwargs or len(node.args) != 1:
            return None
        if isinstance(module, nn.Flatten) and not own_forward(module, nn.Flatten):
            value = Layout(torch.flatten, pure=True, kind="reshape")
            return value, (node.args[0], module.start_dim, module.end_dim)
        facts = self.facts(node.args[0])
        axes = len(facts.axes) if isinstance(facts, TensorFacts) and facts.exact else None
        if has_meaning(module):
            return meaning_of(module, facts), (node.args[0],)
        value = module_value(module, axes, KINDS) or layout_module(module, str(node.target))
        return None if value is None else (value, (node.args[0],))

    def _convolves(self, node: fx.Node) -> bool:
        """Whether torch runs it as a convolution, which a product with a scale is not."""
        if node.op != "call_module":
            return known.name(node.target) in ("linear", "conv1d", "conv2d", "conv3d")
        module = self.capture.attribute(str(node.target))
        return isinstance(module, (nn.Linear, *CONVS)) and not has_meaning(module)

    def _weight_dtype(self, node: fx.Node) -> torch.dtype | None:
        """The dtype of a convolution's weight in the model, however it is computed."""
        if node.op == "call_module":
            return next((p.dtype for p in self._tensors(node) if p.is_floating_point()), None)
        _, options = out_of_place(node)
        weight = options.get("weight", node.args[1] if len(node.args) > 1 else None)
        return self.constants.dtype(weight)


def lift_graph(
    capture: Capture,
    example_inputs: Any = None,
    enough: Enough = never,
    told: Told | None = None,
) -> ValueGraph:
    """Transcribe a traced model. Example inputs tell dtypes and numbers of axes, not sizes.

    More may be `told`. What a call demands of a tensor becomes known only after that tensor was
    transcribed, so this goes on until nothing more is learned, or `enough`. The rest often follows
    from what is learned first, so in the first rounds just that is kept.
    """
    told = told or Told()
    learned = told.and_examples(capture.graph, example_inputs)
    fence = fenced(capture, {node: facts.dtype for node, facts in learned.items()})
    constants = Constants(capture, fence)
    for round_ in itertools.count():
        before = dict(learned)
        values = _Lifter(capture, fence, constants, learned, told.symbols).run()
        new = [node for node, facts in learned.items() if before.get(node) != facts]
        if not new or enough(learned):
            return values
        if round_ < MOST_ROUNDS:
            first = min(new)
            learned = before | {first: learned[first]}
    raise AssertionError("each round learns something of a finite graph")
