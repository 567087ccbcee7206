"""Fold a batch norm into the convolution or linear layer before it.

Before:
    y = BN(conv(x; W, b))

After:
    y = conv(x; sW, sb + t)

Algebra:
    s = γ / √(σ² + ε),  t = β − sμ; s scales output channels.

Legal when:
    The batch norm uses running statistics, and nothing is known to differ in dtype.

Profitable when:
    Nothing else reads the convolution.

Source: Jacob et al., "Quantization and Training of Neural Networks", CVPR 2018, section 3.2.
"""

from reparam import Call, Replace, require, rewrite
from reparam.region import affine_call, merge
from reparam.values import BatchNorm, Conv


@rewrite(on=BatchNorm)
def fold_batchnorm(call: Call) -> Replace | None:
    """Merge a batch norm with the convolution that it reads."""
    if not isinstance(call.value, BatchNorm):
        return None
    (source,) = call.inputs
    require(
        affine_call(source),
        f"its input is {source.value.__name__}, which no pass can fold it into",
        source.name,
    )
    if not isinstance(source.value, Conv):
        return None
    alone = len(source.readers) == 1
    require(alone, "something else reads the convolution before it", source.name)
    return merge(call, through=lambda other: other == source)
