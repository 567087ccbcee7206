"""Writes: which are as good as their out-of-place twins, and which must be fenced.

`y = x.relu_()` means `y = x.relu()` if nothing reads x, or a view of it, afterwards, and neither
the caller nor the model holds it. Otherwise every call that touches the tensor keeps its place and
its form. What nobody here knows may write to whatever it is given.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from reparam import known
from reparam.arguments import depends_on_inputs, found
from reparam.capture import Capture
from reparam.dtypes import dtypes_of
from reparam.errors import UntracedError
from reparam.functions import CONVOLUTIONS
from reparam.lift_operators import pad_with
from reparam.meaning import has_meaning
from reparam.state import plain_tensors
from reparam.storage import LAYERS, kept_writable, makes_memory, owners, place_of, statistics

REGISTERED: Any = (known.TORCH._ops.OpOverload, known.TORCH._ops.OpOverloadPacket)
"""Operators by the names that they are registered under."""

SIZES = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}
"""What is read of a tensor without reading it."""


def out_of_place(node: fx.Node) -> tuple[Any, dict[str, Any]]:
    """Target and options of a call that computes the same without writing."""
    options = {name: name != "inplace" and option for name, option in node.kwargs.items()}
    if node.op in ("call_module", "get_attr") or not known.writes(node):
        return node.target, dict(node.kwargs)
    if isinstance(node.target, str):
        return node.target.removesuffix("_"), options
    target: Any = node.target
    operators = getattr(target, "__module__", "") == "_operator"
    name = target.__name__
    plain = f"__{name[1:]}__" if operators else name.removesuffix("_")  # `and_`, of `iand`
    return getattr(known.home(target), plain, target), options


def fenced(
    capture: Capture, inputs: Mapping[fx.Node, torch.dtype | None] = MappingProxyType({})
) -> set[fx.Node]:
    """The calls that must keep place and form, because of a write that others can see.

    Args:
        capture: the trace.
        inputs: the dtypes of its inputs, as far as they are known.
    """
    nodes = list(capture.graph.nodes)
    written = {n: sources for n in nodes if (sources := _written(n, capture))}
    aliases = {n: _aliases(sources, n, capture) for n, sources in written.items()}
    dtypes = dtypes_of(capture, inputs) if written else {}
    open_writes = {
        node
        for node, (shared, foreign) in aliases.items()
        if _seen(node, shared, foreign) or not _has_twin(node, shared, capture, dtypes)
    }
    # A module that writes in one of its calls is one module, and so writes in all of them.
    modules = {node.target for node in open_writes if node.op == "call_module"}
    open_writes |= {n for n in written if n.op == "call_module" and n.target in modules}
    fence = set(open_writes)
    held = kept_writable(nodes, capture) | _returned(capture)
    for node in open_writes:
        shared, _ = aliases[node]
        users = {user for alias in shared for user in alias.users}
        fence |= users | {
            alias for alias in shared if not _may_be_rewritten(alias, shared, capture)
        }
        attributes = (capture.attribute(str(a.target)) for a in shared if a.op == "get_attr")
        held |= {place_of(content): None for content in attributes}
    fence |= owners(held, capture)
    return {node for node in fence if node.op not in ("placeholder", "get_attr", "output")}


def state_written(capture: Capture) -> set[str]:
    """The paths of the model's tensors that a forward writes to."""
    found: set[str] = set()
    for node in capture.graph.nodes:
        sources = statistics(node) if node.op == "call_function" else []
        sources += _written(node, capture) if known.writes(node) else []
        found |= {path for source in sources if (path := _viewed(source, capture)) is not None}
    return found


def _returned(capture: Capture) -> dict[Any, None]:
    """The memory of the model that whoever calls it gets hold of, and may write to."""
    (output,) = capture.graph.find_nodes(op="output")
    found: dict[Any, None] = {}
    for result in output.all_input_nodes:
        path = _viewed(result, capture)
        if path is not None and path not in capture.tensors:  # of those, each call has its own
            found[place_of(capture.attribute(path))] = None
    return found


