"""Releases on a public grid: clip, round toward zero, sum in integers, add discrete Gaussian noise.

Why: a sum in floating point depends on the order of its terms and on what else is in it, and Gaussian noise in floating point
has gaps; both have been turned into attacks (arXiv:2207.10635, Mironov CCS 2012, arXiv:2112.05307). Here one unit changes the
sum by an integer vector of norm at most 2^30 grid steps, exactly, and the noise is drawn exactly.

Why the accountants' prices for continuous Gaussian noise hold. Let s be the discrete scale in grid steps, a the scale that was
paid for, and s^2 >= a^2 + 16. Take the continuous mechanism y = x + N(0, s^2 - 16), whose price is at most the paid one, and
round each y at random to z, P(z) proportional to exp(-(z - y)^2 / 32): post-processing, free of charge. By Poisson summation
the normaliser of that rounding depends on y by no more than a factor of 1 +- 2.1 exp(-32 pi^2), and the two Gaussians convolve
to exp(-(z - x)^2 / (2 s^2)). So the discrete mechanism is a post-processed continuous one up to a factor of 1 +- 1e-136 in the
probability of every coordinate: over 10^12 released coordinates that adds less than 1e-120 to epsilon and nothing to delta. It
holds for any composition and under Poisson sampling, because it holds for every sum that noise is added to.

Source: convolution of discrete Gaussians, Peikert, CRYPTO 2010, Thm 3.1; the discrete Gaussian mechanism, arXiv:2004.00010.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.noise.discrete_gaussian import Words, discrete_gaussian

__all__ = ["GRID_STEPS", "clip_factors", "grid_sigma", "grid_sum", "noisy_release"]

# Grid steps in one clipping norm. Rounding moves a unit's coordinate by less than 1e-9 of the clipping norm; the squares of a
# unit's coordinates sum to at most 2^60, and 2^31 units and the noise to less than 2^63.
GRID_STEPS: Final = 1 << 30
MOST_UNITS: Final = 1 << 31
SMALLEST_NORM: Final = 1e-100
LARGEST_NORM: Final = 1e100
# Variance, in squared grid steps, given up for the discreteness of the noise.
ROUNDING_VARIANCE: Final = 16
NORM_FLOOR: Final = 1e-12
# Factors are shrunk by this much, so that rounding in float32 never lets a unit pass its clipping norm.
ROUNDING_MARGIN: Final = 1e-6


def clip_factors(norms: NDArray[np.float64], *, clipping_norm: float) -> NDArray[np.float64]:
    """Factor in [0, 1] per unit that brings its norm to at most `clipping_norm`.

    Guarantee: factor * norm <= clipping_norm for every finite norm.
    Edge cases: a norm of zero keeps its (zero) contribution; a norm that is not finite gives the factor 0.
    """
    factors = np.minimum(1.0, clipping_norm * (1 - ROUNDING_MARGIN) / np.maximum(norms, NORM_FLOOR))
    return np.where(np.isfinite(norms), factors, 0.0)


def grid_sum(contributions: NDArray[np.float64], *, clipping_norm: float) -> NDArray[np.int64]:
    """Clip every unit's contribution, round it toward zero to the grid, and sum in integers.

    Guarantee: zeroing out one unit moves the result by an integer vector of norm at most GRID_STEPS, exactly; the result is the
    same bit for bit whatever the order of the units, and adding up parts of a cohort gives the whole.
    Neighbouring cohorts: the contribution of one unit zeroed out.
    Edge cases: a contribution that is not finite counts as zero; no units give zeros.

    Args:
      contributions: float64, shape (units, dims): each unit's whole contribution, a function of that unit's data alone.
      clipping_norm: largest norm of a contribution, public, in [1e-100, 1e100]; the grid's step is clipping_norm / GRID_STEPS.

    Returns:
      int64, shape (dims,), in grid steps.

    Raises:
      InvalidSetting: If the clipping norm is out of its range or there are more than 2^31 units.
    """
    if not SMALLEST_NORM <= clipping_norm <= LARGEST_NORM:
        raise InvalidSetting(
            f"clipping_norm={clipping_norm} must be in [{SMALLEST_NORM:g}, {LARGEST_NORM:g}] for privacy.noise=secure"
        )
    if len(contributions) > MOST_UNITS:
        raise InvalidSetting("more than 2^31 units cannot be summed; split the cohort")
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", contributions, contributions))
        scales = clip_factors(norms, clipping_norm=clipping_norm) * (GRID_STEPS / clipping_norm)
        scaled = contributions * scales[:, None]
    scaled[~np.isfinite(norms)] = 0.0
    steps = scaled.astype(np.int64)
    # The proof of the sensitivity: in integers, for each unit alone. The margin of the factors keeps it from ever biting.
    steps[np.einsum("ij,ij->i", steps, steps) > GRID_STEPS * GRID_STEPS] = 0
    total: NDArray[np.int64] = steps.sum(axis=0)
    return total


def grid_sigma(noise_multiplier: float) -> int:
    """Scale of the discrete noise in grid steps: above noise_multiplier * GRID_STEPS, so that its continuous price holds.

    Guarantee: result^2 - 16 >= (noise_multiplier * GRID_STEPS)^2.
    """
    paid = math.ceil(noise_multiplier * GRID_STEPS)
    return 1 + math.isqrt(paid * paid + ROUNDING_VARIANCE)


def noisy_release(total: NDArray[np.int64], *, event: PrivacyEvent, words: Words) -> NDArray[np.float64]:
    """Add noise to a sum on the grid and leave the grid.

    Guarantee: at least as private as the continuous Gaussian mechanism with sensitivity `event.clipping_norm` and noise
    multiplier `event.noise_multiplier`, up to 1e-120 in epsilon; see the module's docstring.
    Edge cases: a noise multiplier of 0 adds no noise.

    Args:
      total: int64, shape (dims,), from grid_sum.
      event: the one that was reserved.
      words: source of randomness.

    Returns:
      float64, shape (dims,), in units of the contributions.
    """
    if event.noise_multiplier > 0:
        total = total + discrete_gaussian(len(total), sigma=grid_sigma(event.noise_multiplier), words=words)
    return total.astype(np.float64) * (event.clipping_norm / GRID_STEPS)
