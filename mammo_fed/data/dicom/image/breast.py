"""Where the breast is in a mammogram: what lies beside it (air, view markers, labels) is no tissue, and not for its range."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["COARSE", "air_level", "breast_region", "enlarged", "is_inverted"]

# The breast is looked for on an image so much smaller.
COARSE: Final = 8
# Letters of a view marker cover less than this part of an image: above the quantile of the rest, brightness is cut off.
MARKER_QUANTILE: Final = 0.97
# So much brighter than air is tissue: of the range, and of the way to what Otsu's threshold takes for bright.
ABOVE_AIR, ABOVE_AIR_PART = 0.02, 0.25
# Air is as dark as the darkest of an image; where it is as bright as the brightest, black and white have changed places.
BRIGHT, DARK = 0.95, 0.05
AIR_OF_BORDER, AIR_OF_IMAGE, DARK_OF_BORDER = 0.3, 0.15, 0.05


def breast_region(coarse: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The largest area that is not air.

    Otsu's threshold alone would part fat from gland where a breast has much of both: from air to fat is less than from fat to
    gland. So the threshold lies near the brightness that air has, which is the most frequent of the dark ones. A few very
    bright pixels (a lead marker) do not move it, and thin lines do not join a marker to the breast.

    Args:
      coarse: in [0, 1], shape (rows, columns): every `COARSE`-th row and column of a mammogram, background dark.

    Returns:
      Same shape; nothing is set where nothing stands out.
    """
    top = max(float(np.quantile(coarse, MARKER_QUANTILE)), 1e-6)
    scaled = np.clip(coarse / np.float32(top), 0.0, 1.0)
    middle = _otsu(scaled)
    dark, edges = np.histogram(scaled[scaled <= middle], bins=64, range=(0.0, max(middle, 1e-6)))
    air = float(edges[int(np.argmax(dark))])
    tissue = scaled > air + max(ABOVE_AIR, ABOVE_AIR_PART * (middle - air))
    opened = ndimage.binary_opening(tissue)
    labelled, count = ndimage.label(opened if opened.any() else tissue)
    if not count:
        return np.zeros(coarse.shape, dtype=bool)
    largest = labelled == 1 + int(np.argmax(np.bincount(labelled.ravel())[1:]))
    # What opening took off the skin line comes back.
    region: NDArray[np.bool_] = ndimage.binary_dilation(largest) & tissue
    return region


def air_level(coarse: NDArray[np.float32], region: NDArray[np.bool_]) -> float:
    """Brightness of the background: the median outside of the breast; 0 where there is no background."""
    outside = coarse[~region]
    return float(np.median(outside)) if outside.size else 0.0


def is_inverted(coarse: NDArray[np.float32]) -> bool:
    """Whether air is bright: a smooth area at the image's border, as bright as anything, and nothing dark beside it.

    Args:
      coarse: in [0, 1], as it would be shown.
    """
    border = np.concatenate([coarse[0], coarse[-1], coarse[:, 0], coarse[:, -1]])
    if np.mean(border >= BRIGHT) < AIR_OF_BORDER or np.mean(border <= DARK) > DARK_OF_BORDER:
        return False
    return bool(np.mean(coarse >= BRIGHT) >= AIR_OF_IMAGE and np.mean(coarse <= DARK) < AIR_OF_IMAGE)


def enlarged(
    region: NDArray[np.bool_], *, shape: tuple[int, int], top: int = 0, left: int = 0, grow: int = 1
) -> NDArray[np.bool_]:
    """A coarse region at the mammogram's scale, a little larger, so that the skin line is inside.

    Args:
      region: as `breast_region` gives it.
      shape: rows and columns of the part that is wanted.
      top, left: where that part begins, in pixels of the mammogram.
      grow: coarse pixels that are added all around.
    """
    grown = ndimage.binary_dilation(region, iterations=grow) if grow else region
    rows = np.minimum(np.arange(top, top + shape[0]) // COARSE, len(region) - 1)
    columns = np.minimum(np.arange(left, left + shape[1]) // COARSE, region.shape[1] - 1)
    found: NDArray[np.bool_] = grown[np.ix_(rows, columns)]
    return found


def _otsu(values: NDArray[np.float32]) -> float:
    """Threshold that separates two classes of intensities best (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=256, range=(0.0, 1.0))
    middles = (edges[:-1] + edges[1:]) / 2
    weight, total = np.cumsum(counts), np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (total[-1] * weight / weight[-1] - total) ** 2 / (weight * (weight[-1] - weight))
    return float(middles[int(np.nanargmax(np.where(np.isfinite(between), between, -1.0)))])
