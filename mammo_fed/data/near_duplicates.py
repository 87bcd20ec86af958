"""The same mammogram twice: patches that are copies of one another up to encoding, intensities, a small shift or a mirror.

Patches are compared by their local contrast: what is left of a pixel once its neighbourhood's mean and spread are taken away,
which a monotone change of intensities, an inversion or a lossy encoding hardly moves. First coarsely and each with each, as one
blocked matrix product; the nearest few are then laid over one another, moved and scaled a little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["SIMILAR", "near_duplicates"]

Floats = NDArray[np.float32]

# Correlation of local contrast, laid over one another, above which two patches are one image; docs/data.md has the figures.
SIMILAR: Final = 0.68
# Added for patches of no pixels, in part for those below `SIDE`: they hold less that could differ.
SMALL_PATCH: Final = 0.4
# The same, coarsely and in place, above which a pair is looked at closely; and how many of each patch's nearest are.
COARSE: Final = 0.5
NEAREST: Final = 4
# In the first of the overlays; below it, no other is tried.
PROMISING: Final = 0.3
COARSE_SIDE: Final = 16
SIDE: Final = 64
# The middle that is laid over the other patch: 8 of 64 pixels to every side.
MIDDLE: Final = 48
# Moves of a middle inside a field, and sides of middles that are laid there at one size: as they are, and of closer crops.
MOVES: Final = SIDE - MIDDLE + 1
MIDDLES: Final = (48, 45, 42)
# Sum of squared contrasts below which a part shows nothing.
LEAST_SPREAD: Final = 1e-3 * MIDDLE**2
# Spread of intensities, in [0, 1], below which there is nothing to compare.
FLOOR: Final = 3e-3
BLOCK: Final = 512
# Smaller patches hold too little detail.
SMALLEST: Final = 24


def near_duplicates(pixels: Floats, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of patches of different units that show one image.

    Copies are found through re-encoding, 4 to 16 bits, gamma, windows that leave most of the patch unclipped, inversion,
    mirrors, shifts and closer crops by up to a tenth of the side. 10,000 patches take less than a minute on one core.

    Args:
      pixels: float32 in [0, 1], shape (images, height, width).
      units: int64, shape (images,): pairs within one are not looked for.

    Returns:
      int64, shape (pairs, 2): rows, the smaller first, in order.
    """
    if len(pixels) < 2 or min(pixels.shape[1:]) < SMALLEST:
        return np.empty((0, 2), np.int64)
    candidates = _candidates(pixels, units)
    rows, place = np.unique(candidates[:, :2], return_inverse=True)
    likeness = _Overlay(pixels[rows]).of(place.reshape(-1, 2), candidates[:, 2]) if len(rows) else np.empty(0)
    alike = SIMILAR + SMALL_PATCH * max(0.0, 1.0 - min(pixels.shape[1:]) / SIDE)
    return np.unique(candidates[likeness > alike, :2], axis=0)


