"""Where a lesion is, and the square of the mammogram that becomes its patch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mammo_fed.data.dicom.findings import Box, Outline, Skipped
from mammo_fed.errors import InvalidSetting

__all__ = ["COARSE", "Crop", "CropRule", "area_resize", "breast_box", "mask_box", "outline_box", "square_crop"]

# A part of a mask below this share of the largest is dust of the scan, not lesion.
DUST: Final = 0.01
SMALLEST_LESION: Final = 3
LARGEST_PATCH: Final = 1024
# Breasts are found on an image so much smaller.
COARSE: Final = 8


@dataclass(frozen=True, kw_only=True)
class CropRule:
    """How a lesion's surroundings become a patch.

    Attributes:
      kind: "centred"; or "paper", whose code takes the upper margin off twice, so that lesions lie below the middle.
      margin: on each side, as a part of the lesion's longer side, >= 0.
      smallest: least side of the square in pixels of the mammogram.
      side_mm: side of the square in millimetres for every lesion, or None; images without a pixel spacing are then refused.
      size: side of the patch in pixels.
    """

    kind: Literal["centred", "paper"] = "centred"
    margin: float = 0.25
    smallest: int = 128
    side_mm: float | None = None
    size: int = 128

    def __post_init__(self) -> None:
        if self.kind not in ("centred", "paper"):
            raise InvalidSetting(f"crop={self.kind} must be centred or paper")
        if not 0 <= self.margin <= 10:
            raise InvalidSetting(f"margin={self.margin} must be from 0 to 10 times the lesion's longer side")
        if not (1 <= self.smallest <= 16384 and 16 <= self.size <= LARGEST_PATCH):
            raise InvalidSetting(
                f"smallest={self.smallest} must be from 1 to 16384, size={self.size} from 16 to {LARGEST_PATCH}"
            )
        if self.side_mm is not None and not 1 <= self.side_mm <= 500:
            raise InvalidSetting(f"side_mm={self.side_mm} must be from 1 to 500 millimetres")


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A square of the mammogram: rows [top, top + side), columns [left, left + side), in pixels."""

    top: int
    left: int
    side: int


