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
    fence: set[fx.Node] = set()
    for node in graph.nodes:
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not writes(node, module):
            continue
        written = next(
            (leaf for leaf in pytree.tree_leaves(node.args) if isinstance(leaf, fx.Node)), None
        )
        if written is None:
            continue
        aliases, foreign = _aliases(written, node, root)
        seen = any(user > node for alias in aliases for user in alias.users)
        named = node.op == "call_function" and getattr(node.target, "__name__", "") == "setitem"
        if foreign or seen or named or "out" in node.kwargs:
            fence |= aliases | {user for alias in aliases for user in alias.users}
            fence.add(node)
    return {node for node in fence if node.op not in ("placeholder", "get_attr", "output")}


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
    return not writes(node, None) and known.kind(node.target) in FRESH_KINDS