def _candidates(pixels: Floats, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """(row, other row, mirror) of the nearest few of every patch, each pair once."""
    size = (COARSE_SIDE, COARSE_SIDE)
    coarse = np.concatenate([_contrast(_resized(block, size), 0.5, 2.0) for block in _blocks(pixels)])
    mirrored = [_unit(_mirrored(coarse, flip)) for flip in range(4)]
    rows: list[NDArray[np.int64]] = []
    for start in range(0, len(pixels), BLOCK):
        here = mirrored[0][start : start + BLOCK]
        best = np.full((len(here), len(pixels)), -1.0, np.float32)
        which = np.zeros(best.shape, np.int8)
        for flip, other in enumerate(mirrored):
            like = np.abs(here @ other.T)
            which[like > best] = flip
            np.maximum(best, like, out=best)
        best[units[start : start + BLOCK, None] == units[None, :]] = 0.0
        near = np.argpartition(-best, min(NEAREST, len(pixels) - 1), axis=1)[:, :NEAREST]
        own = np.repeat(np.arange(len(here)), near.shape[1])
        near = near.ravel()
        keep = best[own, near] > COARSE
        own, near = own[keep], near[keep]
        # A mirror is its own inverse, so that a pair may be turned round.
        pair = np.sort(np.stack([own + start, near], axis=1), axis=1)
        rows.append(np.column_stack([pair, which[own, near]]).astype(np.int64))
    return np.unique(np.concatenate(rows), axis=0)


class _Overlay:
    """Patches laid over one another, with small moves and scales; half precision keeps 10,000 in memory.

    Args:
      pixels: of the patches, float32, shape (images, height, width).
    """

    def __init__(self, pixels: Floats) -> None:
        self._fields = np.concatenate(
            [_contrast(_resized(block, (SIDE, SIDE)), 0.7, 3.0).astype(np.float16) for block in _blocks(pixels)]
        )
        self._spreads = np.concatenate([_spread(block.astype(np.float32)) for block in _blocks(self._fields)])

    def of(self, pairs: NDArray[np.int64], mirrors: NDArray[np.int64]) -> Floats:
        """Largest correlation of each pair of places, either patch's middle in the other's field, shape (pairs,)."""
        best = np.zeros(len(pairs), np.float32)
        for mirror in range(4):
            (chosen,) = np.nonzero(mirrors == mirror)
            for start in range(0, len(chosen), BLOCK):
                chunk = chosen[start : start + BLOCK]
                best[chunk] = self._largest(pairs[chunk, 0], pairs[chunk, 1], mirror, MIDDLES[:1])
                # Copies at another scale are somewhat alike at their own.
                chunk = chunk[best[chunk] > PROMISING]
                one, other = pairs[chunk, 0], pairs[chunk, 1]
                found = (self._largest(one, other, mirror, MIDDLES[1:]), self._largest(other, one, mirror, MIDDLES))
                best[chunk] = np.maximum(best[chunk], np.maximum(*found))
        return best

    def _largest(self, whole: NDArray[np.int64], part: NDArray[np.int64], mirror: int, sides: Sequence[int]) -> Floats:
        """Largest absolute correlation of the middle of `part`, cut out at some sides, with any place of `whole`."""
        spectrum = scipy.fft.rfft2(self._fields[whole].astype(np.float32))
        inner = _mirrored(self._fields[part].astype(np.float32), mirror)
        best = np.zeros(len(whole), np.float32)
        for side in sides:
            edge = (SIDE - side) // 2
            middle = _resized(inner[:, edge : edge + side, edge : edge + side], (MIDDLE, MIDDLE))
            middle = middle - middle.mean(axis=(1, 2), keepdims=True)
            squares = np.maximum((middle**2).sum(axis=(1, 2)), LEAST_SPREAD)
            products = scipy.fft.irfft2(spectrum * np.conj(scipy.fft.rfft2(middle, (SIDE, SIDE))), (SIDE, SIDE))
            moved = np.abs(products[:, :MOVES, :MOVES]) / np.sqrt(self._spreads[whole] * squares[:, None, None])
            np.maximum(best, moved.max(axis=(1, 2)), out=best)
        return best


def _spread(fields: NDArray[Any]) -> Floats:
    """Sum of squares about the mean of every part of a field that is as large as a middle, shape (images, MOVES, MOVES)."""
    sums: list[NDArray[np.float64]] = []
    for values in (fields, fields**2):
        total = np.pad(values, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
        total = total[:, MIDDLE:] - total[:, :-MIDDLE]
        sums.append(total[:, :, MIDDLE:] - total[:, :, :-MIDDLE])
    spread: Floats = np.maximum(sums[1] - sums[0] ** 2 / MIDDLE**2, LEAST_SPREAD).astype(np.float32)
    return spread


def _contrast(pixels: Floats, fine: float, around: float) -> Floats:
    """Every pixel, blurred by `fine`, less its surroundings' mean and over their spread; blurs in pixels."""
    detail = gaussian_filter(pixels, (0, fine, fine)) - gaussian_filter(pixels, (0, around, around))
    spread = np.sqrt(np.maximum(gaussian_filter(detail**2, (0, around, around)), 0.0))
    contrast: Floats = (detail / (spread + np.float32(FLOOR))).astype(np.float32)
    return contrast


def _resized(pixels: Floats, size: tuple[int, int]) -> Floats:
    """Patches at another size, by area."""
    down, across = (_areas(have, want) for have, want in zip(pixels.shape[1:], size, strict=True))
    resized: Floats = (down @ pixels @ across.T).astype(np.float32)
    return resized


def _areas(have: int, want: int) -> Floats:
    """Weights of `have` pixels in each of `want`, shape (want, have): how much of the one lies in the other."""
    edges = np.arange(want + 1) * (have / want)
    inside = np.minimum(edges[1:, None], np.arange(1, have + 1)) - np.maximum(edges[:-1, None], np.arange(have))
    weights: Floats = (np.maximum(inside, 0.0) * (want / have)).astype(np.float32)
    return weights


def _mirrored(pixels: Floats, flip: int) -> Floats:
    """As they are (0), left for right (1), top for bottom (2), or both (3)."""
    return pixels[:, :: -1 if flip & 2 else 1, :: -1 if flip & 1 else 1]


def _unit(contrast: Floats) -> Floats:
    rows = contrast.reshape(len(contrast), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-6))
    return unit


def _blocks(pixels: Floats) -> Iterator[Floats]:
    for start in range(0, len(pixels), BLOCK):
        yield pixels[start : start + BLOCK]
