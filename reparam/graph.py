"""The graph of values: a `torch.fx.Graph` whose call targets are values.

`Call` is the read-only view of a node that passes get; `ValueGraph` adds what lifting knows about
the nodes. Once it is lifted, only the driver edits it, through `ValueGraph.replace`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, cast

from torch import fx

from reparam.arguments import found, give, mapped
from reparam.devices import held_on_cpu
from reparam.errors import Declined, require
from reparam.facts import Facts, TensorFacts
from reparam.inference import facts_of
from reparam.operators import Norm
from reparam.sizes import SymbolTable
from reparam.traits import NONE, Traits
from reparam.values import IDENTITY, BatchNorm, Constant, Conv, Layout, Opaque, Shape, Value

INPUT = Opaque("input", reason="an input of the model")
OUTPUT = Opaque("output", reason="an output of the model")


@dataclass(eq=False, slots=True)
class Call:
    """One application of a value, as passes see it. Two views of one node are equal."""

    node: fx.Node

    def __eq__(self, other: object) -> bool:
        """Whether both are views of one node."""
        return type(other) is Call and other.node is self.node

    def __hash__(self) -> int:
        """That of the node."""
        return hash(self.node)

    @property
    def value(self) -> Value:
        """What is computed; `INPUT` and `OUTPUT` stand for the graph's own ends."""
        target: Any = self.node.target
        if isinstance(target, Value):
            return target
        return OUTPUT if self.node.op == "output" else INPUT

    @property
    def name(self) -> str:
        """The name, after the module or function that the call came from."""
        return self.node.meta.get("path") or self.node.name

    @property
    def inputs(self) -> tuple["Call", ...]:
        """The calls in argument position, one entry per position: `add(x, x)` has two."""
        node: Any = self.node
        # Past fx's properties, which take longer than all else here.
        args, kwargs, known = node._args, node._kwargs, node.meta.get("inputs")
        if known is None or known[0] is not args or known[1] is not kwargs:
            known = args, kwargs, tuple(map(Call, found((args, kwargs), fx.Node)))
            if node.op == "call_function":  # what is copied would keep the whole graph alive
                node.meta["inputs"] = known
        return known[2]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments as they were passed, with calls among numbers."""
        return mapped(self.node.args, fx.Node, Call)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments as they were passed, with calls among numbers."""
        return dict(mapped(self.node.kwargs, fx.Node, Call))

    def on(self, x: "Expression") -> "Apply":
        """The same call with another first argument, its further ones and options as they are."""
        return Apply(self.value, (x, *self.arguments[1:]), self.options)

    @property
    def readers(self) -> tuple["Call", ...]:
        """Who reads the tensor, one entry per argument position; reads of its shape don't count."""
        readers: list[Call] = []
        for user in self.node.users:
            if not isinstance(user.target, Shape):
                reader = Call(user)
                readers += [reader] * reader.inputs.count(self)
        return tuple(readers)

    @property
    def traits(self) -> Traits:
        """What its weights keep through a rewrite."""
        return self.node.meta.get("traits", NONE)

    @property
    def constant_operations(self) -> int:
        """How many operations compute its weights anew in every call."""
        return self.node.meta.get("constant_operations", 0)

    @property
    def facts(self) -> Facts:
        """What is known of the result without running: see `reparam.facts`."""
        return self.node.meta.get("facts")

    @property
    def shape(self) -> TensorFacts | None:
        """The facts, where the result is known to be a tensor."""
        return facts if type(facts := self.facts) is TensorFacts else None

    def __lt__(self, other: "Call") -> bool:
        """Whether this one runs before the other."""
        return self.node < other.node

    def __repr__(self) -> str:
        """The name and what is computed."""
        return f"{self.name}: {self.value.__name__}"


@dataclass(frozen=True, eq=False)
class Apply:
    """A value applied to calls or to other applications; numbers may stand between them.

    An application that stands twice in one rewrite is computed once.
    """

    value: Value
    inputs: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


Expression = Call | Apply


