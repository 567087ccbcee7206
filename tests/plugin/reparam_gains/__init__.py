"""Networks without batch norms: a layer that standardizes, and a pass that folds gains."""

from reparam import default_passes

from .fold_relu_gain import fold_relu_gain
from .layers import GainBlock, Standardize

PIPELINE = (*default_passes(), fold_relu_gain)
"""The default passes, and ours behind them."""

__all__ = ["PIPELINE", "GainBlock", "Standardize", "fold_relu_gain"]
