"""Models at which a wrong fold shows.

A fresh batch norm (mean 0, variance 1) and a fresh layer scale (1e-5) hide nearly every mistake.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

EPSILONS = (1e-5, 1e-3, 1e-2)
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def randomised(model: nn.Module, *inputs: Tensor, seed: int = 0) -> nn.Module:
    """Give a model weights and statistics at which a wrong fold shows, in place; return it, in eval.

    Weights keep the variance of what they read, biases, γ, β, ε and scales per channel are drawn,
    and running statistics are those of the inputs, jittered: so activations stay of order one.

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
        _calibrate(model, inputs)
        for norm in _batch_norms(model):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            deviation = norm.running_var.double().sqrt()
            norm.running_mean.add_(normal(norm.running_mean, 0.2) * deviation)
            norm.running_var.mul_(between(norm.running_var, 0.7, 1.4))
    return model


def _layer_scales(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of modules that are no layers of torch's, with at most one axis longer than 1."""
    for module in model.modules():
        if isinstance(module, (*WEIGHTED, *NORMS)):
            continue
        for parameter in module.parameters(recurse=False):
            if sum(size > 1 for size in parameter.shape) <= 1:
                yield parameter


def _batch_norms(model: nn.Module) -> Iterator[BATCH_NORM]:
    """Those with running statistics."""
    for module in model.modules():
        if isinstance(module, BATCH_NORM) and module.running_mean is not None:
            yield module


def _calibrate(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Set running statistics to those of the inputs."""
    norms = list(_batch_norms(model))
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over what it sees
        norm.train()
    model(*inputs)
    for norm, (momentum, training) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.train(training)
