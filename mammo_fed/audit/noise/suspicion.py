"""What a test of the noise found, and how likely sound noise is to look as odd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Suspicion", "worst"]


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """The oddest thing that a test saw.

    Attributes:
      log_chance: natural logarithm of a bound on the probability that sound noise looks as odd to this test; not above 0
        where it says something, minus infinity for what sound noise never shows.
      found: what was seen, in words and numbers.
    """

    log_chance: float
    found: str


def worst(found: Sequence[Suspicion], *, tests: int | None = None) -> Suspicion:
    """The oddest of several, its chance times their number (or `tests`), so that the bound holds for all of them together."""
    first = min(found, key=lambda each: each.log_chance)
    count = len(found) if tests is None else tests
    return Suspicion(log_chance=min(0.0, first.log_chance + math.log(count)), found=first.found)
