"""What a proof takes for granted of the weights, and which weights there are."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from reparam.algebra import equal_borders
from reparam.errors import Declined
from reparam.graph import Call
from reparam.operator_laws import as_convolution
from reparam.residue import Residue
from reparam.values import BatchNorm, Conv, Value


@dataclass(frozen=True)
class Premises:
    """What the weights are taken to be.

    Attributes:
        kept: the names of tensors in which 0, 1 and -1 stand for themselves.
        related: whether a border stays what the call before it makes of zero.
        signed: whether all numbers keep their signs. A pass that needs that has to look at them,
            and what it looks at is told.
    """

    kept: frozenset[str] = frozenset()
    related: bool = False
    signed: bool = False

    def told(
        self,
        weights: Mapping[str, Tensor],
        borders: Iterable[Call],
        looked: Iterable[Collection[str]],
    ) -> Iterator[str]:
        """The premises in words.

        Args:
            weights: by their names.
            borders: the calls whose border may be related.
            looked: names of the weights that each comparison was of.
        """
        for name in sorted(self.kept):
            weight = weights[name]
            numbers = [n for n in (0, 1, -1) if bool((weight == n).any())]
            if bool(special(weight).all()) and len(numbers) == 1:
                yield f"{name} is {numbers[0]}"
            else:
                yield f"in {name}, what is {' or '.join(map(str, numbers))} stays so"
        for call in borders if self.related else ():
            yield f"the border of {call.name} is what {call.inputs[0].name} makes of zero"
        for names in sorted(map(sorted, looked)):
            if names:
                yield f"what is compared of {', '.join(names)} comes out as here"


def weights_of(value: Value) -> dict[str, Tensor]:
    """The numbers that a value holds, by the names of its fields."""
    held = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {
        name: tensor
        for name, tensor in held.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }


def special(weight: Tensor) -> Tensor:
    """Which numbers a pass may treat as it treats no others."""
    return (weight == 0) | (weight.abs() == 1)


def border_of_zero(call: Call) -> Tensor | None:
    """What the call before makes of zero, if that is what a call continues its input with."""
    border = getattr(call.value, "border", None)
    source = call.inputs[0].value if call.inputs else None
    if border is None or not isinstance(source, Conv | BatchNorm):
        return None
    try:
        zero = as_convolution(source, None).bias
    except Declined:
        return None
    if isinstance(border, Residue) or isinstance(zero, Residue):
        return zero
    same = zero is not None and equal_borders(border.double(), zero)
    return zero if same else None
