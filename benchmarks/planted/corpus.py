"""Which blocks are for which pass."""

from benchmarks.planted import blocks_branches as branches
from benchmarks.planted import blocks_series as series
from benchmarks.planted import blocks_tokens as tokens
from benchmarks.planted.examples import Example

CORPUS: dict[str, list[Example]] = {
    "drop_noops": tokens.NOTHING,
    "fold_constants": series.COMPUTED,
    "fold_depthwise_skip": branches.DEPTHWISE,
    "fold_identity": [*branches.SKIPS, *branches.NORMED_SUMS],
    "merge_branches": [*branches.SUMS, *branches.NORMED_SUMS],
    "fold_batchnorm": series.CONV_NORM,
    "fold_layer_scale": series.CONV_SCALE,
    "merge_affine_region": [
        *series.COMPOSED, *series.BORDERS, *series.PADDED, *series.AVERAGES, *branches.NORMED_SUMS,
        *branches.CONV_JOINED, *series.UP_SERIES, *series.CONV_NORM, *series.CONV_SCALE,
        *branches.SKIPS, *branches.SUMS,
    ],
    "fold_border": series.BEFORE_PADDING,
    "fold_transposed": series.UP_NORM,
    "fold_after_norm": tokens.AFTER_NORM,
    "fold_after_cat": branches.JOINED,
    "stack_rows": branches.STACKED,
    "fold_into_readers": [*tokens.INTO_READERS, *tokens.NORM_READERS, *series.NORM_UP],
    "fold_after_layout": tokens.AFTER_LAYOUT,
    "fold_value_bias": tokens.ATTENTION,
    "fold_into_linear": series.INTO_LINEAR,
    "cancel_layouts": tokens.LAYOUTS,
    "select_rows": tokens.ROWS,
}  # fmt: skip
"""By the name of the pass; it is compiled with that pass alone."""
