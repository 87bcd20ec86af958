"""How near generated images lie to real ones, and how much of them they cover, in the space of a fixed descriptor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from mammo_fed.errors import DataError

__all__ = ["Neighbourhood", "frechet_distance", "neighbourhood"]

NEIGHBOURS: Final = 5


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """Shares of images that lie among the others'; higher is better.

    Attributes:
      precision: generated images within the reach of a real one, in [0, 1].
      recall: real images within the reach of a generated one, in [0, 1].
      density: how many real reaches a generated image lies in, over their number expected of real images; may be above 1.
      coverage: real images with a generated one within their reach, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of descriptors, each of shape (images, dims); >= 0.

    With few images the distance of two samples of one distribution is well above 0: compare it with that of held-out real ones.

    Raises:
      DataError: If a set has fewer than two images, or a number is not finite.

    Source: arXiv:1706.08500.
    """
    one, two = _checked(first), _checked(second)
    apart = one.mean(axis=0) - two.mean(axis=0)
    of_one, of_two = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = _root(of_one)
    # tr (C1 C2)^(1/2) through a symmetric matrix of the same eigenvalues: no complex numbers, no failure at low rank.
    between = np.linalg.eigvalsh(root @ of_two @ root)
    value = apart @ apart + np.trace(of_one) + np.trace(of_two) - 2 * np.sqrt(np.clip(between, 0, None)).sum()
    return float(max(0.0, value))


def neighbourhood(
    real: NDArray[np.floating], generated: NDArray[np.floating], *, neighbours: int = NEIGHBOURS
) -> Neighbourhood:
    """Precision, recall, density and coverage of `generated` against `real`, each of shape (images, dims).

    The reach of an image is the distance to its `neighbours`-th nearest among its own.

    Raises:
      DataError: If a set has not more images than `neighbours`, or a number is not finite.

    Source: arXiv:1904.06991 (precision, recall), arXiv:2002.09797 (density, coverage).
    """
    mine, its = _checked(real), _checked(generated)
    if min(len(mine), len(its)) <= neighbours:
        raise DataError(f"a set of {min(len(mine), len(its))} images must have more than {neighbours} to have neighbourhoods")
    reach_of_real, reach_of_generated = _reach(mine, neighbours), _reach(its, neighbours)
    apart = cdist(mine, its)
    within = apart <= reach_of_real[:, None]
    return Neighbourhood(
        precision=float(within.any(axis=0).mean()),
        recall=float((apart <= reach_of_generated[None]).any(axis=1).mean()),
        density=float(within.sum(axis=0).mean() / neighbours),
        coverage=float(within.any(axis=1).mean()),
    )


def _reach(points: NDArray[np.float64], neighbours: int) -> NDArray[np.float64]:
    apart = cdist(points, points)
    # The nearest is the image itself.
    return np.partition(apart, neighbours, axis=1)[:, neighbours]


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(np.atleast_2d(matrix))
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


def _checked(points: NDArray[np.floating]) -> NDArray[np.float64]:
    found = np.asarray(points, np.float64)
    if found.ndim != 2 or len(found) < 2 or not np.isfinite(found).all():
        raise DataError(f"descriptors of shape {found.shape} must be finite, of two images at least")
    return found
