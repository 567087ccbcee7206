"""In-place writes: which are as good as their out-of-place twins, and which must be fenced.

`y = x.relu_()` means `y = x.relu()` if nothing reads x, or a view of it, afterwards, and the
caller does not hold it. Otherwise every call that touches the tensor keeps its place and its form.
"""

from torch import fx, nn
from torch.utils import _pytree as pytree

from reparam import known
from reparam.values import CONVOLUTIONS

FRESH_MODULES = (
    nn.Linear,
    known.CONV_BASE,
    known.BATCH_NORM_BASE,
    known.ADAPTIVE_POOL_BASE,
)
"""Modules whose result shares no memory with their input, whatever the mode."""

FRESH_KINDS = {"pointwise", "elementwise", "matmul", "attention", "pool"}


def writes(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a call writes to its first argument."""
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    if node.kwargs.get("inplace") is True or "out" in node.kwargs:
        return True
    if node.op == "call_method":
        name = str(node.target)
        return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    name = getattr(node.target, "__name__", "")
    if getattr(node.target, "__module__", "") == "_operator":
        return name == "setitem" or (name.startswith("i") and name[1:] in known.KINDS)
    return name.endswith("_") and not name.endswith("__")


def fenced(graph: fx.Graph, root: nn.Module) -> set[fx.Node]:
    """The calls that must keep place and form, because of a write that others can see."""
    written = {node: source for node in graph.nodes if (source := _written(node, root)) is not None}
    aliases = {node: _aliases(source, node, root) for node, source in written.items()}
    open_writes = {node for node in written if _seen(node, *aliases[node])}
    # A module that writes in one of its calls is one module, and so writes in all of them.
    modules = {node.target for node in open_writes if node.op == "call_module"}
    open_writes |= {n for n in written if n.op == "call_module" and n.target in modules}
    fence = set(open_writes)
    for node in open_writes:
        shared, _ = aliases[node]
        fence |= shared | {user for alias in shared for user in alias.users}
    return {node for node in fence if node.op not in ("placeholder", "get_attr", "output")}


def _written(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """What a call writes to, if it does."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    leaves = pytree.tree_leaves(node.args) if writes(node, module) else []
    return next((leaf for leaf in leaves if isinstance(leaf, fx.Node)), None)


def _seen(node: fx.Node, aliases: set[fx.Node], foreign: bool) -> bool:
    """Whether a write shows elsewhere than in the result of the call that writes."""
    later = any(user > node for alias in aliases for user in alias.users)
    named = node.op == "call_function" and getattr(node.target, "__name__", "") == "setitem"
    return foreign or later or named or "out" in node.kwargs


def _aliases(written: fx.Node, writer: fx.Node, root: nn.Module) -> tuple[set[fx.Node], bool]:
    """Every node that may share memory with one, and whether the caller or the model holds it."""
    found: set[fx.Node] = set()
    foreign = False
    pending = [written]
    while pending:
        node = pending.pop()
        if node in found or node is writer:
            continue
        found.add(node)
        foreign |= node.op in ("placeholder", "get_attr")
        if not _fresh(node, root):
            pending.extend(node.all_input_nodes)
        pending.extend(user for user in node.users if not _fresh(user, root))
    return found, foreign


def _fresh(node: fx.Node, root: nn.Module) -> bool:
    """Whether a call's result is known to be new memory."""
    if node.op == "output":
        return True
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if getattr(module, "inplace", False):
            return False
        return isinstance(module, FRESH_MODULES) or known.kind(module) in FRESH_KINDS
    if node.target in CONVOLUTIONS:
        return True
    if node.target is getattr and node.args[1:2] == ("shape",):
        return True
    if writes(node, None) or known.name(node.target) in ("contiguous", "detach"):
        return False
    return known.kind(node.target) in FRESH_KINDS
