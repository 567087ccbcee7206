"""Write a rewritten graph back into the file that it came from.

A node that no pass touched is kept as it is, to the last attribute; only the names of the tensors
that it reads may change. All else, inputs, outputs, functions, metadata, is carried over.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import fx

from reparam.capture import Source
from reparam.errors import OnnxError
from reparam.export_graph import extra
from reparam.graph import Call, ValueGraph
from reparam.onnx.graphs import all_names, outer, read_names, renamed
from reparam.onnx.nodes import Draft, sizes_of, tensor_of, write
from reparam.onnx.shapes import LOWEST_IR
from reparam.onnx.translate import Program
from reparam.values import Value

Transcribed: TypeAlias = Mapping[Value, Source]
"""The traced call that a value was, by the value."""

SIZES = ("size", getattr)
"""What a trace asks a tensor for its sizes with."""


def _trained(proto: Any) -> set[str]:
    """What a file says of its own training names."""
    names = set[str]()
    for info in proto.training_info:
        names |= all_names(info.initialization) | all_names(info.algorithm)
        for bound in (*info.initialization_binding, *info.update_binding):
            names |= {bound.key, bound.value}
    return names


class _Writer:
    """Names the tensors of a graph of values, and adds the nodes that compute them on the way."""

    def __init__(self, program: Program, values: ValueGraph, known: Transcribed) -> None:
        self.program = program
        self.values = values
        self.graph = program.file.proto.graph
        convolves = any(node.op_type == "Conv" for node in self.graph.node)
        self.draft = Draft(program.file.opset, all_names(self.graph), convolves)
        self.tensors = {maker: name for name, maker in program.makers.items()}
        self.named: dict[fx.Node, str] = {}
        self.kept: dict[int, dict[str, str]] = {}
        self.moved: dict[tuple[Any, ...], list[str]] = {}
        self.transcribed = known
        traced = [node for node in program.capture.graph.nodes if node.op == "placeholder"]
        ours = [node for node in values.graph.nodes if node.op == "placeholder"]
        for node, theirs in zip(ours, traced, strict=True):
            self.named[node] = self.tensors[theirs]

    def run(self) -> Any:
        """The new `ModelProto`; weights that lie beside the file are told of as there."""
        for call in self.values.calls():
            source = _source(call)
            if call.node.op != "placeholder" and (
                source is None or source.node in self.program.origins
            ):
                self.name(call)
        results: Any = self.values.graph.output_node().args[0]
        return self._assembled([self.name(Call(node)) for node in results])

    def name(self, call: Call) -> str:
        """The name of a call's result."""
        if call.node not in self.named:
            self.named[call.node] = self._written(call)
        return self.named[call.node]

    def _written(self, call: Call) -> str:
        source = _source(call)
        if source is not None:
            if str(source.node.target) in self.program.constants:
                return self.program.constants[str(source.node.target)]
            origin = self.program.origins.get(source.node)
            read = None if origin is None else self._read(call, source)
            if origin is not None and read is not None and self._keeps(origin.node, read):
                return self.tensors.get(source.node, "")
        like = self.transcribed.get(call.value)
        if like is not None and like.node in self.program.origins:
            if self._relative(call, like):
                return write(self.draft, call, [self.name(call.inputs[0])])
            read = self._moved(call, like)
            if read is not None:
                return self._like(call, like, read)
        return write(self.draft, call, [self.name(source) for source in call.inputs])

    def _read(self, call: Call, source: Source) -> dict[str, str] | None:
        """For the tensors that a call's node reads, what they are called now.

        None if something between it and them was rewritten.
        """
        read: dict[str, str] = {}
        for traced, now in zip(source.inputs, call.inputs, strict=True):
            if traced in self.tensors:
                read[self.tensors[traced]] = self.name(now)
                continue
            same = _source(now)
            if same is None or same.node is not traced:
                return None
            inner = self._read(now, same)
            if inner is None:
                return None
            read |= inner
        return read

    def _keeps(self, place: int, read: dict[str, str]) -> bool:
        """Keep a node of the file, unless it is kept already and reads something else."""
        if place not in self.kept:
            self.kept[place] = read
            self.draft.nodes.append(renamed(self.graph.node[place], read))
        return self.kept[place] == read

    def _relative(self, call: Call, like: Source) -> bool:
        """Whether a node that takes axes from the sizes of its input has an input of others now.

        The call is a reshape to sizes in numbers, which is the same of either.
        """
        node = self.graph.node[self.program.origins[like.node].node]
        if node.op_type not in ("Squeeze", "Unsqueeze") or not sizes_of(call):
            return False
        told, now = self.program.told.learned.get(like.inputs[0]), call.inputs[0].shape
        return told is None or now is None or told.axes != now.axes

    def _moved(self, call: Call, like: Source) -> dict[str, str] | None:
        """For the tensors that a node reads, what it is to read to do the same to something else.

        None if it computes some of what this call is given, as a `Sum` of three tensors does. Sizes
        that it takes from a tensor, it takes from the other one.
        """
        read: dict[str, str] = {}
        for traced, now in zip(like.inputs, call.inputs, strict=True):
            if traced in self.tensors:
                read[self.tensors[traced]] = self.name(now)
            elif traced.target not in SIZES:
                same = _source(now)
                inner = self._read(now, same) if same and same.node is traced else None
                if inner is None:
                    return None
                read |= inner
        return read

    def _like(self, call: Call, like: Source, read: Mapping[str, str]) -> str:
        """A node that does what another one did, to something else."""
        place = self.program.origins[like.node].node
        node = self.graph.node[place]
        output = self.program.origins[like.node].output
        if output < 0:
            raise OnnxError(f"{call.name}: {node.op_type} of several results can't be moved")
        key = (place, *sorted(read.items()))
        if key not in self.moved:
            node = renamed(node, read)
            node.name = self.draft.fresh(node.name or call.name)
            for i, name in enumerate(node.output):
                node.output[i] = self.draft.fresh(f"{name}_moved") if name else ""
            self.draft.nodes.append(node)
            self.moved[key] = list(node.output)
        return self.moved[key][output]

    def _assembled(self, results: list[str]) -> Any:
        proto = extra("onnx").ModelProto()
        proto.CopyFrom(self.program.file.proto)
        graph = proto.graph
        nodes = self._with_outputs(results)
        graph.ClearField("node")
        graph.node.extend(nodes)
        evaluated = self._evaluated(nodes)
        before, after = read_names(self.graph), read_names(graph)
        gone = before - after - {value.name for value in graph.input} - _trained(proto)
        kept = [tensor for tensor in self.graph.initializer if tensor.name not in gone]
        graph.ClearField("initializer")
        graph.initializer.extend([*kept, *evaluated, *self.draft.initializers])
        proto.ir_version = max(proto.ir_version, LOWEST_IR)
        standing = all_names(graph, told=False)
        told = [info for info in self.graph.value_info if info.name in standing]
        graph.ClearField("value_info")
        graph.value_info.extend(told)
        notes = [n for n in self.graph.quantization_annotation if n.tensor_name in standing]
        graph.ClearField("quantization_annotation")
        graph.quantization_annotation.extend(notes)
        return proto

    def _evaluated(self, nodes: list[Any]) -> list[Any]:
        """The constants that nodes of the file computed, and that these read, as initializers."""
        read = {name for node in nodes for name in (*node.input, *outer(node))}
        read |= {value.name for value in self.graph.output}
        held = {tensor.name for tensor in self.graph.initializer}
        capture = self.program.capture
        return [
            tensor_of(name, capture.attribute(path))
            for path, name in self.program.constants.items()
            if name in read and name not in held
        ]

    def _with_outputs(self, results: list[str]) -> list[Any]:
        """All nodes, the results under the names that the file gives its outputs."""
        made = {name for node in self.draft.nodes for name in node.output}
        wanted = [value.name for value in self.graph.output]  # one tensor may be listed twice
        pairs = [*dict(zip(wanted, results, strict=True)).items()]
        given = {have for want, have in pairs if want == have}
        others = {want for want, _ in pairs if want in made} - given
        names = {name: self.draft.fresh(name) for name in others}
        copied: list[tuple[str, str]] = []
        for want, have in pairs:
            if want != have and have in made and have not in given:
                names[have] = want
                given.add(have)
            elif want != have:
                copied.append((have, want))
        nodes = [renamed(node, names, outputs=True) for node in self.draft.nodes]
        helper = extra("onnx.helper")
        return nodes + [
            helper.make_node("Identity", [names.get(have, have)], [want], self.draft.fresh(want))
            for have, want in copied
        ]


def _source(call: Call) -> Source | None:
    """The traced call that a call is, which no pass made."""
    return call.node.meta.get("traced")


def transcribed(values: ValueGraph) -> Transcribed:
    """What each value of a graph that no pass has seen yet was in the trace."""
    sources = ((call.value, _source(call)) for call in values.calls())
    return {value: source for value, source in sources if source is not None}


def written(program: Program, values: ValueGraph, known: Transcribed) -> Any:
    """The file's `ModelProto` with a rewritten graph.

    Args:
        program: the file.
        values: the graph.
        known: the values that it had before.

    Raises:
        OnnxError: if something in it is no operator of ONNX.
    """
    return _Writer(program, values, known).run()
