"""The rewrite passes, one a file. `DEFAULT` is the pipeline that `reparam.compile` runs.

It is found through the entry point `default` of the group `reparam.pipelines`, the same door that
other distributions use. Imports here are relative: the folder may be loaded under another name.
"""

from .cancel_layouts import cancel_layouts
from .drop_noops import drop_noops
from .fold_after_cat import fold_after_cat
from .fold_after_layout import fold_after_layout
from .fold_after_norm import fold_after_norm
from .fold_batchnorm import fold_batchnorm
from .fold_border import fold_border
from .fold_constants import fold_constants
from .fold_depthwise_skip import fold_depthwise_skip
from .fold_identity import fold_identity
from .fold_into_linear import fold_into_linear
from .fold_into_readers import fold_into_readers
from .fold_layer_scale import fold_layer_scale
from .fold_transposed import fold_transposed
from .fold_value_bias import fold_value_bias
from .merge_affine_region import merge_affine_region
from .merge_branches import merge_branches
from .select_rows import select_rows
from .stack_rows import stack_rows

DEFAULT = (
    drop_noops,
    fold_constants,
    fold_depthwise_skip,
    fold_identity,
    merge_branches,
    fold_batchnorm,
    fold_layer_scale,
    merge_affine_region,
    fold_transposed,
    fold_after_norm,
    fold_after_cat,
    stack_rows,
    fold_into_readers,
    fold_after_layout,
    fold_value_bias,
    fold_into_linear,
    fold_border,
    cancel_layouts,
    select_rows,
)

__all__ = [
    "DEFAULT",
    "cancel_layouts",
    "drop_noops",
    "fold_after_cat",
    "fold_after_layout",
    "fold_after_norm",
    "fold_batchnorm",
    "fold_border",
    "fold_constants",
    "fold_depthwise_skip",
    "fold_identity",
    "fold_into_linear",
    "fold_into_readers",
    "fold_layer_scale",
    "fold_transposed",
    "fold_value_bias",
    "merge_affine_region",
    "merge_branches",
    "select_rows",
    "stack_rows",
]