class ValueGraph:
    """A graph of values and the symbols of its sizes."""

    def __init__(self, symbols: SymbolTable) -> None:
        """Start empty."""
        self.graph, self.symbols = fx.Graph(), symbols

    def calls(self) -> Iterator[Call]:
        """All calls in order of execution, the graph's inputs included."""
        return (Call(node) for node in self.graph.nodes if node.op != "output")

    def apply(self, value: Value, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Call:
        """Add a call at the insertion point, its weights, but not constants, on the CPU."""
        held = value if isinstance(value, Constant) else held_on_cpu(value)
        node = self.graph.create_node("call_function", held, name=name)
        give(node, args)
        if kwargs:
            node.kwargs = kwargs
        node.meta["facts"] = facts_of(value, node.args, node.kwargs, _facts, self.symbols)
        return Call(node)

    def replace(self, rewrite: dict[Call, Expression], dead: set[Call]) -> list[Call]:
        """Put expressions in the place of calls, and drop the `dead_after` it.

        Returns:
            The calls that are new.

        Raises:
            Declined: if the sizes of a call that goes are read, and no other tensor has them. The
                graph is as it was then.
        """
        built: dict[int, Call] = {}
        new: list[Call] = []
        ordered = sorted(rewrite.items(), key=lambda item: item[0])
        made = [(root, what, self._build(what, root, built, new)) for root, what in ordered]
        try:
            moves = [move for call in dead for move in self._moves(call, dead, rewrite)]
        except Declined:
            for call in reversed(new):
                self.graph.erase_node(call.node)
            raise
        for reader, source, twin in moves:
            reader.node.replace_input_with(source.node, twin.node)
        for root, what, replacement in made:
            if root.facts is not None and (replacement.facts is None or isinstance(what, Apply)):
                # What stood there may be known better than what follows from the new inputs.
                replacement.node.meta["facts"] = root.facts
            root.node.replace_all_uses_with(replacement.node)
        for call in sorted(dead, reverse=True):
            self.graph.erase_node(call.node)
            self.forget(call.node)
            call.node.meta.clear()
        return new

    def forget(self, node: fx.Node) -> None:
        """Let go of a call that is done with, and of its weights: fx keeps what it once named."""
        graph, key = cast("Any", self.graph), (node.op, node.target)
        graph._graph_namespace._obj_to_name.pop(node, None)
        alike: dict[fx.Node, None] = graph._find_nodes_lookup_table.table.get(key, {})
        alike.pop(node, None)
        if not alike:
            graph._find_nodes_lookup_table.table.pop(key, None)
        object.__setattr__(node, "target", IDENTITY)  # fx itself would look it up anew

    def dead_after(self, rewrite: dict[Call, Expression]) -> set[Call]:
        """The calls that nothing would read after a rewrite, its roots included."""
        kept = set(leaves(rewrite.values()))
        dead = set(rewrite)
        pending = [source for root in rewrite for source in root.inputs]
        while pending:
            call = pending.pop()
            if call in dead or call in kept or not removable(call):
                continue
            if all(reader in dead for reader in call.readers):
                dead.add(call)
                pending.extend(call.inputs)
        return dead

    def _moves(
        self, call: Call, dead: set[Call], rewrite: dict[Call, Expression]
    ) -> Iterator[tuple[Call, Call, Call]]:
        """Reads of a dead call's sizes: the reader, the call, and a tensor to read instead."""
        for reader in [Call(user) for user in call.node.users if isinstance(user.target, Shape)]:
            if call in rewrite or reader in dead:
                continue
            near = chain((_sized_by(call),), self.calls())
            alive = (c for c in near if c < reader and (c in rewrite or c not in dead))
            alike = (c for c in alive if _sized_by(c) == _sized_by(call) or self._alike(reader, c))
            twin = next((c for c in alike if c != call), None)
            require(twin is not None, "its sizes are read, and no other tensor has them", call.name)
            yield reader, call, cast("Call", twin)

    def _alike(self, reader: Call, other: Call) -> bool:
        """Whether a read of sizes is known to give the same from another tensor."""
        if reader.facts is None or other.shape is None:
            return False
        return facts_of(reader.value, (other.node,), {}, _facts, self.symbols) == reader.facts

    def _build(
        self, expression: Expression, root: Call, built: dict[int, Call], new: list[Call]
    ) -> Call:
        if isinstance(expression, Call):
            return expression
        if id(expression) not in built:
            inputs, options = mapped(
                (expression.inputs, dict(expression.options)),
                (Call, Apply),
                lambda part: self._build(part, root, built, new).node,
            )
            with self._insertion(expression.value, inputs, root):
                call = self.apply(expression.value, inputs, options, root.node.name)
            held = TensorFacts((), False, None) if expression.value.tensors() else None
            if (found_out := call.shape or held) is not None and root.shape is not None:
                # All of a rewrite is in the dtype of what it replaces, whatever it folds in.
                call.node.meta["facts"] = replace(found_out, dtype=root.shape.dtype)
            built[id(expression)] = call
            new.append(call)
        return built[id(expression)]

    def _insertion(self, value: Value, inputs: Any, root: Call) -> Any:
        """Where a new call goes: before what it replaces, or, if only near, as early as it can.

        The sizes of what does not stand in its place may be read earlier.
        """
        sources = found(inputs, fx.Node)
        if isinstance(value, Layout | Norm) and sources:
            return self.graph.inserting_after(max(sources))
        return self.graph.inserting_before(root.node)


def _sized_by(call: Call) -> Call:
    """The earliest call that has the sizes of this one for sure."""
    value = call.value
    while isinstance(value, BatchNorm | Norm) or (isinstance(value, Conv) and value.affine):
        call = call.inputs[0]
        value = call.value
    return call


def same_dtype(*calls: Call) -> bool:
    """Whether the results of calls are known to be of one dtype."""
    dtypes = {call.shape.dtype if call.shape is not None else None for call in calls}
    return len(dtypes) == 1 and None not in dtypes


def removable(call: Call) -> bool:
    """Whether a call may go when nothing reads it: it has no effect beside its result."""
    return not isinstance(call.value, Opaque) or call.value.pure


def leaves(expressions: Iterable[Expression]) -> Iterator[Call]:
    """The calls that expressions are applied to."""
    pending: list[Expression] = list(expressions)
    while pending:
        part = pending.pop()
        if isinstance(part, Call):
            yield part
        else:
            pending.extend(found((part.inputs, dict(part.options)), (Call, Apply)))


def _facts(argument: Any) -> Any:
    """An argument with the facts of nodes in their place."""
    if isinstance(argument, fx.Node):
        return argument.meta.get("facts")
    return mapped(argument, fx.Node, lambda node: node.meta.get("facts"))
