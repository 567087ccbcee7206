"""A block for a pass that the generated graphs hardly ever have a match for by itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bordered(nn.Module):
    """A convolution, and a border around what it makes that is written over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.border = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(self.conv(x), [1, 1, 1, 1])
        border = self.border.view(1, -1, 1, 1)
        padded[:, :, 0:1, :] = border
        padded[:, :, -1:, :] = border
        padded[:, :, :, 0:1] = border
        padded[:, :, :, -1:] = border
        return padded
