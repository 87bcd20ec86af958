"""What every accountant has in common: events merged and scaled to the protected unit, one interface, and the Gaussian curve.

The curve is the one thing known in closed form: what mu-GDP means in (epsilon, delta), both ways. A release with mu-GDP is as
hard to tell apart as N(0, 1) from N(mu, 1). Full-batch Gaussian releases compose exactly: mu^2 = sum of steps /
noise_multiplier^2.

Source: arXiv:1805.06530 (analytic Gaussian mechanism), Thm 8; arXiv:1905.02383 (Gaussian DP), Cor 2.13 and Cor 3.3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import erfcx, logsumexp, ndtr
from scipy.stats import binom

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent

__all__ = [
    "LARGEST_LOSS",
    "PrivacyAccountant",
    "Protected",
    "Release",
    "check_delta",
    "check_epsilon",
    "coarse_epsilon",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_mu",
    "merge",
    "reach",
]

Protected = Literal["unit", "patient"]
# More noise than MAX is priced as MAX and less than MIN as none: both are safe and keep the numerics in range.
MAX_NOISE_MULTIPLIER: Final = 1e6
MIN_NOISE_MULTIPLIER: Final = 1e-6
# -log(4e-15): what Renyi composition at order 2 adds for a tail of 1e-15.
NEGLIGIBLE_TAIL: Final = 33.2
# Beyond this no grid of privacy losses fits; `coarse_epsilon`, which is also an upper bound, is the answer.
LARGEST_LOSS: Final = 1000.0
# Every epsilon and delta shown is the computed upper bound raised by this part of itself: more than any conversion or root
# finding can be off, and far below the fourth digit that anybody reads.
SAFETY_MARGIN: Final = 1e-6

# A root is known to about 1e-15 of its scale; nudging it by this much puts it on the safe side of the curve.
NUDGE: Final = 1e-12
SQRT2: Final = math.sqrt(2.0)
LOG_SQRT_2PI: Final = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, kw_only=True, order=True)
class Release:
    """`steps` Gaussian releases, each of a Poisson sample to which a protected person adds Binomial(group, sample_rate) items.

    Neighbouring datasets: the protected person contributes nothing. Conditioned on who else is drawn (a draw that does
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
    Neighbouring datasets: one unit contributes nothing, the cohort's size is public (see `Release` for why add-or-remove
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

        Patient-level events cost what they cost. Image-level ones are priced for `max_images_per_patient` = k images that
        contribute nothing at once: sensitivity k in the full batch, a Binomial(k, sample_rate) mixture of sensitivities when
        sampled.

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


def check_delta(delta: float) -> None:
    """Raise InvalidSetting unless 0 < delta < 1."""
    if not 0 < delta < 1:
        raise InvalidSetting(f"delta={delta} must be above 0 and below 1; check privacy.delta")


def check_epsilon(epsilon: float, *, name: str) -> None:
    """Raise InvalidSetting unless `epsilon` is a number of at least 0 (infinity is one)."""
    if not epsilon >= 0:
        raise InvalidSetting(f"{name}={epsilon} must be a number, at least 0; check privacy.{name}")


def gaussian_delta(*, mu: float, epsilon: float) -> float:
    """Smallest delta for which N(0, 1) and N(mu, 1) are (epsilon, delta)-indistinguishable.

    Guarantee: accurate to about 1e-12 of its value for mu >= 1e-6 (no difference of nearly equal numbers is taken).

    Args:
      mu: distance of the means in standard deviations, >= 0; infinity is allowed.
      epsilon: any real number or infinity.

    Returns:
      Phi(-t) - exp(epsilon) Phi(-mu - t) with t = epsilon / mu - mu / 2, in [0, 1].
    """
    if mu == 0:
        return max(0.0, -math.expm1(epsilon))
    if math.isinf(mu):
        return 1.0
    if math.isinf(epsilon):
        return 0.0 if epsilon > 0 else 1.0
    t = epsilon / mu - mu / 2
    if epsilon < 0:  # symmetry of the pair: delta(-e) = 1 - exp(-e) + exp(-e) delta(e)
        return -math.expm1(epsilon) + math.exp(epsilon) * gaussian_delta(mu=mu, epsilon=-epsilon)
    return math.exp(_log_delta(t, mu))


def gaussian_epsilon(*, mu: float, delta: float) -> float:
    """Smallest epsilon >= 0 for which N(0, 1) and N(mu, 1) are (epsilon, delta)-indistinguishable, rounded up.

    Guarantee: never below the exact value; above it by less than 1e-10 of `mu` or of the value.

    Args:
      mu: distance of the means in standard deviations, >= 0; infinity gives infinity.
      delta: in (0, 1).

    Raises:
      InvalidSetting: If `delta` is out of its range.
    """
    check_delta(delta)
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return math.inf
    low, high = -mu / 2, math.sqrt(-2 * math.log(delta))
    wanted = math.log(delta)
    if _log_delta(low, mu) <= wanted:
        return 0.0
    # At t = high the bound delta <= exp(-t^2 / 2) already holds, so the root lies between.
    root = brentq(lambda t: _log_delta(t, mu) - wanted, low, high, xtol=1e-14)
    safe = root + NUDGE * (1 + abs(root))
    return float(max(0.0, mu * (mu / 2 + safe)))


def gaussian_mu(*, epsilon: float, delta: float) -> float:
    """Largest mu for which mu-GDP implies (epsilon, delta)-DP, rounded down; the inverse of `gaussian_epsilon`.

    Args:
      epsilon: at least 0; infinity gives infinity.
      delta: in (0, 1).

    Raises:
      InvalidSetting: If an argument is out of its range.
    """
    check_delta(delta)
    check_epsilon(epsilon, name="target_epsilon")
    if math.isinf(epsilon):
        return math.inf
    wanted = math.log(delta)

    def gap(mu: float) -> float:
        return _log_delta(epsilon / mu - mu / 2, mu) - wanted

    high = 1.0
    while gap(high) < 0:
        high *= 2
    while gap(high / 2) > 0:
        high /= 2
    root = brentq(gap, high / 2, high, xtol=1e-16)
    return float(root * (1 - NUDGE))


def _log_delta(t: float, mu: float) -> float:
    """Natural logarithm of Phi(-t) - exp(epsilon) Phi(-mu - t) at epsilon = mu (mu / 2 + t) >= 0.

    exp(epsilon) phi(mu + t) = phi(t), so both terms share the factor phi(t) and only Mills ratios are subtracted.
    """
    log_phi = -t * t / 2 - LOG_SQRT_2PI
    if t < 0:
        return math.log(ndtr(-t) - math.exp(log_phi) * _mills(mu + t))
    return log_phi + math.log(_mills(t) - _mills(mu + t))


def _mills(x: float) -> float:
    """Mills ratio (1 - Phi(x)) / phi(x)."""
    return float(math.sqrt(math.pi / 2) * erfcx(x / SQRT2))
