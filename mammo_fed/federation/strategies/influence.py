"""What bounds a site's influence on an average: what it weighs, whether it points against the others, how far it has led.

A site chooses what it declares. One that declares a million images, on purpose or by a slip of the keyboard, would silence all
others in an average weighted by images: its public number of images, which is its own word, counts within bounds.

Between independent noise the cosine of two updates times the root of the dimension is about standard normal. So the sum of a
site's scores over rounds has a known spread where there is no signal at all, and what is below a fixed number of standard
deviations of that sum points against the others by more than chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.settings.federation import FEWEST_TO_COMPARE

__all__ = ["OUTSIZED", "Course", "Reputation", "bounded_weights", "direction_scores", "outsized"]

# Whoever declares more than so many times the median is named, and weighs no more than that under the robust strategy.
OUTSIZED: Final = 4.0
# Standard deviations of the sum that noise alone gives; an honest site without any signal is below it once in 4,000 rounds.
LOWEST_REPUTATION: Final = -3.5
# A hostile update without noise agrees or disagrees with noisy ones more than those do with each other.
WORTH: Final = 3.0
# Above so many sites one of them changes little of what the others agree on.
MANY: Final = 32
# What a round leaves of the course before it: about ten rounds are looked back on.
KEPT: Final = 0.9
# How much farther than the median a site may have moved the model; honest sites of unequal noise differ by less.
FARTHER: Final = 1.25


def outsized(images: Mapping[str, int]) -> tuple[str, ...]:
    """Sites that declare more than OUTSIZED times the median number of images, by name; nobody of fewer than three.

    >>> outsized({"a": 200, "b": 150, "c": 180, "d": 1_000_000})
    ('d',)
    """
    if len(images) < FEWEST_TO_COMPARE:
        return ()
    middle = median(images.values())
    return tuple(sorted(site for site, count in images.items() if count > OUTSIZED * middle))


def bounded_weights(images: Sequence[float], *, max_share: float, times_median: float = math.inf) -> NDArray[np.float64]:
    """Weights, float64, shape (sites,): the numbers of images, cut down so that nobody has more than `max_share` of their sum.

    Args:
      images: of each site, > 0; at least one.
      max_share: largest share of a site, in (0, 1]; where that cannot be, all weigh the same.
      times_median: largest weight in units of the median of at least three sites.

    >>> bounded_weights([100, 100, 100, 1_000_000], max_share=0.5).tolist()
    [100.0, 100.0, 100.0, 300.0]
    """
    weights = np.asarray(images, np.float64)
    if len(weights) >= FEWEST_TO_COMPARE:
        weights = np.minimum(weights, times_median * np.median(weights))
    falling = np.sort(weights)[::-1]
    for cut in range(len(falling)):
        if cut * max_share >= 1:
            break
        # With the `cut` largest at this limit, each of them has exactly `max_share` of the sum.
        limit = max_share * falling[cut:].sum() / (1 - cut * max_share)
        if falling[cut] <= limit:
            return np.minimum(weights, limit) if cut else weights
    return np.full(len(weights), falling[-1])


def direction_scores(updates: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far every update agrees with the others, in standard deviations of what noise gives, float64, shape (sites,).

    It is the median cosine with the others, times the root of the dimension, over the spread of such a median. Where it is
    below zero it counts as far as the others agree among themselves: near its optimum a model is held by gradients that cancel,
    every one of which points against the others, and no site is at fault.

    Args:
      updates: float64, shape (sites, dims), finite, at least three sites; one that is zero agrees with nobody and disagrees
        with nobody.
    """
    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    rows = np.divide(updates, norms, out=np.zeros_like(updates), where=norms > 0)
    cosines = rows @ rows.T * math.sqrt(updates.shape[1])
    sites = len(updates)
    scores = _medians(cosines) / median_spread(sites - 1)
    if sites > MANY:
        among = np.full(sites, np.median(_medians(cosines)))
    else:
        among = np.array([np.median(_medians(np.delete(np.delete(cosines, site, 0), site, 1))) for site in range(sites)])
    among = among / median_spread(max(1, sites - 2))
    return np.maximum(scores, np.minimum(0.0, -WORTH * among)) if sites >= FEWEST_TO_COMPARE else np.zeros(sites)


