"""What every accountant has in common: events merged and scaled to the protected unit, and one interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

import numpy as np
from scipy.special import logsumexp
from scipy.stats import binom

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.gdp import check_delta, check_epsilon
from mammo_fed.privacy.events import PrivacyEvent

__all__ = ["PrivacyAccountant", "Protected", "Release", "coarse_epsilon", "merge", "reach"]

Protected = Literal["unit", "patient"]
# More noise than MAX is priced as MAX and less than MIN as none: both are safe and keep the numerics in range.
MAX_NOISE_MULTIPLIER: Final = 1e6
MIN_NOISE_MULTIPLIER: Final = 1e-6
# -log(4e-15): what Renyi composition at order 2 adds for a tail of 1e-15.
NEGLIGIBLE_TAIL: Final = 33.2
# Every epsilon and delta shown is the computed upper bound raised by this part of itself: more than any conversion or root
# finding can be off, and far below the fourth digit that anybody reads.
SAFETY_MARGIN: Final = 1e-6


@dataclass(frozen=True, kw_only=True, order=True)
class Release:
    """`steps` Gaussian releases, each of a Poisson sample to which a protected person adds Binomial(group, sample_rate) items.

    Neighbouring datasets: everything of the protected person zeroed out. Conditioned on who else is drawn (a draw that does
    not depend on the person), one step is dominated by the pair
    sum_j Binomial(j; group, sample_rate) N(j, noise_multiplier^2) against N(0, noise_multiplier^2),
    taken in both directions. For group = 1 this is the pair of the add-or-remove relation, which is why its prices hold
    here; the cohort's size is public in both.

    Attributes:
      noise_multiplier: standard deviation over the largest contribution of ONE item, in (0, 1e6].
      sample_rate: in (0, 1]; at 1 the group is folded into the noise multiplier and `group` is 1.
      group: largest number of items of the protected person, >= 1.
      steps: >= 1.

    Source: arXiv:2106.08567, Thm 10 (dominating pairs compose adaptively); arXiv:2310.15526, Cor 4.7 (mixtures).
    """

    sample_rate: float
    noise_multiplier: float
    group: int
    steps: int

    @property
    def full_batch(self) -> bool:
        """Whether every item takes part in every step."""
        return self.sample_rate == 1.0

    @property
    def participation(self) -> float:
        """Probability that the protected person takes part in a step at all."""
        return -math.expm1(self.group * math.log1p(-self.sample_rate)) if self.sample_rate < 1 else 1.0

    def renyi_two(self) -> float:
        """Renyi divergence of order 2 of one step from everybody else's: log sum_ij p_i p_j exp(i j / sigma^2)."""
        inverse = self.noise_multiplier**-2
        if self.full_batch:
            return inverse
        items = np.arange(self.group + 1)
        log_p = binom.logpmf(items, self.group, self.sample_rate)
        return max(0.0, float(logsumexp(log_p[:, None] + log_p[None, :] + np.outer(items, items) * inverse)))

    def at_worst(self) -> Release:
        """One item as large as the whole group, present whenever any of it is; costs at least as much."""
        noise = max(self.noise_multiplier / self.group, MIN_NOISE_MULTIPLIER)
        return self if self.group == 1 else replace(self, noise_multiplier=noise, sample_rate=self.participation, group=1)


def merge(events: Sequence[PrivacyEvent], *, protected: Protected) -> tuple[Release, ...] | None:
    """Equal events added up and sorted, so that a price depends neither on their order nor on how they were cut.

    All full-batch events become one release: Gaussian releases with multipliers s_i compose exactly to one with
    1 / sqrt(sum 1 / s_i^2).

    Args:
      events: what was or will be released.
      protected: "unit" prices each event for its own unit, which must be the same for all; "patient" prices image-level
        events for a patient with `max_images_per_patient` images.

    Returns:
      The releases, or None if one of the events has no noise (its epsilon is infinite).

    Raises:
      InvalidSetting: If "unit" is asked of events with different units.
    """
    units = sorted({event.unit for event in events})
    if protected == "unit" and len(units) > 1:
        raise InvalidSetting(f"unit={units} must be one unit for all events priced together; price them for the patient")
    if any(event.noise_multiplier < MIN_NOISE_MULTIPLIER for event in events):
        return None
    full_batch: list[float] = []
    sampled: defaultdict[tuple[float, float, int], int] = defaultdict(int)
    for event in events:
        group = event.max_images_per_patient if protected == "patient" and event.unit == "image" else 1
        if event.full_batch:
            full_batch.append(event.steps * (group / event.noise_multiplier) ** 2)
        else:
            sampled[(event.sample_rate, min(event.noise_multiplier, MAX_NOISE_MULTIPLIER), group)] += event.steps
    releases = [
        Release(sample_rate=rate, noise_multiplier=noise, group=group, steps=steps)
        for (rate, noise, group), steps in sampled.items()
    ]
    if full_batch:
        squared_mu = max(math.fsum(full_batch), MAX_NOISE_MULTIPLIER**-2)
        releases.append(Release(sample_rate=1.0, noise_multiplier=1 / math.sqrt(squared_mu), group=1, steps=1))
    return tuple(sorted(releases))


