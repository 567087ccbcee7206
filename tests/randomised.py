"""Models at which a wrong fold shows: `reparam.testing` has them."""

from reparam.testing.randomised import EPSILONS, randomised

__all__ = ["EPSILONS", "randomised"]
