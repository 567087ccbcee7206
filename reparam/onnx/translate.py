"""An ONNX graph as a traced model: each node as the torch function it is, or as it stands.

The compiler then treats it as any other trace. Which node of the file a call came from is kept, so
that what no pass touches is written back as it was.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.capture import Capture
from reparam.errors import OnnxError, first_line
from reparam.export_graph import extra, quiet
from reparam.facts import TensorFacts
from reparam.learned import Told
from reparam.onnx.carried import STANDARD, OnnxOperator
from reparam.onnx.graphs import all_names, outer, read_names
from reparam.onnx.operators import RULES
from reparam.onnx.reading import DTYPES, OnnxFile
from reparam.onnx.sequences import with_splits
from reparam.onnx.shapes import facts_of, skeleton
from reparam.onnx.site import Site
from reparam.sizes import Size, SymbolTable

LARGEST = 2**16
"""Elements of a constant that is spelt out, if it is computed from fewer."""


@dataclass(frozen=True)
class Origin:
    """The result of a node that a call computes.

    Attributes:
        node: its place in the file's graph.
        output: which of its results.
    """

    node: int
    output: int


@dataclass(frozen=True)
class Program:
    """A file as a traced model.

    Attributes:
        file: that it is a translation of.
        capture: the trace; its root is empty, and its constants are the file's.
        origins: what calls came from. Those that only lead to one of these have none.
        makers: what computes each tensor of the file, by its name.
        constants: the tensor that each constant of the trace is in the file, by its path.
        told: what the file tells of tensors.
    """

    file: OnnxFile
    capture: Capture
    origins: dict[fx.Node, Origin]
    makers: dict[str, fx.Node]
    constants: dict[str, str]
    told: Told


class _Source:
    """What is read of a file once, however often it is translated."""

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self.plain = skeleton(file.proto)
        graph = file.proto.graph
        self.contents = {tensor.name: file.content(tensor) for tensor in graph.initializer}
        with quiet():
            surgeon = extra("onnx_graphsurgeon")
            self.attributes = [dict(node.attrs) for node in surgeon.import_onnx(self.plain).nodes]


class _Translator:
    def __init__(self, source: _Source, constants: Mapping[str, Tensor]) -> None:
        self.source = source
        self.file = source.file
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.contents: dict[fx.Node, Tensor] = {}
        self.constants: dict[str, str] = {}
        self.makers: dict[str, fx.Node] = {}
        self.origins: dict[fx.Node, Origin] = {}
        self.symbols = SymbolTable()
        self.facts = dict(facts_of(source.plain, self.symbols, constants))
        self.read = read_names(self.file.proto.graph)
        self.taken = all_names(self.file.proto.graph)

    def run(self) -> Program:
        graph = self.file.proto.graph
        inputs = [value.name for value in graph.input]
        for name in inputs:
            self.makers[name] = self.graph.placeholder(f"input_{len(self.makers)}")
        for name, content in self.source.contents.items():
            if name not in self.makers:  # what is an input as well is only a default of it
                self._constant(name, content)
        for tensor in graph.sparse_initializer:
            self._unread(tensor.values.name)
        both = zip(graph.node, self.source.attributes, strict=True)
        for place, (proto, attributes) in enumerate(both):
            self._node(place, proto, attributes)
        self.graph.output(tuple(self._maker(value.name) for value in graph.output))
        for each in reversed(self.graph.nodes):
            if each.op.startswith("call_") and not each.users and each not in self.origins:
                self.graph.erase_node(each)  # it was only evaluated, or of no use to a rule
        capture = Capture(nn.Module(), self.graph, {}, self.tensors)
        learned = {
            maker: self.facts[name] for name, maker in self.makers.items() if name in self.facts
        }
        return Program(
            self.file,
            capture,
            self.origins,
            self.makers,
            self.constants,
            Told(self.symbols, learned),
        )

    def _maker(self, name: str) -> fx.Node:
        if name not in self.makers:
            raise OnnxError(f"{self.file.path}: nothing computes the tensor {name!r} that is read")
        return self.makers[name]

    def _constant(self, name: str, content: Tensor | None) -> None:
        if content is None:
            self._unread(name)
        else:
            self._known(name, content)

    def _known(self, name: str, content: Tensor) -> None:
        """A tensor of the file is a constant."""
        self.makers[name] = self._hold_at(name, content)
        self.constants[str(self.makers[name].target)] = name
        self.facts[name] = TensorFacts(tuple(map(Size, content.shape)), True, content.dtype)

    def _unread(self, name: str) -> None:
        """A constant of which torch knows nothing: it is an input that whoever calls can't set."""
        self.makers[name] = self.graph.placeholder(f"unread_{len(self.makers)}")

    def _held(self, content: Tensor) -> fx.Node:
        """A constant that the file does not have: its path is the name of no tensor of the file."""
        number = len(self.tensors)
        while f"weight_{number}" in self.taken:
            number += 1
        self.taken.add(f"weight_{number}")
        return self._hold_at(f"weight_{number}", content)

    def _hold_at(self, path: str, content: Tensor) -> fx.Node:
        self.tensors[path] = content
        node = self.graph.create_node("get_attr", path)
        self.contents[node] = content
        return node

    def _node(self, place: int, proto: Any, attributes: dict[str, Any]) -> None:
        standard = proto.domain in STANDARD
        if standard and proto.op_type == "Constant" and "value" in attributes:
            tensor = next(a.t for a in proto.attribute if a.name == "value")
            content = self.file.content(tensor)
            if content is None:  # torch has no such numbers: it is carried through like any node
                self._opaque(place, proto)
            else:
                self._known(proto.output[0], content)
            return
        found: fx.Node | None = None
        try:
            if standard and proto.op_type == "Split":
                if self._split(place, proto, attributes):
                    return
            elif standard and proto.op_type in RULES:
                found = RULES[proto.op_type](self._site(proto, attributes))
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            found = None  # it is written in a way that no rule foresaw
        if found is None:
            self._opaque(place, proto)
            return
        found.meta["name"] = proto.name or proto.output[0]
        self._made(place, 0, proto.output[0], found)

    def _made(self, place: int, output: int, name: str, node: fx.Node) -> None:
        self.origins[node] = Origin(place, output)
        self.makers[name] = node
        if all(source in self.contents for source in node.all_input_nodes):
            self._evaluate(node, name)

    def _site(self, proto: Any, attributes: dict[str, Any]) -> Site:
        makers = tuple(self._maker(name) if name else None for name in proto.input)
        contents = tuple(self.contents.get(maker) if maker else None for maker in makers)
        return Site(
            proto.op_type,
            attributes,
            self.file.opset,
            makers,
            1 + max((i for i, name in enumerate(proto.output) if name in self.read), default=0),
            sum(bool(name) for name in proto.output),
            tuple(self.facts.get(name) for name in proto.input),
            contents,
            self.graph,
            self._held,
        )

    def _evaluate(self, node: fx.Node, name: str) -> None:
        """Compute what no input has a part in: it is a constant then, of that name.

        Files spread a number over a few thousand channels; what is larger than that, and than what
        it is made of, is left to whoever runs the file.
        """
        given = sum(self.contents[source].numel() for source in node.all_input_nodes)
        if isinstance(node.target, OnnxOperator) and not node.target.foldable:
            return
        try:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.contents.__getitem__)
            target: Any = node.target
            called = getattr(Tensor, target) if isinstance(target, str) else target
            with torch.no_grad():
                content = called(*args, **kwargs)
        except Exception:
            return  # it is computed then when the file runs
        known = isinstance(content, Tensor) and content.dtype in DTYPES.values()
        if known and content.numel() <= max(LARGEST, given):
            del self.origins[node]
            self._known(name, content)

    def _split(self, place: int, proto: Any, attributes: dict[str, Any]) -> bool:
        """Translate a split into pieces of known lengths."""
        site = self._site(proto, attributes)
        rank, facts = site.rank(), site.facts[0]
        lengths, axis = site.integers(1, "split"), int(attributes.get("axis", 0))
        if rank is None or facts is None:
            return False
        size = facts.axes[axis]
        if size.known and not size.factor:
            return False
        if lengths is None and not site.given(1) and size.known:
            most = -(-size.factor // len(proto.output))
            lengths = [min(most, size.factor - at) for at in range(0, size.factor, most)]
        if lengths is None or len(lengths) != len(proto.output):
            return False
        pieces = site.call(torch.split, site.inputs[0], lengths, axis)
        for i, name in enumerate(proto.output):
            self._made(place, i, name, site.call(operator.getitem, pieces, i))
        return True

    def _opaque(self, place: int, proto: Any) -> None:
        reads = (*(name for name in proto.input if name), *outer(proto))
        call = OnnxOperator(proto, reads, self.file.proto)
        node = self.graph.call_function(call, tuple(map(self._maker, reads)))
        node.meta["name"] = proto.name or proto.output[0]
        if len(proto.output) == 1:
            self._made(place, 0, proto.output[0], node)
            return
        self.origins[node] = Origin(place, -1)
        given = [name for name in proto.output if name]
        for i, name in enumerate(given):
            each = self.graph.call_function(operator.getitem, (node, i))
            self._made(place, list(proto.output).index(name), name, each)


def _known(program: Program) -> tuple[dict[str, Tensor], dict[str, TensorFacts]]:
    """The contents of a file's constants, and the facts of its tensors, by their names."""
    capture, learned = program.capture, program.told.learned
    contents = {name: capture.attribute(path) for path, name in program.constants.items()}
    facts = {name: learned[node] for name, node in program.makers.items() if node in learned}
    return contents, facts


def translated(file: OnnxFile) -> Program:
    """Translate a file.

    Raises:
        OnnxError: if it is not valid.
    """
    held = {tensor.name for tensor in file.proto.graph.initializer}
    computed: dict[str, Tensor] = {}
    try:
        source = _Source(file)
        while True:  # sizes follow from constants, and more constants from these
            program = _Translator(source, computed).run()
            found = {
                name: program.capture.attribute(path)
                for path, name in program.constants.items()
                if name not in held
            }
            if found.keys() <= computed.keys():
                plain = with_splits(source.file, *_known(program))
                if plain is None:
                    return program
                source = _Source(plain)
            computed |= found
    except OnnxError:
        raise
    except Exception as error:
        raise OnnxError(f"{file.path} is not valid: {first_line(error)}") from error
