"""The rewrite passes, one a file. `DEFAULT` is the pipeline that `reparam.compile` runs.

It is found through the entry point `default` of the group `reparam.pipelines`, the same door that
other distributions use. Imports here are relative: the folder may be loaded under another name.
"""

from .cancel_layouts import cancel_layouts
from .drop_noops import drop_noops
from .fold_after_layout import fold_after_layout
from .fold_batchnorm import fold_batchnorm
from .fold_constants import fold_constants
from .fold_depthwise_skip import fold_depthwise_skip
from .fold_identity import fold_identity
from .fold_into_readers import fold_into_readers
from .fold_layer_scale import fold_layer_scale
from .merge_affine_region import merge_affine_region
from .merge_branches import merge_branches

DEFAULT = (
    drop_noops,
    fold_constants,
    fold_depthwise_skip,
    fold_identity,
    merge_branches,
    fold_batchnorm,
    fold_layer_scale,
    merge_affine_region,
    fold_into_readers,
    fold_after_layout,
    cancel_layouts,
)

__all__ = [
    "DEFAULT",
    "cancel_layouts",
    "drop_noops",
    "fold_after_layout",
    "fold_batchnorm",
    "fold_constants",
    "fold_depthwise_skip",
    "fold_identity",
    "fold_into_readers",
    "fold_layer_scale",
    "merge_affine_region",
    "merge_branches",
]
