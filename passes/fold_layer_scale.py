"""Fold a layer scale into the convolution or linear layer before it.

Before:
    y = γ · drop(conv(x; W, b))

After:
    y = conv(x; γW, γb)

Algebra:
    γ scales output channels; dropout and drop path are nothing in evaluation mode.

Legal when:
    The channels that γ runs over are those of the convolution.

Profitable when:
    Nothing else reads the convolution.

Source: Touvron et al., "Going Deeper with Image Transformers", ICCV 2021, equation 4.
"""

from reparam import Call, Replace, rewrite
from reparam.region import merge
from reparam.values import Conv, Sum


@rewrite(on=Conv)
def fold_layer_scale(call: Call) -> Replace | None:
    """Merge a scale per channel with the convolution before it."""
    if not (isinstance(call.value, Conv) and call.value.affine):
        return None

    def through(other: Call) -> bool:
        return isinstance(other.value, Conv) or (
            isinstance(other.value, Sum) and len(other.value.coefficients) == 1
        )

    return merge(call, through)
