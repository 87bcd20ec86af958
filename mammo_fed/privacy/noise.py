"""Where noise and Poisson samples come from, and releases on a public grid.

Randomness is the operating system's, unless a test injects it. A release on the grid clips, rounds toward zero, sums in
integers and adds discrete Gaussian noise, drawn exactly.

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

How the noise is drawn from random 64-bit words alone. The sampler is Algorithm 3 of Canonne, Kamath and Steinke
(arXiv:2004.00010): propose from a discrete Laplace, accept with probability exp(-exponent). Two things make it fast and change
no probability. The Laplace's scale is a power of two, so that a proposal is a few bits of a word and a geometric number of
blocks. And a Bernoulli(exp(-x)) is decided by comparing a uniform number, known to 64 bits, with exp(-x) in floating point
whenever the two lie further apart than floating point can err; otherwise (about once in 10^10 draws) more bits are drawn and
the comparison is made in exact arithmetic until it is certain.

Source: convolution of discrete Gaussians, Peikert, CRYPTO 2010, Thm 3.1; the discrete Gaussian mechanism, arXiv:2004.00010.
"""

from __future__ import annotations

import decimal
import hashlib
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.names import NoiseMode

__all__ = [
    "GRID_STEPS",
    "LARGEST_SIGMA",
    "ClippedSum",
    "Draws",
    "FloatDraws",
    "GridDraws",
    "NoiseSource",
    "Words",
    "clip_factors",
    "discrete_gaussian",
    "grid_sigma",
    "grid_sum",
    "noisy_release",
    "operating_system_words",
    "uniform_below_exp",
]

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

Words: TypeAlias = Callable[[int], NDArray[np.uint64]]
"""Gives that many independent, uniformly distributed 64-bit words."""

WORD_BITS: Final = 64
# A draw stays below 2^62 in size, but for a chance of exp(-8000).
LARGEST_SIGMA: Final = 1 << 55
LARGEST_BATCH: Final = 1 << 15
# Candidates drawn per sample still wanted; between 40 and 56 % of them are accepted.
CANDIDATES_PER_SAMPLE: Final = 2.3
# How far a comparison in floating point may be from the truth: the exponent's own error is below 2^-38 up to this many blocks,
# exp() adds some 2^-52, and a word loses at most 2^11 when it becomes a float64.
RELATIVE_SLACK: Final = 2.0**-36
ABSOLUTE_SLACK: Final = 2.0**12
MOST_BLOCKS_IN_FLOAT: Final = 40
GEOMETRIC_TERMS: Final = 32


class ClippedSum(Protocol):
    """What the units of a cohort add up to in one release, each unit's contribution clipped as a whole, in both arithmetics."""

    def on_grid(self, *, clipping_norm: float) -> NDArray[np.int64]:
        """The sum in grid steps without noise, shape (dims,); see `grid_sum`."""

    def in_floating_point(self, *, event: PrivacyEvent, noise: np.random.Generator) -> NDArray[np.floating[Any]]:
        """The sum with Gaussian noise of standard deviation noise_multiplier * clipping_norm, shape (dims,)."""


class Draws(Protocol):
    """The randomness of one release: noise, or samples; the kind of draws decides in which arithmetic a sum is released."""

    def release(self, clipped: ClippedSum, *, event: PrivacyEvent) -> NDArray[np.floating[Any]]:
        """The sum with noise, shape (dims,), in units of the contributions.

        Guarantee: one Gaussian mechanism of sensitivity `event.clipping_norm` and noise multiplier
        `event.noise_multiplier`, or at least as private; a noise multiplier of 0 adds no noise.
        """

    def poisson_sample(self, num_units: int, *, sample_rate: float) -> NDArray[np.int64]:
        """Indices of the units that take part, ascending: each independently, with probability `sample_rate` or just below."""

    def integers(self, bound: int, *, size: int) -> NDArray[np.int64]:
        """Whole numbers in [0, bound), which no privacy rests on: views, rows of public images."""


@dataclass(frozen=True, kw_only=True)
class FloatDraws:
    """Draws in floating point.

    Guarantee: that of its generator, for real numbers: floating point has gaps that can be read (see the module's text).

    Attributes:
      generator: source of randomness.
    """

    generator: np.random.Generator

    def release(self, clipped: ClippedSum, *, event: PrivacyEvent) -> NDArray[np.floating[Any]]:
        """See Draws."""
        return clipped.in_floating_point(event=event, noise=self.generator)

    def poisson_sample(self, num_units: int, *, sample_rate: float) -> NDArray[np.int64]:
        """See Draws."""
        if sample_rate >= 1:
            return np.arange(num_units)
        return np.flatnonzero(self.generator.random(num_units) < sample_rate)

    def integers(self, bound: int, *, size: int) -> NDArray[np.int64]:
        """See Draws."""
        return self.generator.integers(bound, size=size)


