"""What ONNX's layers are in torch's, where they are the same function."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from reparam.onnx.site import Rule, Site

CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
AVERAGES: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
MAXIMA: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
GLOBAL_AVERAGES: tuple[Any, ...] = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
)
GLOBAL_MAXIMA: tuple[Any, ...] = (
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
)
"""The torch functions by number of spatial axes, less one."""


def _sides(site: Site, n: int) -> list[tuple[int, int]] | None:
    """The padding before and after each spatial axis; None where it depends on the size."""
    if site.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID"):
        return None
    flat = site.sizes("pads", 0, 2 * n)
    return list(zip(flat[:n], flat[n:], strict=True))


def flat(sides: Sequence[tuple[int, int]]) -> list[int]:
    """Paddings in the order in which torch takes them."""
    return [side for pair in reversed(sides) for side in pair]


def _windowed(site: Site, x: Any, n: int) -> tuple[Any, tuple[int, ...]] | None:
    """An input, padded if it is not padded alike on both sides, and what is left of padding."""
    sides = _sides(site, n)
    if sides is None or min(map(min, sides)) < 0:
        return None
    if all(before == after for before, after in sides):
        return x, tuple(before for before, _ in sides)
    return site.call(F.pad, x, flat(sides)), (0,) * n


def _conv(site: Site) -> fx.Node | None:
    weight = site.content(1)
    if weight is None or not 3 <= weight.ndim <= 5 or site.rank() != weight.ndim:
        return None
    n = weight.ndim - 2
    windowed = _windowed(site, site.inputs[0], n)
    if windowed is None or (site.given(2) and site.content(2) is None):
        return None
    x, padding = windowed
    bias = site.inputs[2] if site.given(2) else None
    stride, dilation = site.sizes("strides", 1, n), site.sizes("dilations", 1, n)
    groups = int(site.attributes.get("group", 1))
    target = CONVOLUTIONS[n - 1]
    return site.call(target, x, site.inputs[1], bias, stride, padding, dilation, groups)


def _conv_transpose(site: Site) -> fx.Node | None:
    weight = site.content(1)
    if weight is None or not 3 <= weight.ndim <= 5 or site.rank() != weight.ndim:
        return None
    n = weight.ndim - 2
    sides = _sides(site, n)
    if sides is None or "output_shape" in site.attributes:
        return None
    if min(map(min, sides)) < 0 or (site.given(2) and site.content(2) is None):
        return None
    stride, dilation = site.sizes("strides", 1, n), site.sizes("dilations", 1, n)
    padding = tuple(before for before, _ in sides)
    # What is cut off less at the end is there as well if the output is padded.
    added = zip(site.sizes("output_padding", 0, n), sides, strict=True)
    more = tuple(number + before - after for number, (before, after) in added)
    if any(not 0 <= m < max(s, d) for m, s, d in zip(more, stride, dilation, strict=True)):
        return None  # ONNX takes more than torch
    bias = site.inputs[2] if site.given(2) else None
    options = (stride, padding, more, int(site.attributes.get("group", 1)), dilation)
    return site.call(TRANSPOSED[n - 1], site.inputs[0], site.inputs[1], bias, *options)


def _gemm(site: Site) -> fx.Node | None:
    """`alpha * A B + beta * C`: a linear layer where B and C are constants."""
    weight, bias = site.content(1), site.content(2)
    if weight is None or weight.ndim != 2 or site.attributes.get("transA", 0):
        return None
    if site.given(2) and bias is None:
        return None
    alpha, beta = (float(site.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    rows = weight if site.attributes.get("transB", 0) else weight.t()
    own = site.inputs[1] if rows is weight and alpha == 1 else site.hold(_times(rows, alpha))
    shift: fx.Node | None = site.inputs[2] if bias is not None else None
    if bias is not None:
        if bias.numel() not in (1, len(rows)) or (bias.ndim == 2 and len(bias) != 1):
            return None
        if beta != 1 or bias.shape != (len(rows),):
            shift = site.hold(_times(bias.flatten().expand(len(rows)), beta))
    return site.call(F.linear, site.inputs[0], own, shift)


def _times(tensor: Tensor, factor: float) -> Tensor:
    """A tensor times a number; times 1 it is not even read."""
    if factor == 1:
        return tensor
    return (tensor.double() * factor).to(tensor.dtype).contiguous()


def _matmul(site: Site) -> fx.Node | None:
    weight = site.content(1)
    if weight is not None and weight.ndim == 2 and weight.is_floating_point():
        return site.call(F.linear, site.inputs[0], site.hold(weight.t()))
    return site.call(torch.matmul, site.inputs[0], site.inputs[1])


def _batch_norm(site: Site) -> fx.Node | None:
    if site.attributes.get("training_mode", 0) or site.outputs > 1:
        return None
    if site.opset < 14 and site.declared > 1:  # by which it was told to train
        return None
    if any(site.content(i) is None for i in (1, 2, 3, 4)) or (site.rank() or 0) < 2:
        return None
    x, scale, shift, mean, variance = site.inputs[:5]
    eps = float(site.attributes.get("epsilon", 1e-5))
    return site.call(F.batch_norm, x, mean, variance, scale, shift, False, 0.0, eps)


def _layer_norm(site: Site) -> fx.Node | None:
    scale, rank = site.content(1), site.rank()
    axis = int(site.attributes.get("axis", -1))
    if site.outputs > 1 or scale is None or scale.ndim != 1 or rank is None:
        return None
    if axis not in (-1, rank - 1) or int(site.attributes.get("stash_type", 1)) != 1:
        return None
    if site.given(2) and site.content(2) is None:
        return None
    shift = site.inputs[2] if site.given(2) else None
    eps = float(site.attributes.get("epsilon", 1e-5))
    return site.call(F.layer_norm, site.inputs[0], (len(scale),), site.inputs[1], shift, eps)


def _average(site: Site) -> fx.Node | None:
    kernel = site.integers(-1, "kernel_shape") or []
    n, a = len(kernel), site.attributes
    sides = _sides(site, n) if 1 <= n <= 3 else None
    if sides is None or a.get("ceil_mode", 0) or any(d != 1 for d in site.sizes("dilations", 1, n)):
        return None
    if any(b != e or 2 * b > k for (b, e), k in zip(sides, kernel, strict=True)):
        return None
    stride, padding = site.sizes("strides", 1, n), tuple(before for before, _ in sides)
    counted = bool(a.get("count_include_pad", 0))
    return site.call(
        AVERAGES[n - 1], site.inputs[0], tuple(kernel), stride, padding, False, counted
    )


def _maximum(site: Site) -> fx.Node | None:
    kernel = site.integers(-1, "kernel_shape") or []
    n, a = len(kernel), site.attributes
    sides = _sides(site, n) if 1 <= n <= 3 else None
    if sides is None or a.get("ceil_mode", 0) or a.get("storage_order", 0) or site.outputs > 1:
        return None
    if any(b != e or 2 * b > k for (b, e), k in zip(sides, kernel, strict=True)):
        return None
    stride, dilation = site.sizes("strides", 1, n), site.sizes("dilations", 1, n)
    padding = tuple(before for before, _ in sides)
    return site.call(MAXIMA[n - 1], site.inputs[0], tuple(kernel), stride, padding, dilation)


def _whole(functions: tuple[Any, ...]) -> Rule:
    def rule(site: Site) -> fx.Node | None:
        rank = site.rank()
        if rank is None or not 3 <= rank <= 5:
            return None
        return site.call(functions[rank - 3], site.inputs[0], 1)

    return rule


RULES: dict[str, Rule] = {
    "AveragePool": _average,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _whole(GLOBAL_AVERAGES),
    "GlobalMaxPool": _whole(GLOBAL_MAXIMA),
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MaxPool": _maximum,
}
