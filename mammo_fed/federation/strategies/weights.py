"""How much a site weighs in an average: its public number of images, which is its own word, within bounds.

A site chooses what it declares. One that declares a million images, on purpose or by a slip of the keyboard, would silence all
others in an average weighted by images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.settings.federation import FEWEST_TO_COMPARE

__all__ = ["OUTSIZED", "bounded_weights", "outsized"]

# Whoever declares more than so many times the median is named, and weighs no more than that under the robust strategy.
OUTSIZED: Final = 4.0


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