@dataclass(frozen=True, kw_only=True)
class GridDraws:
    """Draws from random words: discrete noise on sums on the grid.

    Guarantee: that of its words: with the operating system's, no two draws of any process ever share randomness.

    Attributes:
      words: source of randomness.
    """

    words: Words

    def release(self, clipped: ClippedSum, *, event: PrivacyEvent) -> NDArray[np.floating[Any]]:
        """See Draws, and `noisy_release`."""
        return noisy_release(clipped.on_grid(clipping_norm=event.clipping_norm), event=event, words=self.words)

    def gaussian(self, count: int, *, sigma: int) -> NDArray[np.int64]:
        """Discrete Gaussian samples; see `discrete_gaussian`."""
        return discrete_gaussian(count, sigma=sigma, words=self.words)

    def poisson_sample(self, num_units: int, *, sample_rate: float) -> NDArray[np.int64]:
        """See Draws; each with probability floor(sample_rate * 2^64) / 2^64: never above `sample_rate`."""
        if sample_rate >= 1:
            return np.arange(num_units)
        return np.flatnonzero(self.words(num_units) < np.uint64(int(sample_rate * 2.0**64)))

    def integers(self, bound: int, *, size: int) -> NDArray[np.int64]:
        """See Draws; uniform up to bound / 2^64."""
        return (self.words(size) % np.uint64(bound)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Makes the draws of one release.

    Guarantee: only with `injected_seed=None` does any release have one. Draws on the grid take every bit from the operating
    system and keep none; a generator is seeded with 256 fresh bits of it for every call. So no state survives a fork, a restart
    or a round.

    Attributes:
      injected_seed: makes the draws repeatable, for tests and benchmarks on public cohorts; it voids the guarantee.
    """

    injected_seed: int | None

    def draws(self, mode: NoiseMode, *, site: str, round_index: int, purpose: str) -> Draws:
        """The draws for one purpose in one round at one site, as `mode` says.

        Args:
          mode: on the grid or in floating point.
          site: name of the site; injected noise differs between sites.
          round_index: 0 for the mean, from 1 for training.
          purpose: "noise" or "sampling"; the two never share their randomness.
        """
        if mode == "float":
            return FloatDraws(generator=np.random.Generator(self._bits(site, round_index, purpose)))
        return self.on_grid(site=site, round_index=round_index, purpose=purpose)

    def on_grid(self, *, site: str, round_index: int, purpose: str) -> GridDraws:
        """Draws on the grid; see `draws`."""
        if self.injected_seed is None:
            return GridDraws(words=operating_system_words)
        return GridDraws(words=self._bits(site, round_index, purpose).random_raw)

    def _bits(self, site: str, round_index: int, purpose: str) -> np.random.PCG64DXSM:
        if self.injected_seed is None:
            return np.random.PCG64DXSM(secrets.randbits(256))
        text = f"{self.injected_seed}/{site}/{round_index}/{purpose}"
        return np.random.PCG64DXSM(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def clip_factors(norms: NDArray[np.float64], *, clipping_norm: float) -> NDArray[np.float64]:
    """Factor in [0, 1] per unit that brings its norm to at most `clipping_norm`.

    Guarantee: factor * norm <= clipping_norm for every finite norm.
    Edge cases: a norm of zero keeps its (zero) contribution; a norm that is not finite gives the factor 0.
    """
    factors = np.minimum(1.0, clipping_norm * (1 - ROUNDING_MARGIN) / np.maximum(norms, NORM_FLOOR))
    return np.where(np.isfinite(norms), factors, 0.0)


def grid_sum(contributions: NDArray[np.float64], *, clipping_norm: float) -> NDArray[np.int64]:
    """Clip every unit's contribution, round it toward zero to the grid, and sum in integers.

    Guarantee: one unit moves the result by an integer vector of norm at most GRID_STEPS, exactly; the result is the
    same bit for bit whatever the order of the units, and adding up parts of a cohort gives the whole.
    Neighbouring cohorts: one unit contributes nothing.
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


def operating_system_words(count: int) -> NDArray[np.uint64]:
    """`count` words from the operating system; nothing is kept, so a fork has nothing to repeat."""
    return np.frombuffer(secrets.token_bytes(8 * count), np.uint64)


def discrete_gaussian(count: int, *, sigma: int, words: Words) -> NDArray[np.int64]:
    """Independent samples with P(x) proportional to exp(-x^2 / (2 sigma^2)) over all integers x.

    Guarantee: the distribution is exact, whatever the rounding of floating point, if the words are uniform and independent.
    Edge cases: the time taken depends on the words drawn, and so on the noise, a little; it is not hidden.

    Args:
      count: number of samples, >= 0.
      sigma: scale, a whole number in [1, 2^55]; the standard deviation but for exp(-2 pi^2 sigma^2).
      words: source of randomness.

    Returns:
      int64, shape (count,).

    Raises:
      InvalidSetting: If `sigma` is out of its range.

    Source: arXiv:2004.00010, Alg. 3.
    """
    if not 1 <= sigma <= LARGEST_SIGMA:
        raise InvalidSetting(f"sigma={sigma} must be in [1, 2^55] grid steps; check privacy.target_epsilon")
    draws, done = np.empty(count, np.int64), 0
    while done < count:
        batch = min(int((count - done) * CANDIDATES_PER_SAMPLE) + 16, LARGEST_BATCH)
        accepted = _accepted(batch, sigma, words)[: count - done]
        draws[done : done + len(accepted)] = accepted
        done += len(accepted)
    return draws


def uniform_below_exp(leading: int, numerator: int, denominator: int, words: Words) -> bool:
    """Whether a uniform number in [0, 1) with these leading 64 bits is below exp(-numerator / denominator), exactly.

    Args:
      leading: the first 64 bits of the uniform number.
      numerator, denominator: of the exponent, >= 0 and > 0.
      words: gives the number's further bits, as many as the decision needs.
    """
    if numerator == 0:
        return True
    uniform, bits = leading, WORD_BITS
    while True:
        low, high = _exp_bounds(numerator, denominator, bits)
        if uniform + 1 <= low:
            return True
        if uniform >= high:
            return False
        uniform, bits = uniform << WORD_BITS | int(words(1)[0]), bits + WORD_BITS


def _accepted(count: int, sigma: int, words: Words) -> NDArray[np.int64]:
    """The accepted ones among `count` candidates.

    A candidate of size x = block * width + offset is proposed with probability proportional to exp(-block), so it is accepted
    with probability exp(-(x^2 / (2 sigma^2) - block + shift)); `shift` is the smallest that keeps every exponent at 0 or more.
    """
    width = 1 << (sigma - 1).bit_length()
    double_square = 2 * sigma * sigma
    shift = max(0, double_square - width * width)
    first = words(count)
    offset = (first & np.uint64(width - 1)).astype(np.int64)
    negative = (first >> np.uint64(WORD_BITS - 1)).astype(bool)
    block = _geometric(count, words)
    size = offset + block * width
    ratio = size / sigma
    exponent = 0.5 * ratio * ratio - block + shift / double_square
    uniform = words(count)
    threshold = np.exp(-exponent) * 2.0**WORD_BITS
    slack = threshold * RELATIVE_SLACK + ABSOLUTE_SLACK
    position = uniform.astype(np.float64)
    accept = position < threshold - slack
    unsure = (~accept & (position <= threshold + slack)) | (block > MOST_BLOCKS_IN_FLOAT)
    for index in np.flatnonzero(unsure):
        blocks = int(block[index])
        exact = (int(offset[index]) + blocks * width) ** 2 + shift - blocks * double_square
        accept[index] = uniform_below_exp(int(uniform[index]), exact, double_square, words)
    # Zero has one sign only: with two it would be twice as likely.
    accept &= ~(negative & (size == 0))
    kept = size[accept]
    return np.where(negative[accept], -kept, kept)


def _geometric(count: int, words: Words) -> NDArray[np.int64]:
    """Independent samples with P(value >= j) = exp(-j), by exact inversion of a uniform number."""
    value = np.zeros(count, np.int64)
    pending = np.arange(count)
    while len(pending):
        uniform = words(len(pending))
        rank = np.searchsorted(EXP_FLOORS, uniform, side="right")
        passed = GEOMETRIC_TERMS - rank
        # At a floor itself 64 bits do not tell on which side of exp(-j) the number lies.
        for index in np.flatnonzero(EXP_FLOORS[np.maximum(rank - 1, 0)] == uniform):
            passed[index] += uniform_below_exp(int(uniform[index]), int(passed[index]) + 1, 1, words)
        value[pending] += passed
        # Beyond the last term the number is uniform again below it: the geometric distribution has no memory.
        pending = pending[passed == GEOMETRIC_TERMS]
    return value


def _exp_bounds(numerator: int, denominator: int, bits: int) -> tuple[int, int]:
    """Whole numbers around exp(-numerator / denominator) * 2^bits, at most 3 apart."""
    # Decimal's exp is correctly rounded: with more digits than 2^bits and the exponent have, the error is below 1.
    digits = 30 + bits // 3 + len(str(numerator // denominator))
    context = decimal.Context(prec=digits, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
    exponent = context.divide(decimal.Decimal(-numerator), decimal.Decimal(denominator))
    near = int(context.multiply(context.exp(exponent), decimal.Decimal(1 << bits)))
    return near - 1, near + 2


def _exp_floor(term: int) -> int:
    low, high = (bound >> WORD_BITS for bound in _exp_bounds(term, 1, 2 * WORD_BITS))
    if low != high:
        raise ArithmeticError(f"exp(-{term}) is too close to a multiple of 2^-64")
    return low


# floor(exp(-j) * 2^64) for j = 32, 31, ..., 1.
EXP_FLOORS: Final = np.array([_exp_floor(term) for term in range(GEOMETRIC_TERMS, 0, -1)], np.uint64)