def coarse_epsilon(releases: Sequence[Release], *, delta: float) -> float:
    """A loose upper bound that costs nothing: Renyi composition at order 2, groups taken at their worst.

    Source: arXiv:2004.00010, Prop 12, at alpha = 2; arXiv:1908.10530, Thm 5 (which direction is the larger one).
    """
    if not releases:
        return 0.0
    total = math.fsum(release.steps * release.at_worst().renyi_two() for release in releases)
    return max(0.0, total - math.log(4 * delta))


def reach(releases: Sequence[Release]) -> float:
    """About the largest privacy loss outside tails of mass 1e-15; sizes grids, bounds nothing."""
    return math.fsum(release.steps * release.renyi_two() for release in releases) + NEGLIGIBLE_TAIL


class PrivacyAccountant(ABC):
    """Prices events; holds no state, so that one price never depends on an earlier question.

    Guarantee: `epsilon` and `delta` are upper bounds for releases declared before the first output, used adaptively
    otherwise. Nothing here is a filter: choosing later events by earlier outputs needs GDP or Renyi at one fixed order.
    Neighbouring datasets: the data of one unit zeroed out, the cohort's size public (see `Release` for why add-or-remove
    prices hold for it).
    Edge cases: no events cost 0; an event without noise costs infinity; equal events are merged first, so a price depends
    neither on their order nor on how a run was cut into events.

    Attributes:
      name: value of privacy.accountant.
    """

    name: ClassVar[str]

    def epsilon(self, events: Sequence[PrivacyEvent], *, delta: float) -> float:
        """Epsilon of all `events` together for their own unit, rounded up.

        Raises:
          InvalidSetting: If `delta` is not in (0, 1), the units differ, or this accountant cannot price an event.
        """
        return self._rounded_epsilon(events, protected="unit", delta=delta)

    def patient_epsilon(self, events: Sequence[PrivacyEvent], *, delta: float) -> float:
        """Epsilon of all `events` together for one patient, rounded up.

        Patient-level events cost what they cost. Image-level ones are priced for `max_images_per_patient` = k images zeroed
        out at once: sensitivity k in the full batch, a Binomial(k, sample_rate) mixture of sensitivities when sampled.

        Raises:
          InvalidSetting: As `epsilon`; also for sampled image-level events with k > 1 unless the accountant is PLD.
        """
        return self._rounded_epsilon(events, protected="patient", delta=delta)

    def delta(self, events: Sequence[PrivacyEvent], *, epsilon: float) -> float:
        """Delta of all `events` together at `epsilon` >= 0 for their own unit, rounded up.

        Raises:
          InvalidSetting: If `epsilon` is negative or this accountant cannot say.
        """
        check_epsilon(epsilon, name="epsilon")
        releases = merge(events, protected="unit")
        if releases is None:
            return 1.0
        if not releases:
            return 0.0
        return min(1.0, self._delta(releases, epsilon) * (1 + SAFETY_MARGIN))

    def _rounded_epsilon(self, events: Sequence[PrivacyEvent], *, protected: Protected, delta: float) -> float:
        check_delta(delta)
        releases = merge(events, protected=protected)
        if releases is None:
            return math.inf
        if not releases:
            return 0.0
        return self._epsilon(releases, delta) * (1 + SAFETY_MARGIN)

    @abstractmethod
    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        """Upper bound on the epsilon of one or more releases."""

    @abstractmethod
    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:
        """Upper bound on the delta of one or more releases."""
