"""Exact samples of the discrete Gaussian on the integers, made from random 64-bit words alone.

The sampler is Algorithm 3 of Canonne, Kamath and Steinke (arXiv:2004.00010): propose from a discrete Laplace, accept with
probability exp(-exponent). Two things make it fast and change no probability. The Laplace's scale is a power of two, so that a
proposal is a few bits of a word and a geometric number of blocks. And a Bernoulli(exp(-x)) is decided by comparing a uniform
number, known to 64 bits, with exp(-x) in floating point whenever the two lie further apart than floating point can err;
otherwise (about once in 10^10 draws) more bits are drawn and the comparison is made in exact arithmetic until it is certain.
"""

from __future__ import annotations

import decimal
import secrets
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import InvalidSetting

__all__ = ["LARGEST_SIGMA", "Words", "discrete_gaussian", "operating_system_words", "uniform_below_exp"]

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
