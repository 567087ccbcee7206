"""Models at which a wrong fold shows.

A fresh batch norm (mean 0, variance 1) and a fresh layer scale (1e-5) hide nearly every mistake.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reparam.devices import CPU
from reparam.known import BATCH_NORM_BASE as BATCH_NORM
from reparam.known import CONV_BASE

EPSILONS = (1e-5, 1e-3, 1e-2)
WEIGHTED: tuple[Any, ...] = (nn.Linear, CONV_BASE)
NORMS: tuple[Any, ...] = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
SPECIAL = 0.25
"""How often a tensor gets a number that laws treat apart, where these are asked for."""

Draw = Callable[..., Tensor]


def randomised(
    model: nn.Module, *inputs: Tensor, seed: int = 0, special: bool = False
) -> nn.Module:
    """Give a model, in place, what makes a wrong fold show; return it in evaluation mode.

    Weights keep the variance of what they read, biases, γ, β, ε and scales per channel are drawn,
    and running statistics lie near those of the inputs: so activations stay of order one.

    Args:
        model: any model.
        inputs: what it is calibrated on; several images, so that variances are not 0.
        seed: of all that is drawn.
        special: whether some tensors get numbers that a law may treat apart: a bias, shift or mean
            of 0, γ of 1, and one γ, scale or variance of 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, deviation: float) -> Tensor:
        return (
            torch.randn(like.shape, generator=generator, dtype=torch.float64, device=CPU)
            * deviation
        )

    def between(like: Tensor, low: float, high: float) -> Tensor:
        drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64, device=CPU)
        return low + (high - low) * drawn

    model.eval()
    with torch.no_grad():
        for module in model.modules():
            layer: Any = module
            if isinstance(module, WEIGHTED):
                inner = layer.weight[0].numel()
                layer.weight.copy_(normal(layer.weight, inner**-0.5))
                if layer.bias is not None:
                    layer.bias.copy_(normal(layer.bias, 0.3))
            elif isinstance(module, NORMS):
                if isinstance(module, BATCH_NORM):
                    choice = int(torch.randint(len(EPSILONS), (), generator=generator, device=CPU))
                    layer.eps = EPSILONS[choice]
                if layer.weight is not None:
                    signs = between(layer.weight, -1, 3).sign()  # one in four is negative
                    layer.weight.copy_(between(layer.weight, 0.5, 1.5) * signs)
                if getattr(layer, "bias", None) is not None:
                    layer.bias.copy_(normal(layer.bias, 0.3))
        for scale in _layer_scales(model):
            scale.copy_(between(scale, 0.2, 0.6) * between(scale, -1, 3).sign())
    _calibrate(model, inputs, normal, between)
    if special:
        _specialise(model, torch.Generator().manual_seed(seed))
    return model


def _layer_scales(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of modules that are no layers of torch's, with at most one axis longer than 1."""
    for module in model.modules():
        if isinstance(module, (*WEIGHTED, *NORMS)):
            continue
        for parameter in module.parameters(recurse=False):
            if sum(size > 1 for size in parameter.shape) <= 1:
                yield parameter


def _calibrate(model: nn.Module, inputs: tuple[Tensor, ...], normal: Draw, between: Draw) -> None:
    """Set running statistics near those of what each batch norm reads, from the first one on."""
    seen: set[nn.Module] = set()

    def measure(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        norm: Any = module
        if module in seen or not isinstance(module, BATCH_NORM) or norm.running_mean is None:
            return
        seen.add(module)
        variance, mean = torch.var_mean(
            arguments[0].double().transpose(0, 1).flatten(1), dim=1, correction=0
        )
        norm.running_mean.copy_(mean + normal(mean, 0.2) * variance.sqrt())
        norm.running_var.copy_(variance * between(variance, 0.7, 1.4))

    norms = [module for module in model.modules() if isinstance(module, BATCH_NORM)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()


def _specialise(model: nn.Module, generator: torch.Generator) -> None:
    """Put the numbers in, once everything is calibrated, that a law may treat apart."""

    def chosen() -> bool:
        return bool(torch.rand((), generator=generator, device=CPU) < SPECIAL)

    with torch.no_grad():
        for module in model.modules():
            layer: Any = module
            if not isinstance(module, (*WEIGHTED, *NORMS)):
                continue
            if getattr(layer, "bias", None) is not None and chosen():
                layer.bias.zero_()
            if isinstance(module, NORMS) and layer.weight is not None and chosen():
                layer.weight[0] = 0.0
            elif isinstance(module, NORMS) and layer.weight is not None and chosen():
                layer.weight.fill_(1.0)
            if isinstance(module, BATCH_NORM) and layer.running_mean is not None:
                if chosen():
                    layer.running_mean.zero_()
                if chosen():
                    layer.running_var[0] = 0.0
        for scale in _layer_scales(model):
            if chosen():
                scale.flatten()[0] = 0.0
