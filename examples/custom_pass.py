"""A rewrite of one's own: fold the gain of a scaled ReLU into the convolution before it.

    python examples/custom_pass.py

Networks without batch norms multiply each ReLU by a constant gain that keeps the variance at one
(Brock et al., "Characterizing signal propagation", ICLR 2021). No linear law reaches through a
ReLU, so none of the default passes can remove it; but a positive factor commutes with max(·, 0).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

import reparam
from reparam.algebra import exact, scale_output
from reparam.known import name
from reparam.values import Conv, Opaque, Sum

GAIN = 1.7139588594436646
"""sqrt(2 / (1 - 1/π)): with it, the ReLU of a standard normal has variance one."""


def scaled_relu(call: reparam.Call) -> tuple[float, reparam.Call, Conv] | None:
    """The gain, the ReLU and the convolution, if the call is `gain * relu(conv(x))`."""
    if not isinstance(call.value, Sum) or len(call.value.coefficients) != 1:
        return None
    relu = call.inputs[0]
    activation = relu.value
    if not isinstance(activation, Opaque) or activation.pinned:
        return None
    if not (isinstance(activation.target, nn.ReLU) or name(activation.target) == "relu"):
        return None
    conv = relu.inputs[0].value
    return (call.value.coefficients[0], relu, conv) if isinstance(conv, Conv) else None


@reparam.rewrite
def fold_relu_gain(call: reparam.Call) -> reparam.Replace | None:
    """Rewrite γ · relu(conv(x; W, b)) to relu(conv(x; γW, γb)), for γ > 0."""
    # Match. None says "not mine" and leaves no remark.
    match = scaled_relu(call)
    if match is None:
        return None
    gain, relu, conv = match
    source = relu.inputs[0]
    # Legality. What matches but must stay is declined, with the reason.
    reparam.require(gain > 0, "only a positive factor commutes with a ReLU", relu.name)
    for between in (relu, source):
        alone = len(between.readers) == 1
        reparam.require(alone, "something else reads a tensor in between", between.name)
    # Algebra: values in, value out, in float64.
    scaled = scale_output(gain, exact(conv))
    return reparam.Replace(relu.value, reparam.Apply(scaled, source.inputs))


@reparam.rewrite
def fold_any_gain(call: reparam.Call) -> reparam.Replace | None:
    """The same, but the sign is forgotten: right for some calls and wrong for others."""
    match = scaled_relu(call)
    if match is None:
        return None
    gain, relu, conv = match
    scaled = scale_output(gain, exact(conv))
    return reparam.Replace(relu.value, reparam.Apply(scaled, relu.inputs[0].inputs))


class ScaledReluNet(nn.Module):
    """A stem, a residual block of two branches and a head; a factor follows each ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.up = nn.Conv2d(16, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 10)."""
        x = functional.relu(self.stem(x)) * GAIN
        up, down = self.up(x), self.down(x)
        x = x + functional.relu(up) * GAIN + functional.relu(down) * -0.5
        return self.head(x.mean((2, 3)))


def main() -> None:
    """Compile with the pass, then with the mistaken one."""
    torch.manual_seed(0)
    model = ScaledReluNet().eval()
    images = torch.randn(2, 3, 32, 32)
    for mine in (fold_relu_gain, fold_any_gain):
        fused = reparam.compile(model, images, passes=(*reparam.default_passes(), mine))
        report = reparam.report(fused)
        print(f"{mine.name}: {report.before.total} operators before, {report.after.total} after")
        for remark in (*report.applied, *report.missed):
            print(f"  {remark.kind:8} {remark}")
        print(f"  {reparam.verify(model, fused, images)}")


if __name__ == "__main__":
    main()
