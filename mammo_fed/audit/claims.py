"""The claim under audit: the trade-off curve that a run's stated epsilon implies, and how to refute it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from mammo_fed.audit.bounds import mu_lower
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.composition import gaussian_epsilon, gaussian_mu
from mammo_fed.privacy.accounting.pricing import delta_at, epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.names import AccountantName

__all__ = ["Claim"]

Floats = NDArray[np.float64]

# A sampled schedule's curve is the upper envelope of lines, one for each epsilon asked for; fewer lines only make it milder.
CURVE_POINTS: Final = 12
CURVE_REACH: Final = 1.5
# The claim is made by an accountant that rounds up; ours must not call a difference in the last digits a contradiction.
TOLERANCE: Final = 1e-6
# The search looks at schedules with up to this many times more or less noise than declared.
MOST_NOISE: Final = 8.0
SEARCH_STEPS: Final = 9


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a site says that a run cost one unit.

    Attributes:
      epsilon: stated, above 0 and finite.
      delta: in (0, 1).
      events: what is said to have been released, all of one unit.
      accountant: who priced it.

    Raises:
      InvalidSetting: If nothing is promised: epsilon is infinite or 0, or there are no events.
    """

    epsilon: float
    delta: float
    events: tuple[PrivacyEvent, ...]
    accountant: AccountantName

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and self.events):
            raise InvalidSetting(f"epsilon={self.epsilon} must be above 0 and finite: a run that promises nothing has no audit")

    @property
    def full_batch(self) -> bool:
        """Whether everything that is claimed is full-batch, so that the curve is exactly Gaussian."""
        return all(event.full_batch for event in self.events)

    @cached_property
    def mu(self) -> float | None:
        """The claimed mu where the curve is Gaussian, else None."""
        return gaussian_mu(epsilon=self.epsilon, delta=self.delta) * (1 + TOLERANCE) if self.full_batch else None

    @cached_property
    def priced(self) -> float:
        """What the events cost by the claim's own accountant."""
        return epsilon(self.events, delta=self.delta, accountant=self.accountant)

    def least_fnr(self, fpr: Floats) -> Floats:
        """Smallest false negative rate that the claim allows any distinguisher at a false positive rate of `fpr`.

        Full batch: Phi(Phi^-1(1 - fpr) - mu), exactly. Sampled: the envelope of the (epsilon, delta) pairs of the privacy
        loss distribution, which lies on or below the exact curve.

        Source: arXiv:1905.02383, Def 2.6 and Prop 2.5.
        """
        if self.mu is not None:
            gaussian: Floats = ndtr(-ndtri(fpr) - self.mu)
            return gaussian
        return _envelope(fpr, self._profile)

    def refuted_by(self, fpr: float, fnr: float) -> bool:
        """Whether no error rates up to (fpr, fnr) are allowed: the curve does not rise, so the corner decides."""
        return bool(self.least_fnr(np.array([fpr]))[0] > fnr)

    def epsilon_lower(self, fpr: float, fnr: float) -> float:
        """Epsilon, at the claim's delta, of the most private mechanism of the claim's kind that allows (fpr, fnr).

        Full batch: Gaussian releases. Sampled: the claimed schedule with more (or less) noise in every event, rounded down.
        """
        if self.mu is not None:
            mu = float(mu_lower(np.array([fpr]), np.array([fnr]))[0])
            return gaussian_epsilon(mu=mu, delta=self.delta)
        low, high = -math.log(MOST_NOISE), math.log(MOST_NOISE)
        refuted = None
        for _ in range(SEARCH_STEPS):
            middle = (low + high) / 2
            scaled = self._with_noise(math.exp(middle))
            if scaled.refuted_by(fpr, fnr):
                refuted, high = scaled, middle
            else:
                low = middle
        return 0.0 if refuted is None else refuted.priced

    def _with_noise(self, factor: float) -> Claim:
        """The same schedule with `factor` times the noise; its stated epsilon only places the points of its curve."""
        events = tuple(replace(event, noise_multiplier=event.noise_multiplier * factor) for event in self.events)
        return Claim(epsilon=self.epsilon / factor, delta=self.delta, events=events, accountant="pld")

    @cached_property
    def _profile(self) -> Sequence[tuple[float, float]]:
        """(epsilon, delta) pairs that hold for the events."""
        points = np.linspace(0.0, CURVE_REACH * self.epsilon, CURVE_POINTS)
        return [(float(point), delta_at(self.events, epsilon=float(point), accountant="pld")) for point in points]


def _envelope(fpr: Floats, profile: Sequence[tuple[float, float]]) -> Floats:
    """Smallest false negative rate under every (epsilon, delta) of `profile`."""
    least = np.zeros_like(fpr)
    for epsilon_, delta in profile:
        least = np.maximum(least, 1 - delta - math.exp(epsilon_) * fpr)
        least = np.maximum(least, math.exp(-epsilon_) * (1 - delta - fpr))
    return least
