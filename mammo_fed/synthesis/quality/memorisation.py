"""Whether a generator gives back images that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from mammo_fed.errors import DataError

__all__ = ["Memorisation", "memorisation", "thumbnails"]

SIDE: Final = 32
# An image this much nearer to a training image than any held-out image is to one is called a copy.
NEAREST: Final = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Memorisation:
    """Attributes:
    ratio: of the mean distance from generated images to the nearest training image, to that from held-out patients' images to
      theirs; well below 1 where the generator stays near what it saw.
    nearer_to_train: share of generated images that are nearer to a training than to a held-out image, over the share expected
      of a generator that knows neither (by the sets' sizes); about 1 where nothing is memorised.
    copies: rows of generated images that are copies of a training image.
    of: for each copy the row of the training image.
    threshold: distance below which an image is called a copy.
    """

    ratio: float
    nearer_to_train: float
    copies: NDArray[np.int64]
    of: NDArray[np.int64]
    threshold: float


def thumbnails(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Images at 32 pixels, standardised each for itself and flattened: a copy in other brightness and contrast stays a copy."""
    side = pixels.shape[-1]
    if side % SIDE:
        raise DataError(f"images of {side} pixels must be a multiple of {SIDE} to be compared")
    small = pixels.reshape(len(pixels), SIDE, side // SIDE, SIDE, side // SIDE).mean(axis=(2, 4), dtype=np.float64)
    flat = small.reshape(len(pixels), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    standard: NDArray[np.float64] = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    return standard


def memorisation(
    generated: NDArray[np.float64], train: NDArray[np.float64], held_out: NDArray[np.float64], *, mirrored: NDArray[np.float64]
) -> Memorisation:
    """Nearest training images of generated ones, against those of patients that the generator never saw.

    Args:
      generated, train, held_out: `thumbnails` or other descriptors, shape (images, dims).
      mirrored: of the training images mirrored, in the same order: a mirrored copy is a copy.

    Raises:
      DataError: If a set is empty.

    Source: nearest-neighbour tests of memorisation, arXiv:2004.05675.
    """
    if not min(len(generated), len(train), len(held_out)):
        raise DataError("memorisation needs generated, training and held-out images")
    nearest, which = _nearest(generated, train, mirrored)
    usual, _ = _nearest(held_out, train, mirrored)
    elsewhere = cdist(generated, held_out).min(axis=1)
    # Fair only between sets of one size: training images are drawn down to the number of held-out ones, evenly.
    rows = np.linspace(0, len(train) - 1, min(len(train), len(held_out))).round().astype(int)
    here = cdist(generated, train[rows]).min(axis=1)
    threshold = NEAREST * float(usual.min())
    copies = np.flatnonzero(nearest < threshold)
    return Memorisation(
        ratio=float(nearest.mean() / usual.mean()),
        nearer_to_train=float(2 * (here < elsewhere).mean()),
        copies=copies,
        of=which[copies],
        threshold=threshold,
    )


def _nearest(
    images: NDArray[np.float64], train: NDArray[np.float64], mirrored: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    apart = np.minimum(cdist(images, train), cdist(images, mirrored))
    which = apart.argmin(axis=1)
    return apart[np.arange(len(images)), which], which.astype(np.int64)
