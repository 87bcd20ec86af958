"""What generators leave in their images: a checkerboard, missing detail, and pixels that wrapped around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import DataError

__all__ = ["Artefacts", "artefacts", "checkerboard", "radial_power", "wrapped_share"]

# A pixel that differs from the median of its eight neighbours by more than this share of the range has wrapped around.
WRAPPED: Final = 0.7
LEAST_SIDE: Final = 16


@dataclass(frozen=True, kw_only=True)
class Artefacts:
    """Attributes:
    checkerboard_half, checkerboard_quarter: power at the frequencies N/2 and N/4 of the axes, over that of the frequencies
      around them; about 1 where there is no checkerboard.
    fine_detail: power in the finer half of the frequencies, as a share of all but the mean.
    wrapped: share of pixels that jump across the range.
    """

    checkerboard_half: float
    checkerboard_quarter: float
    fine_detail: float
    wrapped: float


def artefacts(pixels: NDArray[np.float32]) -> Artefacts:
    """Measure images of shape (images, side, side) in [0, 1].

    Raises:
      DataError: If the side is below 16 pixels.
    """
    power = _power(pixels)
    radial = _radial(power)
    return Artefacts(
        checkerboard_half=_peak(power, divisor=2),
        checkerboard_quarter=_peak(power, divisor=4),
        fine_detail=float(radial[1][len(radial[1]) // 2 :].sum() / radial[1][1:].sum()),
        wrapped=wrapped_share(pixels),
    )


def radial_power(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean power by whole distance from the mean, in cycles per image: shape (side / 2 + 1,)."""
    return _radial(_power(pixels))[0]


def checkerboard(pixels: NDArray[np.float32]) -> tuple[float, float]:
    """Power at N/2 and at N/4 over that around them."""
    power = _power(pixels)
    return _peak(power, divisor=2), _peak(power, divisor=4)


def wrapped_share(pixels: NDArray[np.float32]) -> float:
    """Share of inner pixels that differ from the median of their neighbours by more than .7 of the range.

    Values beyond the range that are cast to 8 bits without clipping wrap around: black specks in white, and white in black.
    """
    around = np.stack([pixels[:, 1 + i : pixels.shape[1] - 1 + i, 1 + j : pixels.shape[2] - 1 + j] for i, j in _AROUND])
    return float((np.abs(pixels[:, 1:-1, 1:-1] - np.median(around, axis=0)) > WRAPPED).mean())


_AROUND: Final = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


def _power(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean power spectrum with frequency 0 first, shape (side, side); windowed, as the images' edges do not meet."""
    side = pixels.shape[-1]
    if pixels.ndim != 3 or pixels.shape[1] != side or side < LEAST_SIDE:
        raise DataError(f"images of shape {pixels.shape} must be square, {LEAST_SIDE} pixels a side at least")
    window = np.hanning(side)
    flat = (pixels - pixels.mean(axis=(1, 2), keepdims=True)) * np.outer(window, window)
    power: NDArray[np.float64] = (np.abs(np.fft.fft2(flat)) ** 2).mean(axis=0)
    return power


def _radial(power: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and total power by distance from frequency 0, up to half the side."""
    side = len(power)
    steps = np.minimum(np.arange(side), side - np.arange(side))
    distance = np.round(np.hypot(steps[:, None], steps[None])).astype(int)
    kept = distance <= side // 2
    total = np.bincount(distance[kept], power[kept]).astype(np.float64)
    return total / np.bincount(distance[kept]), total


def _peak(power: NDArray[np.float64], *, divisor: int) -> float:
    """Power at side / divisor along both axes and the diagonal, over the median of that within three steps around."""
    side = len(power)
    place = side // divisor
    ratios = []
    for row, column in ((place, 0), (0, place), (place, place)):
        rows, columns = (np.arange(at - 3, at + 4) % side for at in (row, column))
        around = power[np.ix_(rows, columns)].copy()
        around[3, 3] = np.nan
        ratios.append(power[row, column] / np.nanmedian(around))
    return float(np.max(ratios))
