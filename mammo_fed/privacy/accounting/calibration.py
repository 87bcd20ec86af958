"""The smallest noise that keeps events under a target, found on the safe side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Final

from scipy.optimize import brentq

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.composition import check_delta, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.names import AccountantName

__all__ = ["calibrate", "check_target", "noise_for", "remaining_epsilon"]

# Calibration stops inside [1 - TOLERANCE, 1] times the target.
TOLERANCE: Final = 1e-6
LOG_NOISE_STEP: Final = TOLERANCE / 20
FIRST_STEP: Final = 0.02
SMALLEST_NOISE: Final = 1e-6
LARGEST_NOISE: Final = 1e6


def calibrate(
    make_events: Callable[[float], Sequence[PrivacyEvent]], *, target_epsilon: float, delta: float, accountant: AccountantName
) -> float:
    """Smallest noise multiplier whose events cost at most `target_epsilon`, rounded up.

    Guarantee: epsilon(make_events(result)) <= target_epsilon; and it is above target_epsilon (1 - 1e-6) wherever the
    accountant's price is a continuous function of the noise.

    Args:
      make_events: from a noise multiplier > 0 to the events that it gives; more noise must not cost more.
      target_epsilon: above 0; infinity gives 0.0, no noise.
      delta: in (0, 1).
      accountant: who prices.

    Raises:
      InvalidSetting: If a setting is out of its range, or no amount of noise reaches the target.
    """
    check_target(target_epsilon)
    check_delta(delta)
    if math.isinf(target_epsilon):
        return 0.0
    aim = target_epsilon * (1 - TOLERANCE / 2)

    @cache
    def excess(log_noise: float) -> float:
        price = epsilon(make_events(math.exp(log_noise)), delta=delta, accountant=accountant)
        # A root finder cannot use infinity; beyond ten times the target only the sign matters.
        return min(price, 10 * target_epsilon) - aim

    low, high = _bracket(excess, math.log(_guess(make_events, mu=gaussian_mu(epsilon=target_epsilon, delta=delta))))
    log_noise = float(brentq(excess, low, high, xtol=LOG_NOISE_STEP, rtol=1e-15))
    while excess(log_noise) > target_epsilon - aim:
        log_noise += LOG_NOISE_STEP
    return math.exp(log_noise)


def noise_for(
    event: PrivacyEvent, *, spent: Sequence[PrivacyEvent], target_epsilon: float, delta: float, accountant: AccountantName
) -> float:
    """Noise multiplier that `event` needs so that it and everything `spent` cost at most `target_epsilon` together.

    Guarantee: as `calibrate`, if both were declared before the first output. Given that `spent` has been seen, the sum is a
    guarantee only under accountant "gdp".

    Args:
      event: what will be released; its own noise multiplier is ignored.
      spent: what has been charged already; may be empty.
      target_epsilon: above 0; infinity gives 0.0.
      delta: in (0, 1).
      accountant: who prices.

    Raises:
      InvalidSetting: If a setting is out of its range, or what is spent leaves no room.
    """
    return calibrate(
        lambda noise: (*spent, replace(event, noise_multiplier=noise)),
        target_epsilon=target_epsilon,
        delta=delta,
        accountant=accountant,
    )


def remaining_epsilon(
    spent: Sequence[PrivacyEvent], *, target_epsilon: float, delta: float, accountant: AccountantName
) -> float:
    """Epsilon of the largest single full-batch release that still fits under `target_epsilon`; for people to read.

    It is more than the difference of the epsilons, because privacy losses add up in squares; 0.0 if nothing fits.

    Raises:
      InvalidSetting: If a setting is out of its range or the events cannot be priced.
    """
    check_target(target_epsilon)
    if not spent or math.isinf(target_epsilon):
        return target_epsilon
    quiet = replace(spent[0], steps=1, sample_rate=1.0, noise_multiplier=LARGEST_NOISE)
    if epsilon((*spent, quiet), delta=delta, accountant=accountant) >= target_epsilon * (1 - TOLERANCE):
        return 0.0
    noise = noise_for(quiet, spent=spent, target_epsilon=target_epsilon, delta=delta, accountant=accountant)
    return epsilon((replace(quiet, noise_multiplier=noise),), delta=delta, accountant=accountant)


def check_target(target_epsilon: float) -> None:
    """Raise InvalidSetting unless `target_epsilon` is above 0 (infinity is)."""
    if not target_epsilon > 0:
        raise InvalidSetting(f"target_epsilon={target_epsilon} must be a number above 0; check privacy.target_epsilon")


def _guess(make_events: Callable[[float], Sequence[PrivacyEvent]], *, mu: float) -> float:
    """Noise multiplier at which the central-limit mu of the events is `mu`: a start for the search, not a bound.

    Source: arXiv:1911.11607 (mu^2 = q^2 T (exp(1 / sigma^2) - 1)).
    """

    def gap(log_noise: float) -> float:
        squared = math.fsum(_limit_mu_squared(event) for event in make_events(math.exp(log_noise)))
        return math.log(squared) - 2 * math.log(mu)

    low, high = math.log(SMALLEST_NOISE), math.log(LARGEST_NOISE)
    if gap(low) < 0 or gap(high) > 0:
        return 1.0
    return math.exp(float(brentq(gap, low, high, xtol=1e-6)))


def _limit_mu_squared(event: PrivacyEvent) -> float:
    inverse = max(event.noise_multiplier, SMALLEST_NOISE) ** -2
    if event.full_batch:
        return event.steps * inverse
    return event.steps * event.sample_rate**2 * math.expm1(min(inverse, 500.0))


def _bracket(excess: Callable[[float], float], start: float) -> tuple[float, float]:
    """Two logarithms of the noise multiplier, the first with too much epsilon and the second without.

    Raises:
      InvalidSetting: If there are none.
    """
    near, step = start, FIRST_STEP if excess(start) > 0 else -FIRST_STEP
    while math.log(SMALLEST_NOISE) <= near + step <= math.log(LARGEST_NOISE):
        far = near + step
        if (excess(far) > 0) != (step > 0):
            return min(near, far), max(near, far)
        near, step = far, 2 * step
    raise InvalidSetting(
        f"noise_multiplier=exp({near:.3g}) must be in [{SMALLEST_NOISE:g}, {LARGEST_NOISE:g}] to meet the target; "
        "check privacy.target_epsilon, privacy.mean_fraction and what is spent already"
    )
