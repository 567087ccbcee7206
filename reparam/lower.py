"""Write a graph of values back as a plain torch module that can be traced again.

A call that no pass touched keeps its module, on a copy; new values become torch's own modules and
plain calls. Nothing of the original is shared.
"""

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.algebra import border_bias
from reparam.arguments import found, mapped
from reparam.capture import Capture, Source
from reparam.devices import device_of
from reparam.effects import out_of_place
from reparam.graph import Call, ValueGraph
from reparam.loadable import make_loadable
from reparam.lower_operators import (
    batch_norm_module,
    conv_module,
    copied,
    operator_module,
    parameter,
    write_call,
    write_nothing,
    write_operator,
    write_padding,
)
from reparam.operators import Cat, Operator, Pad, Slice
from reparam.paths import Paths, allowed, module_at
from reparam.strides import Strides, in_order
from reparam.values import BatchNorm, Constant, Conv, Opaque, Shape, Sum
from reparam.wrappers import duplicate


class _Lowerer:
    def __init__(
        self, values: ValueGraph, capture: Capture, parts: Mapping[int, nn.Module], keep: bool
    ) -> None:
        self.values = values
        self.keep = keep
        self.capture = capture
        self.graph = fx.Graph()
        self.attributes: dict[str, Any] = {}
        self.copies: dict[Any, Any] = dict(parts)
        self.lowered: dict[fx.Node, fx.Node] = {}
        self.sources: dict[fx.Node, fx.Node] = {}
        self.transient: list[str] = []
        self.training: list[str] = []
        self.strides = Strides(capture)
        self.paths = Paths(path for call in values.calls() for path in _own_paths(call))

    def run(self) -> fx.GraphModule:
        for node in self.values.graph.nodes:
            if node.op == "placeholder":
                self.lowered[node] = self.graph.node_copy(node)
            elif node.op == "output":
                self._output(node)
            elif not isinstance(Call(node).value, Shape):
                self._node(node)
        make_loadable(self.graph, self.attributes, self.lowered)
        self.graph.lint()
        module = fx.GraphModule(self.attributes, self.graph, type(self.capture.root).__name__)
        self._keep_states(module)
        return module

    def _node(self, node: fx.Node) -> Any:
        """The node that another has become. Sizes are read where they are used, as a trace does."""
        if node not in self.lowered:
            self.strides.note(Call(node))
            self.lowered[node] = self._call(Call(node))
            if not self.keep:
                self.values.forget(node)
        return self.lowered[node]

    def _output(self, output: fx.Node) -> None:
        loose = self.strides.returned(output)
        self.graph.node_copy(output, lambda node: self._returned(node, node in loose))

    def _returned(self, node: fx.Node, loose: bool) -> Any:
        """A result of the model; of what was computed once for all, whoever calls gets a copy."""
        if loose:
            return self.graph.call_method("contiguous", (self._node(node),))
        constant = isinstance(lowered := self._node(node), fx.Node) and lowered.op == "get_attr"
        if not constant or isinstance(node.meta.get("source"), Source):
            return lowered
        return self.graph.call_method("clone", (lowered,))

    def _keep_states(self, module: fx.GraphModule) -> None:
        """Leave a module in training mode that was by itself, and a buffer out of state dicts."""
        module.eval()
        for path in self.training:
            module.get_submodule(path).train()
        for path in self.transient:
            owner, _, name = path.rpartition(".")
            vars(module.get_submodule(owner))["_non_persistent_buffers_set"].add(name)

    def _call(self, call: Call) -> Any:
        value, args = call.value, call.node.args
        inputs: Any = mapped((args, call.node.kwargs), fx.Node, self._node)
        inputs = in_order(inputs, map(self._node, self.strides.to_order(call)))
        source = call.node.meta.get("source")
        if isinstance(source, Source):
            given = found(inputs[0], fx.Node)
            return self._unchanged(source, dict(zip(source.inputs, given, strict=True)))
        if isinstance(value, Operator):
            return self._operator(call, value, inputs[0])
        match value:
            case Conv():
                return self._conv(call, value, *inputs[0])
            case Sum(coefficients):
                return self._sum(coefficients, inputs[0])
            case BatchNorm():
                return self._batch_norm(call, value, *inputs[0])
            case Constant(content):
                return self._attribute(call, content)
            case Shape(_, True):
                return self.graph.call_method("dim", (inputs[0][0],))
            case Shape(axis):
                return self.graph.call_method(
                    "size", (inputs[0][0], *(() if axis is None else (axis,)))
                )
            case Opaque():
                return self._opaque(call, value, *inputs)
            case _:
                return self.graph.call_function(value, *inputs)

    def _unchanged(self, source: Source, arguments: dict[fx.Node, fx.Node]) -> fx.Node:
        """Copy a call that no pass touched, with the constants among its arguments."""

        def argument(node: fx.Node) -> fx.Node:
            return arguments[node] if node in arguments else self._constant(node)

        return self._copy(source.node, argument)

    def _constant(self, node: fx.Node) -> fx.Node:
        if node not in self.sources:
            self.sources[node] = self._copy(node, self._constant)
        return self.sources[node]

    def _copy(self, node: fx.Node, argument: Any) -> fx.Node:
        # No name is passed on: fx's own numbering is what a trace of the result would give too.
        target, options = out_of_place(node)
        if node.op in ("call_module", "get_attr"):
            target = self._keep(str(node.target))
        args, kwargs = mapped((node.args, options), fx.Node, argument)
        return self.graph.create_node(node.op, target, args, kwargs)

    def _keep(self, path: str, as_it_is: bool = False) -> str:
        """Take a copy of the original's attribute at a path; what it shares, the copies share."""
        kept = allowed(path)
        if kept not in self.attributes:
            content = duplicate(self.capture.attribute(path), self.copies)
            self._hold(kept, content)
            if isinstance(content, nn.Module):
                if getattr(content, "training", False):  # a frozen ScriptModule does not say
                    self.training.append(kept)
                if not as_it_is:
                    write_nothing(content)
                return kept
            owner, _, name = path.rpartition(".")
            home = module_at(self.capture.root, owner)
            if name in getattr(home, "_non_persistent_buffers_set", ()):
                self.transient.append(kept)
        return kept

    def _opaque(self, call: Call, value: Opaque, args: Any, kwargs: Any) -> fx.Node:
        if isinstance(value.target, str):
            return self.graph.call_method(self.strides.method(call, value.target), args, kwargs)
        if isinstance(value.target, nn.Module):
            assert value.path is not None, "a module has a place in the model"
            path = self._keep(value.path, as_it_is=value.pinned)
            return write_call(self.graph, path, args, kwargs)
        return self.graph.call_function(value.target, args, kwargs)

    def _conv(self, call: Call, conv: Conv, x: fx.Node) -> fx.Node:
        name = self.paths.fresh(call.name)
        layer = call.traits.convolution and (conv.n > 0 or conv.groups == 1)
        if conv.affine and not layer:
            return self._affine(name, conv, x, call)
        bias = conv.bias
        if conv.border is not None:
            # Padded with zeros, after the constant was taken off; the bias makes up for it.
            constant = conv.border.reshape(-1, *(1,) * conv.n)
            x = self.graph.call_function(
                operator.sub, (x, self._buffer(f"{name}_border", constant, call))
            )
            bias = border_bias(conv)
        if not conv.symmetric:
            x = write_padding(self.graph, x, conv.padding, conv.padding_mode)
        module: Any = conv_module(conv, bias is not None)
        self._hold(name, module)
        # To set them as attributes, as a user would, takes much longer.
        module._parameters["weight"] = self._parameter(conv.weight, call)
        if bias is not None:
            module._parameters["bias"] = self._parameter(bias, call)
        return write_call(self.graph, name, (x,))

    def _affine(self, name: str, conv: Conv, x: fx.Node, call: Call) -> fx.Node:
        """A scale and shift per channel, as a product and a sum."""
        spread = (-1, *(1,) * conv.n)
        if not bool((conv.weight == 1).all()) or conv.bias is None:
            scale = f"{name}.scale"
            self._hold(scale, self._parameter(conv.weight.reshape(spread), call))
            x = self.graph.call_function(operator.mul, (x, self.graph.get_attr(scale)))
        if conv.bias is not None:
            shift = f"{name}.shift"
            self._hold(shift, self._parameter(conv.bias.reshape(spread), call))
            x = self.graph.call_function(operator.add, (x, self.graph.get_attr(shift)))
        return x

    def _batch_norm(self, call: Call, norm: BatchNorm, x: fx.Node) -> fx.Node:
        self._hold(
            name := self.paths.fresh(call.name), batch_norm_module(norm, call, self._device(call))
        )
        return self.graph.call_module(name, (x,))

    def _operator(self, call: Call, value: Operator, inputs: tuple[fx.Node, ...]) -> fx.Node:
        """Torch's own module, with new weights as parameters, or function."""
        name = self.paths.fresh(call.name)
        if isinstance(value, Cat | Pad | Slice):
            known_dtype = call.shape is not None and call.shape.dtype is not None
            hold = functools.partial(self._buffer, f"{name}_border", call=call)
            return write_operator(self.graph, value, inputs, hold, known_dtype)
        self._hold(name, operator_module(value, lambda p: self._parameter(p, call)))
        return self.graph.call_module(name, inputs)

    def _sum(self, coefficients: tuple[float, ...], inputs: tuple[fx.Node, ...]) -> fx.Node:
        total, write = None, self.graph.call_function
        pairs = sorted(zip(coefficients, inputs, strict=True), key=lambda pair: pair[0] == -1)
        for coefficient, x in pairs:
            if total is not None and coefficient == -1:
                total = write(operator.sub, (total, x))
                continue
            term = x if coefficient == 1 else write(operator.mul, (x, coefficient))
            total = term if total is None else write(operator.add, (total, term))
        assert total is not None, "a sum has at least one operand"
        return total

    def _attribute(self, call: Call, content: Any) -> Any:
        if not isinstance(content, Tensor):
            return content
        return self._buffer(self.paths.fresh(call.name), content, call)

    def _buffer(self, name: str, content: Tensor, call: Call) -> fx.Node:
        self._hold(name, copied(content, call, self._device(call)))
        return self.graph.get_attr(name)

    def _parameter(self, content: Tensor, call: Call) -> nn.Parameter:
        return parameter(content, call, self._device(call))

    def _device(self, call: Call) -> torch.device:
        """Where the weights of a call go; numbers of the code alone, to the model's first ones."""
        return call.traits.device or device_of(self.capture.root)

    def _hold(self, path: str, content: Any) -> None:
        """Let the result have a module or a tensor at a path."""
        self.attributes[path] = content
        self.paths.occupy(path)


def _own_paths(call: Call) -> Iterator[str]:
    """The paths of the module and the tensors that a call will keep."""
    if isinstance(call.value, Opaque) and call.value.path is not None:
        yield call.value.path
    source: Source | None = call.node.meta.get("source")
    if source is None:
        return
    pending = [source.node]
    while pending:
        node = pending.pop()
        if node.op in ("call_module", "get_attr"):
            yield str(node.target)
        pending.extend(n for n in node.all_input_nodes if n not in source.inputs)


def lower(
    values: ValueGraph,
    capture: Capture,
    parts: Mapping[int, nn.Module] | None = None,
    keep: bool = False,
) -> fx.GraphModule:
    """Write the graph as a module. The captured model stays as it is.

    Args:
        values: the graph. To make room, it is emptied on the way.
        capture: that it was transcribed from.
        parts: what takes the place of parts of modules that stay, by the identity of the part.
        keep: whether the graph stays as it is.
    """
    return _Lowerer(values, capture, parts or {}, keep).run()
