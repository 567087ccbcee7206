"""A tensor of rational functions, known by their values at random places of a finite field.

Torch's own operators apply to it: what computes with weights computes with residues unchanged.
Two of these are one function if they agree at every place, but for a chance that `Places` bounds.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reparam.arguments import found, mapped
from reparam.devices import CPU
from reparam.field import (
    POSITIVES,
    fingerprint,
    hashed,
    positives,
    reduced,
    residues,
    sign,
)

Handler = Callable[..., Any]
"""What computes an operator of torch's: (places, operator, *arguments) to a result."""


class UnmodelledError(Exception):
    """Something is computed that has no counterpart in a finite field."""


class VanishedError(Exception):
    """A denominator is zero at one of the places: others have to be drawn."""


@dataclass
class Bound:
    """What bounds the elements of a tensor, as rational functions of all that was drawn.

    Views of one memory share it, so that what is written to one is true of all.

    Attributes:
        top, bottom: the degrees of numerators and denominators, at most.
        names: of what was drawn that they depend on.
        skewed: whether something took part that may leave a sum without its sign: a number whose
            residue has another one, or what is positive, as a sum of squares need be no square.
    """

    top: int = 0
    bottom: int = 0
    names: frozenset[str] = frozenset()
    skewed: bool = False

    def raise_to(self, other: "Bound") -> None:
        """Let it bound elements of another tensor too."""
        self.top, self.bottom = max(self.top, other.top), max(self.bottom, other.bottom)
        self.names |= other.names
        self.skewed |= other.skewed


class Rules(NamedTuple):
    """What computes with residues.

    Attributes:
        operate: applies an operator that torch has come down to: (places, operator, positional,
            keyword arguments) to a result.
        functions: what is in the place of functions that torch would take apart into steps that
            have no counterpart.
    """

    operate: Callable[["Places", Any, tuple[Any, ...], dict[str, Any]], Any]
    functions: Mapping[Any, Callable[..., Any]]


@dataclass(eq=False)
class Places:
    """Where all rational functions of one proof are evaluated.

    Attributes:
        count: how many places there are.
        seed: of all that is drawn.
        rules: what computes there.
        looked: of what was drawn, the names that each look at a value came from.
        degree: the largest, of numerator and denominator together, of arguments of functions that
            nothing is known of.
        arguments: how many of these were evaluated.
        applied: these functions, each with a fingerprint of its arguments in any order.
        skewed: whether the sign was asked for of what is skewed, so that it may not be right.
    """

    count: int
    seed: int
    rules: Rules
    looked: set[frozenset[str]] = field(default_factory=set[frozenset[str]])
    degree: int = 0
    arguments: int = 0
    applied: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    skewed: bool = False
    _roots: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = field(default_factory=list[Any])

    def __post_init__(self) -> None:
        """Start from the seed."""
        self.generator = torch.Generator().manual_seed(self.seed)

    def constant(self, content: Tensor) -> "Residue":
        """Numbers that stand for themselves."""
        if not bool(torch.isfinite(content).all()):
            raise UnmodelledError("a number that is not finite has no residue")
        part = residues(content.cpu())
        skewed = not torch.equal(sign(part), torch.sign(content.cpu().double()))
        return Residue(self, tuple(part.clone() for _ in range(self.count)), Bound(skewed=skewed))

    def draw(
        self, name: str, like: Tensor, kept: Tensor | None = None, signed: bool = False
    ) -> "Residue":
        """Random functions of degree one, each of one sign at all places.

        Args:
            name: what the numbers are called.
            like: the numbers.
            kept: which of them stand for themselves, if any do.
            signed: whether they have the signs of these numbers, but for zero; else any.
        """
        like = like.detach().cpu()
        shape = tuple(like.shape)
        signs = torch.randint(0, 2, shape, generator=self.generator, device=CPU).double() * 2 - 1
        if signed:
            signs = torch.where(like == 0, signs, torch.where(like < 0, -1.0, 1.0))
        parts = [signs * positives(shape, self.generator) for _ in range(self.count)]
        if kept is not None:
            kept = kept.cpu()
            own = residues(torch.where(kept, like, 0))
            parts = [torch.where(kept, own, part) for part in parts]
        return Residue(self, tuple(parts), Bound(1, 0, frozenset({name})))

    def draw_variance(self, name: str, like: Tensor, eps: float) -> "Residue":
        """Random functions that, with ε added, have a known reciprocal root of degree one."""
        roots = tuple(positives(tuple(like.shape), self.generator) for _ in range(self.count))
        root = Residue(self, roots, Bound(1, 0, frozenset({name})))
        with torch.no_grad():
            squares: Any = torch.reciprocal(root * root)
            self._roots.append((squares.parts, roots))
            return squares - eps

    def root(self, x: "Residue") -> "Residue | None":
        """The reciprocal root of a sum of a variance and ε, if that is what it is."""
        marks = fingerprint(x.parts, self.seed).flatten()
        for squares, roots in self._roots:
            ordered, order = fingerprint(squares, self.seed).flatten().sort()
            at = order[torch.searchsorted(ordered, marks).clamp(max=len(ordered) - 1)]
            both = zip(squares, x.parts, strict=True)
            if all(torch.equal(square.flatten()[at], part.flatten()) for square, part in both):
                parts = tuple(root.flatten()[at].reshape(x.shape) for root in roots)
                return Residue(self, parts, Bound(1, 0, x.bound.names))
        return None

    def opaque(self, name: str, x: "Residue", positive: bool = False) -> "Residue":
        """A function that nothing is known of: what it makes of an element is random.

        The same arguments have the same results. Two arguments count as one if they are at all
        places.

        Args:
            name: of the function, with all that it depends on beside x.
            x: the arguments.
            positive: whether its results are.
        """
        salt = zlib.crc32(name.encode())
        # Two words, since among many arguments two may share one.
        words = [fingerprint(x.parts, self.seed + salt + n) for n in range(2)]
        parts = [hashed(words[n % 2], n) for n in range(self.count)]
        if positive:
            parts = [reduced(part * part) for part in parts]
        self.degree = max(self.degree, x.bound.top + x.bound.bottom)
        self.arguments += x.numel()
        if name != "rsqrt":  # of a variance with another ε, a law may have taken it
            self.applied.add((name, int(words[0].sum())))
        bound = Bound(2 if positive else 1, 0, x.bound.names, skewed=positive)
        return Residue(self, tuple(parts), bound)

    def chance(self, degree: int, bottom: int) -> float:
        """How likely it is, at most, that functions that differ agree at all places.

        Args:
            degree: of the numerator of their difference.
            bottom: of its denominator.

        Source: Schwartz, "Fast probabilistic algorithms for verification of polynomial
        identities", J. ACM 27, 1980; numbers are drawn among the residues of one sign, and where
        a denominator is zero they are drawn again.
        """
        drawn = POSITIVES - bottom
        if max(degree, self.degree) >= drawn:
            return 1.0
        same = self.arguments**2 / 2 * (self.degree / drawn) ** self.count
        return min(1.0, (degree / drawn) ** self.count + same)


