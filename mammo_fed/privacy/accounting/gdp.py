"""The Gaussian trade-off curve in closed form: what mu-GDP means in (epsilon, delta), both ways.

A release with mu-GDP is as hard to tell apart as N(0, 1) from N(mu, 1). Full-batch Gaussian releases compose exactly:
mu^2 = sum of steps / noise_multiplier^2.

Source: arXiv:1805.06530 (analytic Gaussian mechanism), Thm 8; arXiv:1905.02383 (Gaussian DP), Cor 2.13 and Cor 3.3.
"""

from __future__ import annotations

import math
from typing import Final

from scipy.optimize import brentq
from scipy.special import erfcx, ndtr

from mammo_fed.errors import InvalidSetting

__all__ = ["check_delta", "check_epsilon", "gaussian_delta", "gaussian_epsilon", "gaussian_mu"]

# A root is known to about 1e-15 of its scale; nudging it by this much puts it on the safe side of the curve.
NUDGE: Final = 1e-12
SQRT2: Final = math.sqrt(2.0)
LOG_SQRT_2PI: Final = 0.5 * math.log(2 * math.pi)


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
