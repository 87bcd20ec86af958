"""Text burned into pixels: labels beside the breast, in any direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["shows_text"]

# Brightness of ink, and of the darkest paper that it may lie on: a faint label is told from tissue by its black surroundings.
LEVELS: Final = ((0.6, 0.2), (0.35, 0.12), (0.18, 0.06))
# Length of a glyph in pixels, and in parts of the crop's side.
SMALLEST, LARGEST = 5.5, 0.25
# Paper around a glyph, beyond the blurred edge of its own, and the part of it that may be bright.
EDGE, PAPER, SOILED = 2, 3, 0.1
# A glyph is made of strokes: their width over its length, of which a spot has 0.64.
STROKE: Final = 0.45
# A dash is so many times longer than wide, and lies along the line: scratches and borders of film break up into dashes.
DASH, ALONG = 3.0, 0.9
# Of a line: how many glyphs, how much longer one may be than another, their distance and their way off the line in lengths.
FEWEST, ALIKE, NEAR, OFF = 3, 2.0, 2.6, 0.35
# Spots of a pixel's area, glyphs of a crop, and specks of a glyph (dots and commas, or noise): more is no text.
CROWDED, MOST_GLYPHS, SPECKS = 0.01, 1000, 1
# How much smaller a speck is than the glyph that it makes doubtful: dust is no doubt about a large label.
SPECK: Final = 6
SHIFT: Final = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class _Glyphs:
    """Spots that may be glyphs.

    Attributes:
      places: float64, shape (glyphs, 2): middle, row and column.
      lengths: float64, shape (glyphs,): along the longer axis.
      axes: float64, shape (glyphs, 2): direction of the longer axis, of length 1.
      slender: bool, shape (glyphs,): whether they are much longer than wide.
      strokes: bool, shape (glyphs,): whether they are made of strokes.
    """

    places: NDArray[np.float64]
    lengths: NDArray[np.float64]
    axes: NDArray[np.float64]
    slender: NDArray[np.bool_]
    strokes: NDArray[np.bool_]


def shows_text(intensities: NDArray[np.float32]) -> bool:
    """Whether glyphs are burned into the dark background of a crop: three or more in a line of any direction, made of strokes,
    with black around each.

    A heuristic: it finds labels beside the breast, bright and faint, also mirrored ones, and not text over tissue.

    Args:
      intensities: float32 in [0, 1], shape (rows, columns).
    """
    return any(_has_line(_glyphs(intensities, ink, paper)) for ink, paper in LEVELS)


def _glyphs(intensities: NDArray[np.float32], ink: float, paper: float) -> _Glyphs | None:
    dark = intensities < paper
    if not dark.any():
        return None
    marked = intensities > ink
    labelled, count = ndimage.label(marked, structure=np.ones((3, 3)))
    if not FEWEST <= count <= marked.size * CROWDED:
        return None
    boxes = _boxes(labelled, count)
    spans = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    small, large = spans < SMALLEST, spans > LARGEST * max(intensities.shape)
    if np.count_nonzero(~small & ~large) < FEWEST:
        return None
    clean = ~large
    clean[clean] = _clean(boxes[clean], marked, dark)
    clean &= ~_among_specks(spans, spans[clean])
    glyphs = np.flatnonzero(clean & ~small)
    return _measured(labelled, marked, glyphs) if FEWEST <= len(glyphs) <= MOST_GLYPHS else None


def _among_specks(spans: NDArray[np.int64], clean: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether spots of each length have too many smaller ones, up to `SPECK` times, for those of their length and more."""
    ordered = np.sort(clean)
    alike, specks = (np.searchsorted(ordered, spans / part) for part in (2, SPECK))
    return np.asarray(alike - specks > SPECKS * (len(ordered) - alike))