class Residue(Tensor):
    """A tensor whose elements are known at each place: one tensor of residues for each.

    Attributes:
        places: where.
        parts: the residues there, float64, each of the shape of the whole.
        bound: what bounds the elements.
    """

    places: Places
    parts: tuple[Tensor, ...]
    bound: Bound

    @staticmethod
    def __new__(cls: Any, places: Places, parts: tuple[Tensor, ...], bound: Bound) -> "Residue":
        """Make one of its parts."""
        first = parts[0]
        made: Residue = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            first.shape,
            strides=first.stride(),
            storage_offset=first.storage_offset(),
            dtype=torch.float64,
            device=first.device,
        )
        made.places, made.parts, made.bound = places, parts, bound
        return made

    def __init__(self, places: Places, parts: tuple[Tensor, ...], bound: Bound) -> None:
        """All is done in `__new__`."""

    def __repr__(self) -> str:  # type: ignore[override]
        """Its shape and degrees."""
        return f"Residue({tuple(self.shape)}, degrees {self.bound.top} and {self.bound.bottom})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute what torch would take apart into steps that have no counterpart."""
        known = places_of((args, kwargs)).rules.functions.get(func)
        if known is not None:
            return known(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute what torch has come down to."""
        places = places_of((args, kwargs))
        return places.rules.operate(places, func, args, kwargs or {})

    def same(self, other: "Residue") -> Tensor:
        """Where two are one function."""
        equal = [a == b for a, b in zip(self.parts, other.parts, strict=True)]
        return torch.stack(equal).all(0)

    def signs(self) -> Tensor:
        """The sign of each element, which is the same at every place.

        Raises:
            UnmodelledError: if it is not: then the model's numbers decide, and no law.
        """
        self.places.looked.add(self.bound.names)
        signs = torch.stack([sign(part) for part in self.parts])
        if not bool((signs == signs[0]).all()):
            raise UnmodelledError("which of two results is larger depends on the numbers")
        return signs[0]


def coerced(argument: Any, places: Places) -> Any:
    """An argument with plain tensors of numbers as residues."""

    def one(tensor: Tensor) -> Tensor:
        plain = not isinstance(tensor, Residue) and tensor.is_floating_point()
        return places.constant(tensor) if plain and not tensor.is_meta else tensor

    return mapped(argument, Tensor, one)


def places_of(arguments: Any) -> Places:
    """The places of the residues among arguments."""
    return found(arguments, Residue)[0].places