def square_crop(box: Box, *, shape: tuple[int, int], rule: CropRule, spacing: tuple[float, float] | None = None) -> Crop:
    """The square around a lesion, moved inwards where it would pass the image's border, and never larger than the image.

    Args:
      box: around the lesion.
      shape: rows and columns of the mammogram.
      rule: how.
      spacing: millimetres per pixel, down and across, where known.

    Raises:
      Skipped: If the lesion is outside the image or a speck, or millimetres are asked for and the image does not know them.
    """
    edges = (box.top, box.left, box.bottom, box.right)
    if not np.isfinite(edges).all() or max(map(abs, edges)) > 1e6:
        raise Skipped("unreadable_annotation", "the box has no finite corners")
    top, left, bottom, right = math.floor(box.top), math.floor(box.left), math.ceil(box.bottom), math.ceil(box.right)
    if top < 0 or left < 0 or bottom > shape[0] or right > shape[1]:
        raise Skipped("lesion_outside", f"the lesion reaches outside the image of {shape[0]} x {shape[1]} pixels")
    longer = max(bottom - top, right - left)
    if min(bottom - top, right - left) < SMALLEST_LESION:
        raise Skipped("lesion_too_small", f"the lesion is {bottom - top} x {right - left} pixels")
    if rule.side_mm is None:
        margin = round(rule.margin * longer)
        side = max(longer + 2 * margin, rule.smallest)
    else:
        if spacing is None:
            raise Skipped("unreadable_annotation", "millimetres are asked for, and the image has no pixel spacing")
        side = max(1, round(rule.side_mm / math.sqrt(spacing[0] * spacing[1])))
        margin = max(0, (side - longer) // 2)
    side = min(side, *shape)
    # Twice the middle, so that whole numbers stay whole.
    first_row, first_column = (top + bottom - side) // 2, (left + right - side) // 2
    if rule.kind == "paper":
        first_row -= margin
    return Crop(top=min(max(first_row, 0), shape[0] - side), left=min(max(first_column, 0), shape[1] - side), side=side)


def mask_box(mask: NDArray[Any]) -> Box:
    """The box around what a mask marks; several contours are one lesion unless they are apart.

    Apart: farther from each other than the larger is long. Specks below a hundredth of the largest contour are passed over.

    Args:
      mask: any dtype, shape (rows, columns); what is not 0 is marked.

    Raises:
      Skipped: If nothing is marked, or two lesions are.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise Skipped("no_lesion", "the mask is empty")
    inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] != 0
    labelled, count = ndimage.label(inner)
    areas = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    found = [place for place, area in zip(ndimage.find_objects(labelled), areas, strict=True) if area >= DUST * areas.max()]
    boxes = [(part[0].start, part[1].start, part[0].stop, part[1].stop) for part in found]
    largest = max(boxes, key=_longer)
    for one in boxes:
        if max(one[0] - largest[2], largest[0] - one[2], one[1] - largest[3], largest[1] - one[3]) > _longer(largest):
            raise Skipped("lesions_apart", f"the mask marks {len(boxes)} lesions that are apart")
    corners = np.array(boxes)
    top, left = corners[:, :2].min(axis=0)
    bottom, right = corners[:, 2:].max(axis=0)
    return Box(
        top=float(top + rows[0]),
        left=float(left + columns[0]),
        bottom=float(bottom + rows[0]),
        right=float(right + columns[0]),
    )


def outline_box(outline: Outline) -> Box:
    """The box around a contour.

    Raises:
      Skipped: If it has fewer than three points, or one that is no number.
    """
    points = outline.points
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise Skipped("unreadable_annotation", "a contour needs three points with finite coordinates")
    (top, left), (bottom, right) = points.min(axis=0), points.max(axis=0)
    return Box(top=float(top), left=float(left), bottom=float(bottom), right=float(right))


def breast_box(coarse: NDArray[np.float32], *, shape: tuple[int, int]) -> Box:
    """The box around the breast: the largest bright area, by Otsu's threshold.

    Args:
      coarse: float32 in [0, 1], every `COARSE`-th row and column of the mammogram, background dark.
      shape: rows and columns of the mammogram.

    Raises:
      Skipped: If nothing stands out.
    """
    labelled, count = ndimage.label(coarse > _otsu(coarse))
    if not count:
        raise Skipped("no_lesion", "no breast stands out from the background")
    largest = int(np.argmax(np.bincount(labelled.ravel())[1:]))
    rows, columns = ndimage.find_objects(labelled)[largest]
    return Box(
        top=float(rows.start * COARSE),
        left=float(columns.start * COARSE),
        bottom=float(min(rows.stop * COARSE, shape[0])),
        right=float(min(columns.stop * COARSE, shape[1])),
    )


def area_resize(patch: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """A square patch at `size` pixels: exact area averages where it shrinks, bicubic and clipped where it grows.

    Args:
      patch: float32, shape (side, side), in [0, 1].
      size: side of the result in pixels.

    Returns:
      float32, shape (size, size), in [0, 1]; the same numbers where the size is the same.
    """
    side = len(patch)
    if side == size:
        return patch
    if side < size:
        grown = Image.fromarray(patch).resize((size, size), Image.Resampling.BICUBIC)
        return np.clip(np.asarray(grown, dtype=np.float32), 0.0, 1.0)
    edges = np.linspace(0.0, side, size + 1)
    places = np.arange(side)
    shares = np.clip(np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places), 0.0, 1.0) * (size / side)
    shrunk: NDArray[np.float32] = np.clip(shares @ patch.astype(np.float64) @ shares.T, 0.0, 1.0).astype(np.float32)
    return shrunk


def _longer(box: tuple[int, int, int, int]) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def _otsu(values: NDArray[np.float32]) -> float:
    """Threshold that separates two classes of intensities best (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=256, range=(0.0, 1.0))
    middles = (edges[:-1] + edges[1:]) / 2
    weight, total = np.cumsum(counts), np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (total[-1] * weight / weight[-1] - total) ** 2 / (weight * (weight[-1] - weight))
    return float(middles[int(np.nanargmax(np.where(np.isfinite(between), between, -1.0)))])
