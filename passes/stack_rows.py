"""Stack convolutions of one input whose results are joined.

Before:
    y = cat(conv₁(x), conv₂(x))

After:
    y = conv(x), the rows of both

Algebra:
    A concatenation is a sum of maps, each into its own rows.

Legal when:
    The convolutions sample x alike: one stride, one output size, one padding mode.

Profitable when:
    The zeros that equal kernels and one group take do not cost more multiply-adds.
"""

from dataclasses import replace

from reparam import Call, Replace, require, rewrite
from reparam.algebra import exact
from reparam.algebra import stack_rows as stacked
from reparam.cost import conv_madds
from reparam.expansion import dearer
from reparam.graph import same_dtype
from reparam.operators import Cat
from reparam.values import Conv


@rewrite(on=Cat)
def stack_rows(call: Call) -> Replace | None:
    """Make one convolution of a concatenation of several."""
    cat = call.value
    if not isinstance(cat, Cat) or len(call.inputs) < 2:
        return None
    convs = [part.value for part in call.inputs if isinstance(part.value, Conv)]
    anchors = {part.inputs[0] for part in call.inputs if isinstance(part.value, Conv)}
    if len(convs) < len(call.inputs) or len(anchors) > 1:
        return None
    if any(conv.n != cat.n for conv in convs):
        return None
    for part in call.inputs:
        require(len(part.readers) == 1, "something else reads what is joined", part.name)
        require(same_dtype(part, call), "the dtypes differ", part.name)
    # First without numbers: what is too dear is also large.
    sizes = stacked([replace(conv, weight=conv.weight.to("meta"), bias=None) for conv in convs])
    before, after = sum(map(conv_madds, convs)), conv_madds(sizes)
    require(after <= before, dearer(before, after))
    return Replace(stacked([exact(conv) for conv in convs]), *anchors)