def _viewed(node: fx.Node, capture: Capture) -> str | None:
    """The path of the model's tensor that a node is, or is a view of.

    What takes several tensors, known here or not, mostly makes something of them.
    """
    viewed = [node]
    while len(viewed) == 1 and viewed[0].op != "get_attr":
        viewed = _shared(viewed[0], capture)
    return str(viewed[0].target) if len(viewed) == 1 else None


def _has_twin(
    node: fx.Node, shared: set[fx.Node], capture: Capture, dtypes: Mapping[fx.Node, Any]
) -> bool:
    """Whether a write that nobody sees may be left out, or is to a tensor that is new in each call.

    What is written to keeps its dtype. That of a sum or a product of two dtypes may be another, and
    that of a comparison is.
    """
    if node.op == "call_module":
        return _is_torchs_own(node, capture) or all(map(depends_on_inputs, shared))
    plain, options = out_of_place(node)
    name = plain if isinstance(plain, str) else plain.__name__
    if name in known.TRUTHS or name.startswith(("logical", "bitwise")):
        return False
    given = [dtypes[source] for source in dict.fromkeys(node.all_input_nodes)]
    floating = {dtype for dtype in given if dtype is not None and dtype.is_floating_point}
    if len(given) > 1 and (None in given or len(floating or set(given)) > 1):
        return False
    if name in known.ACCUMULATING and not floating:
        return False
    if plain is name:
        return callable(getattr(Tensor, name, None))
    return plain != node.target or "inplace" in options


def copy_what_leaves(capture: Capture) -> None:
    """Have tensors that a forward makes made in every call, where it writes to or returns them.

    To a trace they are constants of the model.

    Raises:
        UntracedError: if it writes to one of two that share memory.
    """
    graph = capture.graph
    nodes = [n for n in graph.nodes if n.op == "get_attr" and str(n.target) in capture.tensors]
    held = set(map(id, plain_tensors(capture.root))) if nodes else set[int]()
    made: dict[str, list[fx.Node]] = {}
    for node in nodes:
        content: Any = capture.tensors[str(node.target)]
        if isinstance(content, Tensor) and id(content) not in held:
            made.setdefault(str(node.target), []).append(node)
    memory = {path: capture.tensors[path].untyped_storage() for path in made}
    places = {path: storage.data_ptr() or path for path, storage in memory.items()}
    written = {leaf for node in graph.nodes if made for leaf in _written(node, capture)}
    shared = {path: _aliases(several, None, capture)[0] for path, several in made.items()}
    changed = {path for path in made if not written.isdisjoint(shared[path])}
    for path in changed:
        if any(places[path] == places[other] for other in made if other != path):
            name = type(capture.root).__name__
            raise UntracedError(name, "it writes to a tensor that it makes, and reads a view of it")
    returned = {
        source for node in graph.nodes if node.op == "output" for source in node.all_input_nodes
    }
    for path, several in made.items():
        if path in changed or not returned.isdisjoint(shared[path]):
            with graph.inserting_after(several[0]):
                fresh = graph.call_method("clone", (several[0],))
            for user in [user for node in several for user in node.users if user is not fresh]:
                for node in several:
                    user.replace_input_with(node, fresh)


def _may_be_rewritten(node: fx.Node, shared: set[fx.Node], capture: Capture) -> bool:
    """Whether a tensor that is written to comes from a layer that reads nothing written to.

    Any other layer that computes the same makes such a tensor as well, anew in every call; and what
    reads it is fenced. A layer that reads no input of the model could be computed once for all.
    """
    if node.op != "call_module" or not isinstance(capture.attribute(str(node.target)), LAYERS):
        return False
    return shared.isdisjoint(node.all_input_nodes) and depends_on_inputs(node)


