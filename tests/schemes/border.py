"""A border that is written by assignment: what zero padding before the layer would have shown."""

from torch import Tensor, nn
from torch.nn import functional as F


def pad_with(x: Tensor, value: Tensor, width: int) -> Tensor:
    """Pad with zeros, then overwrite the border with a value per channel.

    Args:
        x: (batch, channels, height, width).
        value: (channels,).
        width: of the border, on each side.
    """
    if not width:
        return x
    out = F.pad(x, (width, width, width, width))
    value = value.view(1, -1, 1, 1)
    out[:, :, 0:width, :] = value
    out[:, :, -width:, :] = value
    out[:, :, :, 0:width] = value
    out[:, :, :, -width:] = value
    return out


class BNAndPad(nn.Module):
    """A batch norm, and a border of what it makes of 0: β - μγ/√(σ² + ε)."""

    def __init__(self, width: int, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.width = width
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        border = -bn.running_mean / (bn.running_var + bn.eps).sqrt()
        if bn.affine:
            border = bn.bias + border * bn.weight
        return pad_with(bn(x), border, self.width)
