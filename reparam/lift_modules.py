"""What torch's own modules mean, as values."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from reparam.algebra import batch_norm_affine
from reparam.errors import Declined, require
from reparam.functions import Sides
from reparam.values import IDENTITY, BatchNorm, Conv, Value

DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORM_AXES: dict[type[nn.Module], int | None] = {
    nn.BatchNorm1d: None,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
    nn.SyncBatchNorm: None,
}
INSTANCE_NORM_AXES: dict[type[nn.Module], int] = {
    nn.InstanceNorm1d: 1,
    nn.InstanceNorm2d: 2,
    nn.InstanceNorm3d: 3,
}


REAL = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
"""The dtypes of what can be folded."""

PLAIN = {Tensor, nn.Parameter, nn.Buffer}
"""The classes of tensors that compute nothing of their own."""

Kinds = Mapping[type[nn.Module], Callable[[Any, int | None], Value | None]]
"""What each class of modules means."""


def module_value(module: nn.Module, axes: int | None, kinds: Kinds) -> Value | None:
    """The value of a module, or None if it is of no kind known here.

    Args:
        module: a leaf of the traced model.
        kinds: the classes that are known.
        axes: how many axes its input has, if that is known.

    Raises:
        Declined: if it is of a known kind but in a state that rules the value out.
    """
    known: Any = next((kind for kind in type(module).__mro__ if kind in kinds), None)
    if known is None:
        return None
    own = own_forward(module, known)
    require(not own, f"its class {type(module).__name__} has a forward of its own")
    return kinds[known](module, axes)


def own_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module has another forward than its kind."""
    plain: Any = kind.forward
    return type(module).forward is not plain or "forward" in vars(module)


def _identity(module: nn.Module, axes: int | None) -> Value:
    require(not module.training or isinstance(module, nn.Identity), "it is in training mode")
    return IDENTITY


def _linear(module: Any, axes: int | None) -> Value:
    return convolution(module.weight, module.bias, (), (), (), 1)


def _conv(module: Any, axes: int | None) -> Value:
    plain = cast("Any", CONVS[module.weight.ndim - 3])
    own = cast("Any", type(module))._conv_forward is not plain._conv_forward
    own |= "_conv_forward" in vars(module)
    require(not own, f"its class {type(module).__name__} convolves in a way of its own")
    conv = convolution(
        module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups
    )
    mode = module.padding_mode
    if mode == conv.padding_mode:
        return conv
    sides = module._reversed_padding_repeated_twice  # what torch looks at in these modes
    pairs = tuple(zip(sides[::2], sides[1::2], strict=True))[::-1]
    return replace(conv, padding_mode=mode, padding=pairs)


def _batch_norm(module: Any, axes: int | None) -> Value:
    require(not module.training, "it is in training mode, where it uses the batch's statistics")
    n = _image_axes(module, BATCH_NORM_AXES)
    return _by_running_statistics(module, n if n is not None or axes is None else axes - 2)


def _instance_norm(module: Any, axes: int | None) -> Value:
    """A batch norm, by running statistics, that takes an image without a batch too."""
    plain = cast("Any", nn.InstanceNorm1d)._apply_instance_norm
    own = cast("Any", type(module))._apply_instance_norm is not plain
    own |= "_apply_instance_norm" in vars(module)
    require(not own, f"its class {type(module).__name__} normalizes in a way of its own")
    kept = not module.training and module.track_running_stats
    require(kept, "it uses the statistics of each image")
    n = _image_axes(module, INSTANCE_NORM_AXES)
    norm = _by_running_statistics(module, n)
    return norm if n is not None and axes == n + 2 else batch_norm_affine(norm)


def _image_axes(module: nn.Module, axes: Mapping[type[nn.Module], int | None]) -> int | None:
    return next(n for kind, n in axes.items() if isinstance(module, kind))


def _by_running_statistics(module: Any, n: int | None) -> BatchNorm:
    return batch_norm(
        module.running_mean, module.running_var, module.weight, module.bias, module.eps, n
    )


KINDS: Kinds = {
    **dict.fromkeys((nn.Identity, *DROPOUTS), _identity),
    nn.Linear: _linear,
    **dict.fromkeys(CONVS, _conv),
    **dict.fromkeys(BATCH_NORM_AXES, _batch_norm),
    **dict.fromkeys(INSTANCE_NORM_AXES, _instance_norm),
}


def batch_norm(
    mean: Any, variance: Any, weight: Any, bias: Any, eps: float, n: int | None
) -> BatchNorm:
    """A batch norm by running statistics.

    Raises:
        Declined: if there are none, or if they are no plain numbers.
    """
    require(mean is not None and variance is not None, "it has no running statistics")
    for tensor in (mean, variance, weight, bias):
        require_real(tensor)
    return BatchNorm(
        plain_data(mean), plain_data(variance), plain_data(weight), plain_data(bias), float(eps), n
    )


def convolution(
    weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Conv:
    """A zero-padded convolution from torch's arguments, or a linear layer from a 2-d weight.

    Raises:
        Declined: if its weight is no plain tensor of real numbers.
    """
    require_real(weight)
    require_real(bias)
    n = weight.ndim - 2
    dilation = per_axis(dilation, n)
    sides = _sides(padding, dilation, tuple(weight.shape[2:]))
    return Conv(
        plain_data(weight), plain_data(bias), per_axis(stride, n), sides, dilation, int(groups)
    )


def _sides(padding: Any, dilation: tuple[int, ...], kernel: tuple[int, ...]) -> Sides:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((side, side) for side in per_axis(padding, len(kernel)))


def per_axis(value: Any, n: int) -> tuple[int, ...]:
    """A hyper-parameter per axis, from one number for all or one each."""
    several = isinstance(value, tuple | list)
    values = tuple(cast("tuple[Any, ...]", value)) if several else (value,) * n
    values = values * n if len(values) == 1 else values
    if not all(type(v) is int for v in values):
        raise Declined("one of its hyper-parameters is computed in the forward")
    return values


def plain_data(tensor: Any) -> Any:
    """The numbers of a tensor of a layer, None for none."""
    if tensor is None or (type(tensor) is Tensor and not tensor.requires_grad):
        return tensor
    return tensor.detach()


def require_real(tensor: Any) -> None:
    """Decline a weight that is no plain tensor of real numbers.

    Raises:
        Declined: if it is one.
    """
    if tensor is None:
        return
    require(type(tensor) in PLAIN, "one of its tensors is computed, or of a class of its own")
    if tensor.dtype not in REAL:
        raise Declined(f"its tensors are {tensor.dtype}")