def _medians(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of every row but for the diagonal."""
    sites = len(cosines)
    medians: NDArray[np.float64] = np.median(cosines[~np.eye(sites, dtype=bool)].reshape(sites, sites - 1), axis=1)
    return medians


def median_spread(count: int) -> float:
    """About the standard deviation of the median of `count` standard normal draws; never too small by more than 1 %."""
    return math.sqrt(math.pi / (2 * count + math.pi - 2))


class Reputation:
    """How far each site has agreed with the others so far; shared by the mean and the training rounds.

    A site's reputation is the sum of its scores since it was last zero, never above it: a site that is honest at first gains
    nothing by that. It is low below LOWEST_REPUTATION standard deviations of a sum of as many scores of noise alone.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def against(self, sites: Sequence[str], updates: NDArray[np.float64]) -> tuple[str, ...]:
        """Take in a round and name the sites that point against the others, the lowest first."""
        if len(sites) < FEWEST_TO_COMPARE:
            return ()
        for site, score in zip(sites, direction_scores(updates).tolist(), strict=True):
            before, rounds = self._sums.get(site, (0.0, 0))
            self._sums[site] = (before + score, rounds + 1) if before + score < 0 else (0.0, 0)
        levels = {site: total / math.sqrt(max(1, rounds)) for site, (total, rounds) in self._sums.items() if site in sites}
        return tuple(
            site for level, site in sorted((level, site) for site, level in levels.items()) if level < LOWEST_REPUTATION
        )

    def exclude(self, sites: Sequence[str], updates: NDArray[np.float64]) -> frozenset[str]:
        """Take in a round and name the sites whose updates are to be left out: the lowest, always fewer than half of all."""
        return frozenset(self.against(sites, updates)[: (len(sites) - 1) // 2])

    def as_dict(self) -> dict[str, list[float]]:
        """Sum and number of rounds by site."""
        return {site: [total, rounds] for site, (total, rounds) in self._sums.items()}

    def restore(self, sums: Mapping[str, Any]) -> None:
        """Take up what `as_dict` gave; of earlier releases, which kept no number of rounds, the sum of one."""
        pairs = {site: value if isinstance(value, list | tuple) else (value, 1) for site, value in sums.items()}
        self._sums = {site: (float(total), int(rounds)) for site, (total, rounds) in pairs.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Way:
    """Sum of a site's weighted updates, older ones less, and the length that equal independent ones would give it."""

    total: NDArray[np.float64]
    rounds: float


class Course:
    """How far each site has moved the model in the last rounds, and what of a new update keeps it near the median of all.

    Honest noise goes in another direction every round and adds up as a root; an update that is the same every round adds up as
    the number of rounds. So a bound on every single update is none on all of them together.
    """

    def __init__(self) -> None:
        self._ways: dict[str, _Way] = {}

    def weights(self, sites: Sequence[str], updates: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take in a round: weights, float64, shape (sites,), at most those given, under which nobody goes much farther.

        Args:
          sites: by name.
          updates: float64, shape (sites, dims).
          weights: of the updates, > 0.
        """
        size = updates.shape[1]
        before = [self._ways.get(site, _Way(total=np.zeros(size), rounds=0.0)) for site in sites]
        kept = [KEPT * way.total if len(way.total) == size else np.zeros(size) for way in before]
        rounds = [KEPT**2 * way.rounds + 1 for way in before]
        ways = [old + weight * update for old, weight, update in zip(kept, weights, updates, strict=True)]
        lengths = [float(np.linalg.norm(way)) / math.sqrt(count) for way, count in zip(ways, rounds, strict=True)]
        limit = FARTHER * float(np.median(lengths)) if len(sites) >= FEWEST_TO_COMPARE else math.inf
        bounded = weights.copy()
        for index, site in enumerate(sites):
            if lengths[index] > limit:
                farthest = limit * math.sqrt(rounds[index])
                bounded[index] = min(weights[index], _largest_part(kept[index], updates[index], farthest))
            self._ways[site] = _Way(total=kept[index] + bounded[index] * updates[index], rounds=rounds[index])
        return bounded

    def as_arrays(self) -> dict[str, NDArray[np.float64]]:
        """By site: the sum, and behind it its number of rounds."""
        return {site: np.append(way.total, way.rounds) for site, way in self._ways.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `as_arrays` gave."""
        self._ways = {
            site: _Way(total=array[:-1].astype(np.float64), rounds=float(array[-1])) for site, array in arrays.items()
        }


def _largest_part(start: NDArray[np.float64], update: NDArray[np.float64], length: float) -> float:
    """The largest factor >= 0 with which `start` + factor * `update` is no longer than `length`; 0 where there is none."""
    squared, along = float(update @ update), float(start @ update)
    room = along**2 + squared * (length**2 - float(start @ start))
    if squared == 0 or room <= 0:
        return 0.0
    return max(0.0, (math.sqrt(room) - along) / squared)
