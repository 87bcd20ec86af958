"""Size and shape of the noise: is it the declared Gaussian in every message, entry and direction, and as fine as was said?

Every test gives the logarithm of a probability that is at least that of sound noise looking as odd: exact distributions of
sums of squares and of extremes, inequalities that hold for every number of draws elsewhere. Noise that is larger than
declared protects more, and is never a fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2, norm, poisson

from mammo_fed.audit.noise.probe import Message, messages_by_run
from mammo_fed.audit.noise.suspicion import Suspicion, worst

__all__ = ["direction", "distribution", "grid", "lengths", "resolution", "scale", "support", "tails"]

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

# What float32 may take from a sum of squares, relatively.
ROUNDING: Final = 1e-5
THRESHOLDS: Final = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
# Sound noise is finer than this part of its standard deviation, float32 included.
COARSEST: Final = 2.0**-16
# Up to this many steps a number of the grid survives the roundings of a reply: each moves it by 2^-24 of itself.
EXACT_STEPS: Final = 2.0**20
OFF_GRID: Final = 0.25


def scale(messages: Sequence[Message]) -> Suspicion:
    """Whether a message, or an entry of one over all runs, has less noise than declared.

    Exact: a sum of n squares is chi-squared. Whatever data and samples add can only make it larger.
    """
    found = []
    for message in messages:
        squares = np.concatenate([message.noise, message.signal], axis=-1, dtype=np.float64) ** 2 / message.scale**2
        found.append(_too_small(squares.sum(), squares.size, f"the noise of {message.name}", tests=1))
        each, count = squares.sum(axis=(0, 1)), squares.shape[0] * squares.shape[1]
        found.append(_too_small(each.min(), count, f"the noise on one entry of {message.name}", tests=len(each)))
    return worst(found)


def direction(messages: Sequence[Message]) -> Suspicion:
    """Whether there is less noise in some direction, or more than it would leave for others.

    The smallest (largest) singular value of n rows of d entries lies outside sqrt(n) -+ (sqrt(d) + t) with probability at most
    exp(-t^2 / 2) (Davidson and Szarek 2001).
    """
    rows = messages_by_run(messages)
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    count, entries = rows.shape
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(rows.T @ rows), 0.0))
    low = math.sqrt(count) - math.sqrt(entries) - values[0]
    high = values[-1] - math.sqrt(count) - math.sqrt(entries)
    reach = max(low, high, 0.0)
    return Suspicion(
        log_chance=math.log(2) - reach**2 / 2,
        found=f"in one direction the noise is {values[0 if low > high else -1] / math.sqrt(count):.3f} times the declared one",
    )


def support(messages: Sequence[Message]) -> Suspicion:
    """Whether the largest draw, of all or of one message, is too small, as where noise is cut off, or too large. Exact."""
    return worst([_support(draws, where) for draws, where in _each(messages)])


def tails(messages: Sequence[Message]) -> Suspicion:
    """Whether too few or too many draws, of all or of one message, lie beyond a threshold. Exact: their number is binomial."""
    return worst([_beyond(draws, threshold, where) for draws, where in _each(messages) for threshold in THRESHOLDS])


def distribution(messages: Sequence[Message]) -> Suspicion:
    """Whether the draws, of all messages or of one, follow another curve than the Gaussian one.

    Kolmogorov's distance, by the inequality of Dvoretzky, Kiefer and Wolfowitz with Massart's constant.
    """
    return worst([_distance(norm.cdf(draws), f"the draws{where}") for draws, where in _each(messages)])


def lengths(messages: Sequence[Message]) -> Suspicion:
    """Whether the lengths of the noise vectors are distributed as they should be, and none is too short.

    It sees noise whose size changes from message to message, also where its average is right.
    """
    found = []
    for message in messages:
        rows = message.standard
        entries = rows.shape[-1]
        squares = np.einsum("rse,rse->rs", rows, rows, dtype=np.float64).ravel()
        shortest = math.log(len(squares)) + float(chi2.logcdf(squares.min() * (1 + ROUNDING), entries))
        found.append(
            Suspicion(
                log_chance=shortest + math.log(2 * len(messages)),
                found=f"the noise of one message of {message.name} is {math.sqrt(squares.min() / entries):.3f} "
                "times the declared one",
            )
        )
        apart = _distance(chi2.cdf(squares, entries), f"the lengths of the noise of {message.name}")
        found.append(Suspicion(log_chance=apart.log_chance + math.log(2 * len(messages)), found=apart.found))
    return worst(found, tests=1)


def resolution(messages: Sequence[Message]) -> Suspicion:
    """Whether draws coincide, but for their sign, more often than those of noise coarser than any that is sound."""
    draws = np.abs(_pooled(messages))
    _, counts = np.unique(draws.astype(np.float32), return_counts=True)
    pairs = float((counts * (counts - 1.0)).sum() / 2)
    expected = len(draws) ** 2 / 2 * COARSEST / math.sqrt(math.pi)
    return Suspicion(
        log_chance=float(poisson.logsf(pairs - 1, expected)) if pairs else 0.0,
        found=f"{pairs:,.0f} pairs of draws are equal but for their sign, where sound noise has fewer than {expected:,.0f}",
    )


def grid(messages: Sequence[Message]) -> Suspicion:
    """Whether replies that should lie on the public grid do, and use every step of it.

    Small replies alone are looked at: they survive float32. A number off the grid is proof. Whole numbers of sound noise have a
    common divisor g with probability g^-n (nearly: the noise is wide), for all g together less than 2^(2 - n).
    """
    found = [Suspicion(log_chance=0.0, found="")]
    for message in messages:
        if message.grid_steps == 0:
            continue
        steps = message.noise.astype(np.float64).ravel() * (message.grid_steps / message.scale)
        steps = steps[np.abs(steps) < EXACT_STEPS]
        off = int((np.abs(steps - np.rint(steps)) > OFF_GRID).sum())
        if off:
            found.append(Suspicion(log_chance=-math.inf, found=f"{off} of {len(steps)} small replies lie off the public grid"))
        divisor = int(np.gcd.reduce(np.rint(steps).astype(np.int64))) if len(steps) else 1
        if divisor != 1:
            found.append(
                Suspicion(
                    log_chance=min(0.0, (2 - len(steps)) * math.log(2)) + math.log(len(messages)),
                    found=f"all {len(steps)} small replies are multiples of {divisor} steps of the public grid",
                )
            )
    return worst(found, tests=1)


def _too_small(total: float, count: int, what: str, *, tests: int) -> Suspicion:
    return Suspicion(
        log_chance=float(chi2.logcdf(total * (1 + ROUNDING), count)) + math.log(tests),
        found=f"{what} is {math.sqrt(total / count):.4f} times the declared one, over {count:,} draws",
    )


def _distance(uniform: Floats, what: str) -> Suspicion:
    ordered, count = np.sort(uniform.ravel()), uniform.size
    above = np.arange(1, count + 1) / count - ordered
    apart = float(max(above.max(), (1 / count - above).max()))
    return Suspicion(
        log_chance=min(0.0, math.log(2) - 2 * count * apart**2),
        found=f"{what} are off the Gaussian curve by {apart:.4f}",
    )


def _support(draws: Floats, where: str) -> Suspicion:
    largest, count = float(np.abs(draws).max()), len(draws)
    log_tail = math.log(2) + float(norm.logsf(largest))
    # None of them beyond it, or one of them as far as that.
    small, large = count * math.log1p(-math.exp(min(log_tail, -1e-12))), math.log(count) + log_tail
    said = f"no draw of {count:,}{where} passes" if small < large else f"a draw{where} lies off by"
    return Suspicion(log_chance=math.log(2) + min(small, large), found=f"{said} {largest:.3f} standard deviations")


def _beyond(draws: Floats, threshold: float, where: str) -> Suspicion:
    count, chance = len(draws), 2 * norm.sf(threshold)
    beyond = int((np.abs(draws) > threshold).sum())
    rare = min(binom.logcdf(beyond, count, chance), binom.logsf(beyond - 1, count, chance))
    return Suspicion(
        log_chance=float(rare) + math.log(2),
        found=f"{beyond:,} of {count:,} draws{where} lie beyond {threshold:g} standard deviations, where "
        f"{count * chance:,.1f} are expected",
    )


def _each(messages: Sequence[Message]) -> Iterator[tuple[Floats, str]]:
    """The draws of all messages together, and of each, with the words for them."""
    yield _pooled(messages), ""
    for message in messages:
        yield _pooled([message]), f" of {message.name}"


def _pooled(messages: Sequence[Message]) -> Floats:
    return np.concatenate([message.standard.ravel() for message in messages]).astype(np.float64)
