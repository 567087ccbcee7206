"""The tensors and subgraphs that the graphs of an ONNX file are made of, by their names."""

from collections.abc import Iterator, Mapping
from typing import Any


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs among the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def outer(node: Any) -> list[str]:
    """The tensors that subgraphs of a node read from the graph around them."""
    names: list[str] = []
    for inner in subgraphs(node):
        own = {value.name for value in (*inner.input, *inner.initializer)}
        own |= {sparse.values.name for sparse in inner.sparse_initializer}
        for each in inner.node:
            names += [n for n in (*each.input, *outer(each)) if n and n not in own]
            own.update(each.output)
        names += [value.name for value in inner.output if value.name not in own]
    return list(dict.fromkeys(names))


def renamed(node: Any, names: Mapping[str, str], outputs: bool = False) -> Any:
    """A copy of a node that reads tensors under other names; its results keep theirs, or not."""
    copy = type(node)()
    copy.CopyFrom(node)
    inner = outer(copy)
    for i, name in enumerate(copy.input):
        copy.input[i] = names.get(name, name)
    for i, name in enumerate(copy.output if outputs else ()):
        copy.output[i] = names.get(name, name)
    if any(names.get(name, name) != name for name in inner):
        for graph in subgraphs(copy):
            _rename_inside(graph, {name: names[name] for name in inner if name in names})
    return copy


def _rename_inside(graph: Any, names: Mapping[str, str]) -> None:
    """Let a subgraph read tensors of the graph around it under other names."""
    own = {value.name for value in (*graph.input, *graph.initializer)}
    own |= {name for node in graph.node for name in node.output}
    open_ = {name: new for name, new in names.items() if name not in own}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = open_.get(name, name)
        for inner in subgraphs(node):
            _rename_inside(inner, open_)
    for value in graph.output:
        value.name = open_.get(value.name, value.name)


def all_names(graph: Any, told: bool = True) -> set[str]:
    """Every name in a graph and in its subgraphs, of tensors and of nodes."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    names |= {value.name for value in graph.value_info} if told else set[str]()
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        names |= {node.name, *node.input, *node.output}
        for inner in subgraphs(node):
            names |= all_names(inner)
    return names


def read_names(graph: Any) -> set[str]:
    """The names of the tensors that somebody reads."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names |= {*node.input, *outer(node)}
    return names - {""}
