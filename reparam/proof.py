"""What is proven of a rewrite, as plain data that travels with the result."""

from dataclasses import dataclass

CLAIM = (
    "the same rational function of weights, statistics and input, for these hyper-parameters and "
    "shapes, under these premises"
)


@dataclass(frozen=True)
class Proof:
    """What is proven of one rewrite: the `CLAIM`, with its figures, or why it is not.

    Attributes:
        reason: why the rewrite is checked in float64 only; None where it is proven.
        premises: of the weights, under which the claim holds.
        degree: of the numerator of the difference of both sides, at most.
        trials: how many random places both sides were evaluated at.
        probability: with which a wrong rewrite passes, at most.
        sizes: how many sizes of the input were swept.
    """

    reason: str | None
    premises: tuple[str, ...] = ()
    degree: int = 0
    trials: int = 0
    probability: float = 1.0
    sizes: int = 0

    @property
    def proven(self) -> bool:
        """Whether it is proven."""
        return self.reason is None

    def __str__(self) -> str:
        """One line."""
        if self.reason is not None:
            return f"checked in float64 only: {self.reason}"
        premises = "; ".join(self.premises) or "none"
        return (
            f"{CLAIM}: {premises}. A wrong rewrite passes with a probability of at most "
            f"{self.probability:.0e} (degree {self.degree}, {self.trials} trials, {self.sizes} "
            "sizes)"
        )
