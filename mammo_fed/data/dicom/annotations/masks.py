"""Images that mark a lesion, as people draw and convert them: inverted, with soft edges, in a frame, or of the whole breast."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mammo_fed.data.dicom.findings import Skipped

__all__ = ["distinct_values", "lesion_in_mask", "looks_like_a_mask"]

# Part of the range within which a value is black or white, and of pixels that must be.
NEAR, MOST = 0.1, 0.98
# Values that are labels rather than shades: so few, and so large a part of what is marked each.
LABELS, LABEL_PART = 16, 0.02
# A part below this share of the largest is dust of the scan, not lesion.
DUST: Final = 0.01
# A frame is thin; a lesion is no half of the image.
FRAME_PART, LARGEST_PART = 0.1, 0.5
# Overlap (of intersection and union) with the breast above which a mask is the breast's.
BREAST_OVERLAP: Final = 0.7
# Lines of one pixel go on in corners.
EIGHT: Final = np.ones((3, 3), dtype=bool)


def looks_like_a_mask(pixels: NDArray[Any]) -> bool:
    """Whether nearly all pixels are one of two values, or a few labels on a background; a crop or a mammogram is not.

    Args:
      pixels: samples of an image, shape (rows, columns).
    """
    low, high = _ends(pixels)
    if low == high:
        return False
    ends = np.count_nonzero(pixels <= low + NEAR * (high - low)) + np.count_nonzero(pixels >= high - NEAR * (high - low))
    if ends >= MOST * pixels.size:
        return True
    return distinct_values(pixels) <= LABELS


def distinct_values(pixels: NDArray[Any]) -> int:
    """How many values an image of 8 or 16 bits has."""
    return int(np.count_nonzero(np.bincount(pixels.view(f"u{pixels.dtype.itemsize}").ravel())))


def lesion_in_mask(pixels: NDArray[Any], *, inverted: bool, breast: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """What a mask marks.

    Args:
      pixels: samples of a mask, shape (rows, columns).
      inverted: MONOCHROME1: low values are bright.
      breast: where the mammogram shows the breast, on any coarser grid, or None.

    Returns:
      bool, same shape.

    Raises:
      Skipped: If it marks several labelled regions, the whole breast or most of the image, or nothing.
    """
    low, high = _ends(pixels)
    if low == high:
        raise Skipped("no_lesion", "the mask is empty")
    if distinct_values(pixels) == 2:
        marked: NDArray[np.bool_] = pixels == low if inverted else pixels != low
    else:
        values = (high - pixels.astype(np.float64) if inverted else pixels.astype(np.float64) - low) / (high - low)
        _check_labels(values)
        marked = values > 0.5
    if _reaches_all_borders(marked):
        marked = _without_frame(marked)
    box = _box_size(marked)
    if box > LARGEST_PART * marked.size:
        marked = _without_dust(marked)
        box = _box_size(marked)
    if not box:
        raise Skipped("no_lesion", "the mask is empty")
    if box > LARGEST_PART * marked.size or (breast is not None and _overlap(marked, breast) > BREAST_OVERLAP):
        raise Skipped("unclear_mask", "the mask marks the breast or most of the image, not a lesion")
    return marked


def _ends(pixels: NDArray[Any]) -> tuple[float, float]:
    return float(pixels.min()), float(pixels.max())


def _check_labels(values: NDArray[np.float64]) -> None:
    """Refuse several lesions in one mask, each with a value of its own: shades belong to an edge, and labels stand alone."""
    between = (values > NEAR) & (values < 1 - NEAR)
    if not between.any():
        return
    support = values > NEAR
    if support.mean() > LARGEST_PART:
        # Of an inverted mask the lesion is what is dark.
        support = values < 1 - NEAR
        values = 1 - values
    labelled, count = ndimage.label(support, structure=EIGHT)
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    brightest = ndimage.maximum(values, labelled, np.arange(1, count + 1))
    alone = (np.asarray(brightest) < 1 - NEAR) & (sizes >= DUST * sizes.max())
    shades, counts = np.unique(np.round(values[support], 6), return_counts=True)
    flat = len(shades) <= LABELS and np.count_nonzero(counts >= LABEL_PART * counts.sum()) > 1 and _flat_inside(values, support)
    if alone.any() or flat:
        raise Skipped("several_regions", "the mask has more values than two: of several lesions each has its own")


def _flat_inside(values: NDArray[np.float64], support: NDArray[np.bool_]) -> bool:
    """Whether a shade fills areas, not only edges."""
    between = support & (values < 1 - NEAR)
    return bool(ndimage.binary_erosion(between, iterations=3).any())


def _reaches_all_borders(marked: NDArray[np.bool_]) -> bool:
    return bool(marked[0].any() and marked[-1].any() and marked[:, 0].any() and marked[:, -1].any())


def _without_frame(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mark that reaches all borders: its complement where that is the smaller part, or what is inside of a thin frame."""
    rest = ~marked
    if marked.mean() > LARGEST_PART and not _reaches_all_borders(rest):
        return rest
    labelled, count = ndimage.label(marked, structure=EIGHT)
    border = np.unique(np.concatenate([labelled[0], labelled[-1], labelled[:, 0], labelled[:, -1]]))
    frame = np.isin(labelled, border[border > 0])
    if count > len(border[border > 0]) and frame.mean() < FRAME_PART:
        inside: NDArray[np.bool_] = marked & ~frame
        return inside
    raise Skipped("unclear_mask", "what the mask marks reaches all four borders of the image")


def _box_size(marked: NDArray[np.bool_]) -> int:
    """Pixels of the box around all that is marked; 0 where nothing is."""
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    return int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)) if len(rows) else 0


def _without_dust(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without specks, which a scan leaves anywhere."""
    labelled, count = ndimage.label(marked, structure=EIGHT)
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes >= max(1, DUST * sizes.max()))[labelled]
    return kept


def _overlap(marked: NDArray[np.bool_], breast: NDArray[np.bool_]) -> float:
    """Intersection over union, on the breast's grid."""
    rows = np.minimum(np.arange(len(breast)) * len(marked) // len(breast), len(marked) - 1)
    columns = np.minimum(np.arange(breast.shape[1]) * marked.shape[1] // breast.shape[1], marked.shape[1] - 1)
    coarse = marked[np.ix_(rows, columns)]
    union = np.count_nonzero(coarse | breast)
    return np.count_nonzero(coarse & breast) / union if union else 0.0
