"""Say what a layer of one's own means: a frozen batch norm that the tracer can't see through.

    python examples/custom_lift.py

Detectors are often fine-tuned with batch norms whose statistics are buffers. This one makes sure
that they were loaded, and a Python `if` on the numbers in a tensor stops any tracer: the layer
would stay, and so would all that it stands between.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

import reparam
from reparam.values import BatchNorm


class FrozenBatchNorm2d(nn.Module):
    """A batch norm over images whose statistics and affine map are fixed numbers."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        if self.running_var.min() <= 0:  # the `if` that can't be traced
            raise RuntimeError("the statistics were not loaded")
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return functional.batch_norm(x, *statistics, training=False, eps=self.eps)


@reparam.lift(FrozenBatchNorm2d)
def frozen_batch_norm(layer: FrozenBatchNorm2d) -> BatchNorm:
    """What the layer computes, as a value. n = 2: its input has two spatial axes."""
    return BatchNorm(
        layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps, n=2
    )


class Unknown(FrozenBatchNorm2d):
    """The same layer under a name without a meaning: meanings are not inherited."""


class Mistaken(FrozenBatchNorm2d):
    """The same layer again, with a meaning that forgets the epsilon."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-2)


@reparam.lift(Mistaken)
def without_epsilon(layer: Mistaken) -> BatchNorm:
    """Not what the layer computes."""
    return BatchNorm(layer.running_mean, layer.running_var, layer.weight, layer.bias, 0.0, n=2)


class Block(nn.Module):
    """Two branches and a skip, as in RepVGG, with the norm that it is given."""

    def __init__(self, norm: type[FrozenBatchNorm2d]) -> None:
        super().__init__()
        self.dense, self.dense_norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), norm(16)
        self.point, self.point_norm = nn.Conv2d(16, 16, 1, bias=False), norm(16)
        self.skip_norm = norm(16)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 16, H, W) to the same shape."""
        y = self.dense_norm(self.dense(x)) + self.point_norm(self.point(x)) + self.skip_norm(x)
        return functional.relu(y)


def main() -> None:
    """Compile one block with each of the three."""
    images = torch.randn(2, 16, 24, 24)
    for norm in (Unknown, FrozenBatchNorm2d, Mistaken):
        torch.manual_seed(0)
        model = Block(norm).eval()
        fused = reparam.compile(model, images)
        report = reparam.report(fused)
        print(
            f"{norm.__name__}: {report.before.total} operators before, {report.after.total} after"
        )
        print("  " + ", ".join(f"{n} {name}" for name, n in report.after.operators.items()))
        for remark in (*report.applied, *report.missed):
            print(f"  {remark.kind:8} {remark}")
        print(f"  {reparam.verify(model, fused, images)}")


if __name__ == "__main__":
    main()