def _written(node: fx.Node, capture: Capture) -> list[fx.Node]:
    """What a call writes to, or may."""
    if node.op == "call_module":
        module: Any = capture.attribute(str(node.target))
        if _is_torchs_own(node, capture):
            inplace = module.__dict__.get("inplace", False) and not has_meaning(module)
            return _read(node)[:1] if inplace else []
        return [] if has_meaning(module) else _read(node)
    if node.op == "call_method":
        return _read(node)[:1] if known.writes(node) else []
    if node.op != "call_function":
        return []
    if node.target is pad_with or isinstance(node.target, type | known.PureFunction):
        return []  # to make a dictionary or a dataclass of tensors writes to none
    if known.writes(node):
        several = "out" in node.kwargs or not isinstance(next(iter(node.args), None), fx.Node)
        return _read(node) if several else _read(node)[:1]
    target: Any = node.target
    if isinstance(target, REGISTERED):
        return _read(node) if _is_mutable(target) else []
    home = (getattr(node.target, "__module__", None) or "").partition(".")[0]
    foreign = known.name(node.target) is None and home not in ("torch", "math", "_operator")
    return _read(node) if foreign else statistics(node)


def _is_mutable(operator: Any) -> bool:
    """Whether an operator that somebody registered says that it writes to its arguments."""
    several = hasattr(operator, "overloads")
    kinds = [getattr(operator, name) for name in operator.overloads()] if several else [operator]
    return any(kind._schema.is_mutable for kind in kinds)


def _is_torchs_own(node: fx.Node, capture: Capture) -> bool:
    """Whether a module is one of torch's, which writes to its input only if it is told to."""
    own = type(capture.attribute(str(node.target))).__module__.startswith("torch.")
    return own and str(node.target) not in capture.untraced


def _read(node: fx.Node) -> list[fx.Node]:
    """The tensors among the arguments of a call."""
    return [leaf for leaf in found((node.args, node.kwargs), fx.Node) if not _is_size(leaf)]


def _is_size(node: fx.Node) -> bool:
    """Whether a node reads sizes, or the like, of a tensor."""
    if node.target is getattr:
        return node.args[1] in SIZES
    return node.op == "call_method" and node.target in SIZES


def _seen(node: fx.Node, aliases: set[fx.Node], foreign: bool) -> bool:
    """Whether a write shows elsewhere than in the result of the call that writes."""
    later = any(user > node for alias in aliases for user in alias.users)
    named = node.op == "call_function" and getattr(node.target, "__name__", "") == "setitem"
    return foreign or later or named or "out" in node.kwargs


def _aliases(
    written: list[fx.Node], writer: fx.Node | None, capture: Capture
) -> tuple[set[fx.Node], bool]:
    """Every node that may share memory with some, and whether the caller or the model holds it."""
    found: set[fx.Node] = set()
    foreign = False
    pending = list(written)
    while pending:
        node = pending.pop()
        if node in found or node is writer:
            continue
        found.add(node)
        if node.op in ("placeholder", "get_attr"):
            content = capture.attribute(str(node.target)) if node.op == "get_attr" else None
            foreign |= content is None or isinstance(content, Tensor)
            # A caller may give one tensor twice; a model may keep views of one tensor.
            pending.extend(_held_alike(node, content, capture))
        pending.extend(_shared(node, capture))
        pending.extend(user for user in node.users if node in _shared(user, capture))
    return found, foreign


def _held_alike(node: fx.Node, content: Any, capture: Capture) -> Iterator[fx.Node]:
    """The inputs, or the attributes of the model, that may lie in the memory of one of them."""
    for other in capture.graph.find_nodes(op=node.op):
        if content is None or place_of(capture.attribute(str(other.target))) == place_of(content):
            yield other


def _shared(node: fx.Node, capture: Capture) -> list[fx.Node]:
    """The inputs that a call's result may share memory with."""
    if fresh_result(node, capture):
        return []
    inputs = node.all_input_nodes
    return inputs[:1] if node.op != "call_module" and known.writes(node) else inputs


def fresh_result(node: fx.Node, capture: Capture) -> bool:
    """Whether a call's result is known to be new memory."""
    if node.op in ("placeholder", "get_attr"):
        return False
    if node.op == "output" or _is_size(node):
        return True
    if node.op == "call_module":
        module = capture.attribute(str(node.target))
        if getattr(module, "inplace", False):
            return False
        return makes_memory(module)
    return node.target in CONVOLUTIONS or (not known.writes(node) and makes_memory(node.target))
