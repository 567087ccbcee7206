"""Arithmetic modulo a prime, exact on tensors of float64.

A residue is an integer nearest to zero, so that 0, 1 and -1 stand for themselves. float64 counts
exactly up to 2**53: a product of two residues is below 2**36, and a sum of 2**17 of these is exact,
in whatever order it is taken.

The prime is 3 modulo 4, so that -1 is no square: of x and -x, both not zero, just one is a square.
That one counts as positive, and a product of two positive ones is positive.
"""

from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from reparam.devices import CPU

PRIME = 2**19 - 1

LONGEST_SUM = 2**17
"""How many products of two residues may be summed before they are reduced."""

LARGEST_DENOMINATOR = 2**20
"""Of fractions that numbers may stand for, though float64 has to round them: one over nine."""

ROUNDING = Fraction(1, 2**49)
"""By how much of itself a number may be off the fraction that it stands for: 3 · 0.1 is 0.3."""

FEW, MANY = 256, 2**20
"""Fractions are looked for among so few different numbers, of so many at most."""

POSITIVES = (PRIME - 1) // 2
"""How many residues are squares, and not zero."""


def reduced(x: Tensor) -> Tensor:
    """The residues of integers below 2**53."""
    return x - torch.round(x / PRIME) * PRIME


def power(x: Tensor, exponent: int) -> Tensor:
    """Residues to a power of at least one."""
    result = None
    while exponent:
        if exponent % 2:
            result = x if result is None else reduced(result * x)
        x = reduced(x * x)
        exponent //= 2
    assert result is not None, "the exponent is at least one"
    return result


def inverse(x: Tensor) -> Tensor:
    """The residues by which these are multiplied to one; of zero, zero."""
    return power(x, PRIME - 2)


def sign(x: Tensor) -> Tensor:
    """One for squares, minus one for the rest, zero for zero."""
    return power(x, POSITIVES)


def positives(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random squares, all but zero equally likely."""
    roots = torch.randint(1, POSITIVES + 1, shape, generator=generator, device=CPU).double()
    return reduced(roots * roots)


def residue(number: float) -> float:
    """The residue of a number: of a fraction with a small denominator, if it is one but rounded.

    Without that, two ways to compute a number that round it differently would be told apart.

    Raises:
        ZeroDivisionError: if the prime divides the denominator.
    """
    exact = Fraction(number)
    simple = exact.limit_denominator(LARGEST_DENOMINATOR)
    fraction = simple if abs(simple - exact) <= ROUNDING * abs(exact) else exact
    if fraction.denominator % PRIME == 0:
        raise ZeroDivisionError(f"{number} has no residue modulo {PRIME}")
    value = fraction.numerator * pow(fraction.denominator, -1, PRIME) % PRIME
    return float(value - PRIME if value > POSITIVES else value)


def keeps_sign(number: float) -> bool:
    """Whether a number counts as positive where it is."""
    counted = pow(int(residue(number)), POSITIVES, PRIME)
    return counted == {1: 1, 0: 0, -1: PRIME - 1}[(number > 0) - (number < 0)]


def residues(numbers: Tensor) -> Tensor:
    """The residues of finite numbers."""
    numbers = numbers.detach().double().contiguous()
    flat: Any = numbers.flatten()
    values = sorted({*cast("list[float]", flat.tolist())}) if flat.numel() <= MANY else []
    if values and len(values) <= FEW:
        made = torch.tensor([residue(value) for value in values], dtype=torch.float64, device=CPU)
        return made[
            torch.searchsorted(torch.tensor(values, dtype=torch.float64, device=CPU), numbers)
        ]
    # Of so many none is told apart: each is an integer times a power of two.
    mantissa, exponent = torch.frexp(numbers)
    powers = torch.tensor([residue(2.0**k) for k in range(19)], dtype=torch.float64, device=CPU)
    scale = powers[(exponent.long() - 53) % 19]  # modulo this prime 2**19 is 1
    return reduced(reduced(mantissa * 2.0**53) * scale)


def _mixed(words: Tensor) -> Tensor:
    """Bits that depend on all bits of int64 words (the finalizer of splitmix64, D. Lea et al.)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        words = (words ^ _shifted(words, shift)) * factor
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Words shifted to the right, with zeros from the left."""
    return (words >> bits) & (2 ** (64 - bits) - 1)


def fingerprint(parts: tuple[Tensor, ...], salt: int) -> Tensor:
    """A word of 64 bits for each element of tensors of residues of one shape."""
    words = torch.full_like(parts[0], 0, dtype=torch.int64) + salt
    for part in parts:
        words = _mixed(words * 31 + part.long())
    return words


def hashed(words: Tensor, salt: int) -> Tensor:
    """Residues that look random, the same for the same word and salt."""
    return reduced(torch.remainder(_mixed(words + salt), PRIME).double())
