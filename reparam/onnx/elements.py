"""What ONNX's functions of single elements are in torch's."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from reparam.export_graph import extra
from reparam.onnx.reading import DTYPES
from reparam.onnx.site import Rule, Site

PYTHON: Any = operator
"""Whose stubs leave a type open."""


def _cast(site: Site) -> fx.Node | None:
    """To floating-point numbers only: runtimes differ in what becomes of large ones otherwise."""
    told = extra("onnx").TensorProto.DataType.Name(int(site.attributes["to"]))
    dtype = DTYPES.get(told)
    if dtype is None or not dtype.is_floating_point or site.facts[0] is None:
        return None
    return site.graph.call_method("to", (site.inputs[0], dtype))


def _cast_like(site: Site) -> fx.Node | None:
    """A constant in the type of another tensor; what that is, is known."""
    like = site.facts[1]
    if site.content(0) is None or like is None or like.dtype is None:
        return None
    return site.graph.call_method("to", (site.inputs[0], like.dtype))


def _arithmetic(target: Any) -> Rule:
    def rule(site: Site) -> fx.Node | None:
        both = len(site.inputs) == 2 and site.floating(0) and site.floating(1)
        return site.call(target, *site.inputs) if both else None

    return rule


def _mul(site: Site) -> fx.Node | None:
    """A product, but for the last one of a GELU that is written as five nodes.

    Runtimes have one kernel for all five. Were its half folded into the next layer, they would run
    the other four.
    """
    for x, number in ((0, 1), (1, 0)):
        content = site.content(number)
        half = content is not None and content.numel() == 1 and float(content) == 0.5
        if half and _gated(site.inputs[x]):
            return None
    return _arithmetic(operator.mul)(site)


def _gated(node: fx.Node | None) -> bool:
    """Whether a call is `x * (erf(...) + 1)`."""
    terms = [term for factor in _of(node, operator.mul) for term in _of(factor, operator.add)]
    return any(_of(term, torch.erf) for term in terms)


def _of(node: fx.Node | None, target: Any) -> tuple[fx.Node, ...]:
    """What a call of a function is applied to; nothing if it is another one."""
    return tuple(node.all_input_nodes) if node is not None and node.target is target else ()


def _sum(site: Site) -> fx.Node | None:
    if not all(map(site.floating, range(len(site.inputs)))):
        return None
    total = site.inputs[0]
    for other in site.inputs[1:]:
        total = site.call(operator.add, total, other)
    return total if len(site.inputs) > 1 else site.call(F.dropout, total, 0.5, False)


def _identity(site: Site) -> fx.Node | None:
    """What returns its input; a dropout that is told to train is not that."""
    if site.outputs > 1 or (site.op == "Dropout" and site.given(2)):
        trains = site.content(2)
        if site.outputs > 1 or trains is None or bool(trains):
            return None
    return site.call(F.dropout, site.inputs[0], 0.5, False)


def _softmax(site: Site) -> fx.Node | None:
    rank = site.rank()
    axis = int(site.attributes.get("axis", -1 if site.opset >= 13 else 1))
    last = rank is not None and axis in (-1, rank - 1)
    if site.opset < 13 and not last:  # then it runs over all axes from there on
        return None
    return site.call(torch.softmax, site.inputs[0], axis)


def _of_elements(target: Any, **attributes: tuple[str, float]) -> Rule:
    """A function of single elements, its options by the names and defaults that ONNX has."""

    def rule(site: Site) -> fx.Node | None:
        options = {
            name: float(site.attributes.get(own, default))
            for name, (own, default) in attributes.items()
        }
        return site.call(target, site.inputs[0], **options) if site.floating() else None

    return rule


def _gelu(site: Site) -> fx.Node | None:
    approximate = str(site.attributes.get("approximate", "none"))
    return site.call(F.gelu, site.inputs[0], approximate=approximate) if site.floating() else None


def _hard_sigmoid(site: Site) -> fx.Node | None:
    """Torch's has no options."""
    alpha, beta = (float(site.attributes.get(k, d)) for k, d in (("alpha", 0.2), ("beta", 0.5)))
    same = abs(alpha - 1 / 6) < 1e-6 and beta == 0.5
    return site.call(F.hardsigmoid, site.inputs[0]) if same and site.floating() else None


def _clip(site: Site) -> fx.Node | None:
    low, high = (site.content(i) for i in (1, 2))
    known = all(site.content(i) is not None for i in (1, 2) if site.given(i))
    if not known or not site.floating() or (low is None and high is None):
        return None
    bounds = [None if bound is None else float(bound) for bound in (low, high)]
    return site.call(torch.clamp, site.inputs[0], *bounds)


RULES: dict[str, Rule] = {
    "Add": _arithmetic(operator.add),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Div": _arithmetic(PYTHON.truediv),
    "Dropout": _identity,
    "Elu": _of_elements(F.elu, alpha=("alpha", 1.0)),
    "Erf": _of_elements(torch.erf),
    "Exp": _of_elements(torch.exp),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _of_elements(F.hardswish),
    "Identity": _identity,
    "LeakyRelu": _of_elements(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "Mish": _of_elements(F.mish),
    "Mul": _mul,
    "Neg": _of_elements(operator.neg),
    "Relu": _of_elements(F.relu),
    "Sigmoid": _of_elements(torch.sigmoid),
    "Softmax": _softmax,
    "Softplus": _of_elements(F.softplus),
    "Sqrt": _of_elements(torch.sqrt),
    "Sub": _arithmetic(operator.sub),
    "Sum": _sum,
    "Tanh": _of_elements(torch.tanh),
}
