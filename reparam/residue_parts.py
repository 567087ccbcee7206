"""Operators and their arguments, residue by residue."""

from typing import Any

from reparam.arguments import found, mapped
from reparam.field import residue
from reparam.residue import Bound, Places, Residue, UnmodelledError


def at_each(places: Places, func: Any, args: Any, kwargs: Any) -> list[Any]:
    """What an operator makes of residues, at each place."""
    return [
        func(*a, **k)
        for a, k in (
            mapped((args, kwargs), Residue, lambda r, place=place: r.parts[place])
            for place in range(places.count)
        )
    ]


def joint_bound(arguments: Any) -> Bound:
    """What bounds the elements of all residues among arguments."""
    bound = Bound()
    for given in found(arguments, Residue):
        bound.raise_to(given.bound)
    return bound


def residue_of(number: Any) -> float:
    """The residue of a number."""
    try:
        return residue(number)
    except (OverflowError, ValueError, ZeroDivisionError) as error:
        raise UnmodelledError(f"{number} has no counterpart in a finite field") from error