def _boxes(labelled: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Top, left, bottom, right of each label from 1."""
    found = ndimage.find_objects(labelled, count)
    return np.array([(one[0].start, one[1].start, one[0].stop, one[1].stop) for one in found], dtype=np.int64)


def _clean(boxes: NDArray[np.int64], marked: NDArray[np.bool_], dark: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether there is paper around what is in each box: neighbouring glyphs are ink too, and their edges are blurred."""
    near = marked
    for axis in (0, 1):
        near = ndimage.maximum_filter1d(near, 2 * EDGE + 1, axis=axis)
    empty = ~near
    # Two sums over all pixels above and to the left in one: of empty pixels, and of those of them that are not dark.
    sums = np.zeros((marked.shape[0] + 1, marked.shape[1] + 1), np.int64)
    np.cumsum(np.cumsum(empty + (np.int64(1) << SHIFT) * (empty & ~dark), axis=0), axis=1, out=sums[1:, 1:])
    rows, columns = marked.shape
    top, left = np.maximum(boxes[:, 0] - EDGE - PAPER, 0), np.maximum(boxes[:, 1] - EDGE - PAPER, 0)
    bottom, right = np.minimum(boxes[:, 2] + EDGE + PAPER, rows), np.minimum(boxes[:, 3] + EDGE + PAPER, columns)
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    around, soiled = inside & ((1 << SHIFT) - 1), inside >> SHIFT
    return np.asarray((around > 0) & (soiled <= SOILED * around))


def _measured(labelled: NDArray[Any], marked: NDArray[np.bool_], kept: NDArray[np.intp]) -> _Glyphs:
    """Moments of each spot, and how wide its strokes are: twice its area over the length of its border."""
    numbers = np.zeros(int(labelled.max()) + 1, np.intp)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    which = numbers[labelled]
    rows, columns = np.nonzero(which)
    which = which[rows, columns] - 1

    def total(weights: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(which, weights, minlength=len(kept)), dtype=np.float64)

    padded = np.pad(marked, 1)
    inner = (
        padded[rows, columns + 1] & padded[rows + 2, columns + 1] & padded[rows + 1, columns] & padded[rows + 1, columns + 2]
    )
    area, border = total(np.ones(len(rows))), np.maximum(total(~inner), 1)
    places = np.column_stack([total(rows), total(columns)]) / area[:, None]
    down, across = rows - places[which, 0], columns - places[which, 1]
    # A pixel is a square: it has a spread of its own.
    spread = np.array([[total(down * down), total(down * across)], [total(down * across), total(across * across)]]) / area
    values, vectors = np.linalg.eigh(spread.transpose(2, 0, 1) + np.eye(2) / 12)
    lengths, widths = np.sqrt(12 * values[:, 1]), np.sqrt(12 * values[:, 0])
    return _Glyphs(
        places=places,
        lengths=lengths,
        axes=vectors[:, :, 1],
        slender=lengths > DASH * widths,
        strokes=2 * area / border < STROKE * lengths,
    )


def _has_line(glyphs: _Glyphs | None) -> bool:
    """Whether there are three in a line, one near the next."""
    if glyphs is None:
        return False
    for middle in range(len(glyphs.places)):
        size = glyphs.lengths[middle]
        away = glyphs.places - glyphs.places[middle]
        distance = np.hypot(away[:, 0], away[:, 1])
        alike = (glyphs.lengths < ALIKE * size) & (size < ALIKE * glyphs.lengths)
        near = np.flatnonzero(alike & (distance > 0) & (distance < NEAR * np.maximum(glyphs.lengths, size)))
        if len(near) < FEWEST - 1:
            continue
        ways = away[near] / distance[near][:, None]
        # How far the middle lies off the line from one neighbour to another on the other side.
        ends = away[near][None, :, :] - away[near][:, None, :]
        crossed = away[near][:, None, 0] * ends[..., 1] - away[near][:, None, 1] * ends[..., 0]
        length = np.hypot(ends[..., 0], ends[..., 1])
        opposite = (ways @ ways.T < 0) & (np.abs(crossed) < OFF * size * length)
        for first, last in np.argwhere(np.triu(opposite)):
            three = np.array([near[first], middle, near[last]])
            way = ends[first, last] / length[first, last]
            dashes = glyphs.slender[three] & (np.abs(glyphs.axes[three] @ way) > ALONG)
            if np.count_nonzero(glyphs.strokes[three] & ~dashes) >= FEWEST - 1 and not dashes.all():
                return True
    return False
