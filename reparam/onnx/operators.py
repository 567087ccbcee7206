"""What ONNX's operators are in torch's, for which the compiler has rules of its own.

What is not known to be the same is carried through. `Split`, which has several results, stands in
`reparam.onnx.translate`.
"""

from reparam.onnx import elements, layers, layouts
from reparam.onnx.site import Rule

RULES: dict[str, Rule] = layers.RULES | layouts.RULES | elements.RULES
"""By operator of ONNX's own domain."""
