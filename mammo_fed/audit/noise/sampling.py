"""Who is drawn into Poisson samples: not more than was said, and each independently of all others, steps and rounds.

All units of the probe's cohort add the same to a reply, which so tells, up to its noise, how many were drawn. The number of
draws is binomial, and the noise is Gaussian: the bounds below hold for every number of runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom

from mammo_fed.audit.noise.probe import Message
from mammo_fed.audit.noise.suspicion import Suspicion, worst

__all__ = ["drawn_again", "drawn_in_crowds", "drawn_together", "rate"]

Floats = NDArray[np.float64]

# Several local steps start a little off the zeros that were sent, so that a unit adds a little more or less than forecast.
SLACK: Final = 0.01
# In standard deviations of the number of drawn units with its noise.
DISTANCES: Final = (1.5, 2.0, 3.0, 4.0, 6.0)


def rate(messages: Sequence[Message]) -> Suspicion:
    """Whether more units are drawn than declared, by Bernstein's inequality."""
    counts, expected, variance = _sampled(messages)
    if not counts.size:
        return Suspicion(log_chance=0.0, found="")
    surplus = float((counts - expected * (1 + SLACK)).sum())
    total = variance * counts.size
    share = float(counts.mean()) / expected
    return Suspicion(
        log_chance=-(surplus**2) / (2 * (total + surplus / 3)) if surplus > 0 else 0.0,
        found=f"units are drawn {share:.3f} times as often as the sampling rate says, over {counts.size:,} samples",
    )


def drawn_together(messages: Sequence[Message]) -> Suspicion:
    """Whether the number of drawn units varies less than independent draws do, as in batches of one size.

    A sum of squares falls short of its mean by t with probability at most exp(-t^2 / (2 sum of mean squares of squares)).
    """
    counts, expected, variance = _sampled(messages)
    if not counts.size:
        return Suspicion(log_chance=0.0, found="")
    squares = (counts - expected) ** 2
    # The fourth moment of a binomial number is below that of a Gaussian one plus its variance.
    fourth = 3 * variance**2 + variance
    short = float((variance * (1 - SLACK) - squares).sum())
    return Suspicion(
        log_chance=-(short**2) / (2 * fourth * counts.size) if short > 0 else 0.0,
        found=f"the number of drawn units has {squares.mean() / variance:.3f} times the variance of independent draws, over "
        f"{counts.size:,} samples",
    )


def drawn_in_crowds(messages: Sequence[Message]) -> Suspicion:
    """Whether the number of drawn units is far off too often, as where one coin decides for many. Exact: a binomial number.

    How often independent draws lie so far off is known: a binomial number with Gaussian noise.
    """
    counts, expected, variance = _sampled(messages)
    if not counts.size:
        return Suspicion(log_chance=0.0, found="")
    first = next(message for message in messages if message.drawn.size)
    times = np.arange(first.draws + 1.0)
    weights = binom.pmf(times, first.draws, first.sample_rate)
    found = []
    for distance in DISTANCES:
        reach = distance * math.sqrt(variance)
        # What several local steps may add to the forecast is taken off the distance.
        inner = reach - SLACK * expected
        each = ndtr((times - expected - inner) / first.drawn_noise) + ndtr((expected - inner - times) / first.drawn_noise)
        chance, far = min(1.0, float(weights @ each)), int((np.abs(counts - expected) > reach).sum())
        found.append(
            Suspicion(
                log_chance=float(binom.logsf(far - 1, counts.size, chance)),
                found=f"{far:,} of {counts.size:,} samples are {distance:g} standard deviations too large or too small, where "
                f"{counts.size * chance:,.1f} are expected",
            )
        )
    return worst(found)


def drawn_again(messages: Sequence[Message]) -> Suspicion:
    """Whether one sample tells of another: of the next round, of the other site, or of the next run.

    Given one number, its product with an independent other one is sub-Gaussian, a binomial number's variance being at most a
    quarter of the number of draws.
    """
    sampled = [message for message in messages if message.drawn.size]
    found = [Suspicion(log_chance=0.0, found="")]
    centred = [message.drawn - message.draws * message.sample_rate for message in sampled]
    reach = [message.drawn_noise**2 + message.draws / 4 for message in sampled]
    for first, second in combinations(range(len(sampled)), 2):
        found.append(_related(centred[first], centred[second], reach[second], "rounds"))
    for number, counts in enumerate(centred):
        found.append(_related(counts[:, 0], counts[:, 1], reach[number], "sites"))
        even = len(counts) // 2 * 2
        found.append(_related(counts[0:even:2], counts[1:even:2], reach[number], "runs"))
    return worst(found)


def _sampled(messages: Sequence[Message]) -> tuple[Floats, float, float]:
    """All numbers of drawn units, what each should be, and its variance with noise; every round has the same event."""
    sampled = [message for message in messages if message.drawn.size]
    if not sampled:
        return np.zeros(0), 0.0, 0.0
    first = sampled[0]
    expected = first.draws * first.sample_rate
    variance = expected * (1 - first.sample_rate) + first.drawn_noise**2
    return np.concatenate([message.drawn.ravel() for message in sampled]), expected, variance


def _related(first: Floats, second: Floats, reach: float, what: str) -> Suspicion:
    length = math.sqrt(float(np.square(first).sum()))
    score = abs(float((first * second).sum())) / max(length * math.sqrt(reach), 1e-300)
    return Suspicion(
        log_chance=min(0.0, math.log(2) - score**2 / 2),
        found=f"the samples of two {what} go together with a correlation of {_correlation(first, second):.4f}",
    )


def _correlation(first: Floats, second: Floats) -> float:
    lengths = math.sqrt(float(np.square(first).sum() * np.square(second).sum()))
    return float((first * second).sum()) / max(lengths, 1e-300)
