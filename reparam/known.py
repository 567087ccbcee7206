"""What is known of torch's own functions and modules that are no linear maps.

Only what inference of sizes, dead code and layouts need: which ones act on each element alone,
which rearrange, which have an effect.
"""

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from reparam.sizes import Size, product

POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    nn.Softplus, nn.Softsign, nn.Softmax, nn.LogSoftmax, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip

MAX_POOL_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip

POINTWISE_NAMES = {
    "relu", "relu6", "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish",
    "sigmoid",
    "logsigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "softmax",
    "log_softmax", "layer_norm", "group_norm", "rms_norm", "exp", "sqrt", "rsqrt", "abs",
    "clone", "contiguous", "detach", "erf", "square",
}  # fmt: skip

ELEMENTWISE_NAMES = {
    "add", "sub", "mul", "truediv", "floordiv", "div", "neg", "pow", "maximum", "minimum", "eq",
    "ne", "lt", "le", "gt", "ge", "mod", "subtract", "multiply", "divide", "true_divide",
    "negative", "rsub",
}  # fmt: skip

COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}

TRUTHS = COMPARISONS | {"not_equal", "less", "less_equal", "greater", "greater_equal"}
"""What returns truths, by all its names."""

ACCUMULATING = {"sum", "prod", "cumsum", "cumprod", "nansum"}
"""What makes 64-bit integers of others."""

ALIASES = {
    "axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input",
    "self": "input", "x2": "other",
}  # fmt: skip
"""The names that torch takes for its own, as NumPy has them."""

RESIZING = {
    "as_strided_", "resize_", "resize_as_", "set_", "squeeze_", "swapaxes_", "swapdims_", "t_",
    "transpose_", "unsqueeze_",
}  # fmt: skip
"""What gives a tensor other sizes in place."""

INPLACE_OPERATORS = {
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior",
    "ixor", "ilshift", "irshift",
}  # fmt: skip

EXACT_ON_INTEGERS = COMPARISONS | {"add", "sub", "mul", "mod"}
"""What gives an integer or a truth for any two integers, unless it divides by 0."""

PROMOTING_NAMES = {
    "exp", "sqrt", "rsqrt", "erf", "sigmoid", "tanh", "softsign", "truediv", "div", "divide",
    "true_divide",
}  # fmt: skip
"""What makes floating-point numbers of integers, unless it is told to round."""

HOMOGENEOUS_NAMES = {"relu", "leaky_relu", "prelu"}
"""What a positive factor passes."""

MAX_POOL_NAMES = {f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)}

POOL_NAMES = {"adaptive_avg_pool2d"}

KINDS = {
    **dict.fromkeys(POINTWISE_NAMES, "pointwise"),
    **dict.fromkeys(ELEMENTWISE_NAMES, "elementwise"),
    **dict.fromkeys(POOL_NAMES, "pool"),
    **dict.fromkeys(MAX_POOL_NAMES, "max_pool"),
    "clamp": "clamp",
    "matmul": "matmul",
    "scaled_dot_product_attention": "attention",
    "getitem": "getitem",
    "getattr": "getattr",
    "flatten": "reshape",
    "reshape": "reshape",
    "view": "reshape",
    "unflatten": "reshape",
    "permute": "permute",
    "transpose": "permute",
    "swapaxes": "permute",
    "select": "select",
    "unbind": "unbind",
    "chunk": "chunk",
    "split": "split",
}
"""By the name that a function and the method of its name share."""

TORCH: Any = torch
"""torch as far as its stubs do not go."""

NORM_BASE: Any = TORCH.nn.modules.batchnorm._NormBase
BATCH_NORM_BASE: Any = TORCH.nn.modules.batchnorm._BatchNorm
DROPOUT_BASE: Any = TORCH.nn.modules.dropout._DropoutNd
CONV_BASE: Any = TORCH.nn.modules.conv._ConvNd
ADAPTIVE_POOL_BASE: Any = TORCH.nn.modules.pooling._AdaptiveAvgPoolNd
"""What torch's modules of one kind share."""

ASSERT: Any = TORCH._assert
"""The assertion that tracing leaves in a graph."""

HELD = "it holds for inputs that"
"""How the assertions begin that hold a result to its example inputs."""

SAME_WAY = f"{HELD} take the same way as the example inputs"
SAME_RANK = f"{HELD} have as many axes as the example inputs"
SAME_KIND = f"{HELD} are of floating-point numbers, as the example inputs"

MODULES_WITH_FUNCTIONS: tuple[Any, ...] = (operator, torch, F, TORCH._C._nn)


class PureFunction:
    """A function that has no effect, and gives a new tensor, though it is not torch's."""


def hooked(module: Any) -> bool:
    """Whether calling a module does more than its forward says, or its backward would."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def internal(target: Any) -> bool:
    """Whether a target is one of torch's internal operators, of which torch.export makes graphs."""
    return isinstance(target, TORCH._ops.OpOverload) and target.namespace in ("aten", "prims")


