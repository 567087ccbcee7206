"""Models at which a wrong fold shows.

A fresh batch norm (mean 0, variance 1) and a fresh layer scale (1e-5) hide nearly every mistake.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

EPSILONS = (1e-5, 1e-3, 1e-2)
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

Draw = Callable[..., Tensor]


def randomised(model: nn.Module, *inputs: Tensor, seed: int = 0) -> nn.Module:
    """Give a model, in place, what makes a wrong fold show; return it in evaluation mode.

    Weights keep the variance of what they read, biases, γ, β, ε and scales per channel are drawn,
    and running statistics lie near those of the inputs: so activations stay of order one.

    Args:
        model: any model.
        inputs: what it is calibrated on; several images, so that variances are not 0.
        seed: of all that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, deviation: float) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64) * deviation

    def between(like: Tensor, low: float, high: float) -> Tensor:
        drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * drawn

    model.eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, WEIGHTED):
                inner = module.weight[0].numel()
                module.weight.copy_(normal(module.weight, inner**-0.5))
                if module.bias is not None:
                    module.bias.copy_(normal(module.bias, 0.3))
            elif isinstance(module, NORMS):
                if isinstance(module, BATCH_NORM):
                    choice = int(torch.randint(len(EPSILONS), (), generator=generator))
                    module.eps = EPSILONS[choice]
                if module.weight is not None:
                    signs = between(module.weight, -1, 3).sign()  # one in four is negative
                    module.weight.copy_(between(module.weight, 0.5, 1.5) * signs)
                if getattr(module, "bias", None) is not None:
                    module.bias.copy_(normal(module.bias, 0.3))  # type: ignore[union-attr]
        for scale in _layer_scales(model):
            scale.copy_(between(scale, 0.2, 0.6) * between(scale, -1, 3).sign())
    _calibrate(model, inputs, normal, between)
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

    def measure(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if norm in seen or not isinstance(norm, BATCH_NORM) or norm.running_mean is None:
            return
        seen.add(norm)
        assert norm.running_var is not None
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