def asserted(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that hold a result to the axes and kinds of its example inputs."""
    asserts = graph.find_nodes(op="call_function", target=ASSERT)
    found = {node for node in asserts if str(node.args[-1]).startswith((SAME_RANK, SAME_KIND))}
    for node in reversed(graph.nodes) if found else ():
        if node.op != "placeholder" and node.users and found.issuperset(node.users):
            found.add(node)
    return found


def compiled(module: nn.Module) -> bool:
    """Whether a module is what torch.compile makes of another one.

    Told by name: its class is in a part of torch that takes seconds to import.
    """
    kind = type(module)
    return kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo")


def kind(target: Any) -> str | None:
    """What a target does, or None where that is not known here."""
    if isinstance(target, nn.Module):
        if hooked(target) or "forward" in vars(target):
            return None  # it does what somebody else says
        if type(target) in POINTWISE_MODULES:
            return "pointwise"
        if type(target) in MAX_POOL_MODULES:
            return "max_pool" if not getattr(target, "return_indices", False) else None
        return "pool" if type(target) is nn.AdaptiveAvgPool2d else None
    return KINDS.get(name(target) or "")


def pooled_axes(target: Any, rank: int) -> int:
    """How many axes, the last ones, a pool or a resizing of torch's runs over.

    The names of pools say so; a resizing runs over all behind the channels.
    """
    called = type(target).__name__ if isinstance(target, nn.Module) else name(target) or ""
    number = called.lower().removesuffix("d")[-1]
    return int(number) if number.isdigit() else rank - 2


def promotes(target: Any) -> bool:
    """Whether a target makes floating-point numbers of integers."""
    called = type(target).__name__.lower() if isinstance(target, nn.Module) else name(target)
    return called in PROMOTING_NAMES


def homogeneous(target: Any) -> bool:
    """Whether a positive factor passes a target."""
    if isinstance(target, nn.Module):
        return type(target) in (nn.ReLU, nn.LeakyReLU, nn.PReLU)
    return name(target) in HOMOGENEOUS_NAMES


def softmax_axis(target: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The axis over which a call takes a softmax; None if it does not, or does not say."""
    if isinstance(target, nn.Softmax):
        return target.dim
    if name(target) != "softmax" or "dtype" in options:
        return None
    return options.get("dim", arguments[1] if len(arguments) > 1 else None)


def home(function: Any) -> Any:
    """The module of torch or Python that a function is from; None for one of a user's."""
    own = getattr(function, "__name__", "")
    return next((m for m in MODULES_WITH_FUNCTIONS if getattr(m, own, None) is function), None)


def torchs_own(target: Any) -> bool:
    """Whether a function or module is torch's, or a method's name: nobody else's code is run."""
    if isinstance(target, nn.Module):
        return type(target).__module__.startswith("torch.nn.")
    return isinstance(target, str) or home(target) is not None


def name(target: Any) -> str | None:
    """The name that a method and torch's or Python's own function of that name share."""
    if isinstance(target, str):
        return target
    own = target is getattr or home(target) is not None
    return target.__name__ if own else None


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call of torch's, under torch's own names."""
    return {ALIASES.get(key, key): value for key, value in options.items()}


def tells_dtype(argument: Any) -> bool:
    """Whether an argument of a view says how to read its bits, not their sizes."""
    asked = isinstance(argument, fx.Node) and argument.target is getattr
    return isinstance(argument, torch.dtype) or (asked and argument.args[1] == "dtype")


def calls(node: fx.Node) -> str | None:
    """The name of the function or method that a node calls: paths and inputs have others."""
    return name(node.target) if node.op in ("call_function", "call_method") else None


def multiplies(node: fx.Node) -> bool:
    """Whether a call is arithmetic, not a layer."""
    return node.op != "call_module" and kind(node.target) == "elementwise"


def writes(node: fx.Node) -> bool:
    """Whether a call of a function or method says that it writes to its first argument."""
    if node.kwargs.get("inplace") is True or "out" in node.kwargs:
        return True
    name = getattr(node.target, "__name__", str(node.target))
    if name in ("setitem", "__setitem__"):
        return True
    plain = name.removeprefix("__").removesuffix("__")
    if getattr(node.target, "__module__", "") == "_operator" or plain != name:
        return plain in INPLACE_OPERATORS
    return name.endswith("_") and not name.endswith("__")


def pure(target: Any) -> bool:
    """Whether a target is known to have no effect and no randomness."""
    return kind(target) is not None


def reshaped(target: Any, axes: tuple[Size, ...], sizes: list[Any]) -> tuple[Size, ...] | None:
    """The axes after a flatten, reshape, view or unflatten with these further arguments."""
    called = target if isinstance(target, str) else target.__name__
    rank = len(axes)
    if called == "flatten":
        first, last = tuple(sizes) + (0, -1)[len(sizes) :]
        if not isinstance(first, int) or not isinstance(last, int) or rank == 0:
            return None
        first, last = first % rank, last % rank
        return (*axes[:first], product(axes[first : last + 1]), *axes[last + 1 :])
    if called == "unflatten":
        axis = cast("int", sizes[0])
        if not isinstance(sizes[1], tuple | list):
            return None
        new = _fill(axes[axis], list(cast("tuple[Any, ...]", sizes[1])))
        return None if new is None else (*axes[: axis % rank], *new, *axes[axis % rank + 1 :])
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = list(cast("tuple[Any, ...]", sizes[0]))
    return _fill(product(axes), sizes)


def _fill(total: Size, sizes: list[Any]) -> tuple[Size, ...] | None:
    """Sizes of which at most one is -1, which stands for what is left of the total."""
    parts = [Size(size) if isinstance(size, int) else size for size in sizes]
    if not all(isinstance(part, Size) for part in parts):
        return None
    rest = product(tuple(part for part in parts if part.factor != -1))
    if sum(part.factor == -1 for part in parts) == 1:
        left = total.divided_by(rest)
        return None if left is None else tuple(left if p.factor == -1 else p for p in parts)
    return tuple(parts)  # that they are as many elements, the model itself demands
