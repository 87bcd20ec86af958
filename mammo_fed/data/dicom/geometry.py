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
from mammo_fed.data.dicom.image.breast import COARSE
from mammo_fed.errors import InvalidSetting

__all__ = ["Crop", "CropRule", "area_resize", "breast_box", "box_in_image", "mask_box", "outline_box", "square_crop"]

# A part of a mask below this share of the largest is dust of the scan, not lesion.
DUST: Final = 0.01
SMALLEST_LESION: Final = 3
LARGEST_PATCH: Final = 1024
# Contours that are drawn along the border of an image pass it by a pixel or two.
OUTSIDE: Final = 2.0
# Half the width of what is too thin to be a part of a breast, at every `COARSE`-th row and column.
STRIP: Final = 4
# Lines of one pixel go on in corners.
EIGHT: Final = np.ones((3, 3), dtype=bool)
# Height over width of a pixel above which it is not square.
SQUARE: Final = 1.02


@dataclass(frozen=True, kw_only=True)
class CropRule:
    """How a lesion's surroundings become a patch.

    Attributes:
      kind: "centred"; or "paper", whose code takes the upper margin off twice, so that lesions lie below the middle.
      margin: on each side, as a part of the lesion's longer side, >= 0.
      smallest: least side of the square in pixels of the mammogram.
      side_mm: side of the square in millimetres for every lesion, or None; images whose pixel spacing in the breast is not
        known, or that are smaller, are then refused.
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
    top, left, bottom, right = box_in_image(box, shape=shape)
    longer = max(bottom - top, right - left)
    if rule.side_mm is None:
        margin = round(rule.margin * longer)
        side = max(longer + 2 * margin, rule.smallest)
    else:
        if spacing is None:
            raise Skipped(
                "unknown_spacing", "millimetres are asked for, and the image does not say its pixel spacing in the breast"
            )
        if max(spacing) > SQUARE * min(spacing):
            raise Skipped("unknown_spacing", "the image's pixels are not square: a square of them is none of the breast")
        side = max(1, round(rule.side_mm / math.sqrt(spacing[0] * spacing[1])))
        if side > min(shape):
            raise Skipped("unknown_spacing", f"{rule.side_mm:g} mm are {side} pixels, more than the image has")
        margin = max(0, (side - longer) // 2)
    side = min(side, *shape)
    # Twice the middle, so that whole numbers stay whole.
    first_row, first_column = (top + bottom - side) // 2, (left + right - side) // 2
    if rule.kind == "paper":
        first_row -= margin
    return Crop(top=min(max(first_row, 0), shape[0] - side), left=min(max(first_column, 0), shape[1] - side), side=side)


def box_in_image(box: Box, *, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Rows and columns [top, bottom), [left, right) of the mammogram: scaled from where the box was drawn, rounded outwards.

    Raises:
      Skipped: If the lesion is outside the image, a speck, or was drawn on an image of another aspect.
    """
    edges = (box.top, box.left, box.bottom, box.right)
    if not np.isfinite(edges).all() or max(map(abs, edges)) > 1e6:
        raise Skipped("unreadable_annotation", "the box has no finite corners")
    down, across = _scale(box.drawn_on, shape)
    top, left, bottom, right = box.top * down, box.left * across, box.bottom * down, box.right * across
    outside = OUTSIDE * max(1.0, down)
    if min(top, left) < -outside or bottom > shape[0] + outside or right > shape[1] + outside:
        raise Skipped("lesion_outside", f"the lesion reaches outside the image of {shape[0]} x {shape[1]} pixels")
    found = (max(0, _floor(top)), max(0, _floor(left)), min(shape[0], _ceil(bottom)), min(shape[1], _ceil(right)))
    if min(found[2] - found[0], found[3] - found[1]) < SMALLEST_LESION:
        raise Skipped("lesion_too_small", f"the lesion is {found[2] - found[0]} x {found[3] - found[1]} pixels")
    return found


def _scale(drawn_on: tuple[int, int] | None, shape: tuple[int, int]) -> tuple[float, float]:
    """Pixels of the mammogram for one of the image that something was drawn on, down and across."""
    if drawn_on is None:
        return 1.0, 1.0
    if min(drawn_on) < 1:
        raise Skipped("unreadable_annotation", f"drawn on an image of {drawn_on[0]} x {drawn_on[1]} pixels: there is none")
    down, across = shape[0] / drawn_on[0], shape[1] / drawn_on[1]
    # Rounded sizes of small copies differ by a pixel; another aspect is a crop, a rotation or another image.
    if abs(down / across - 1) > max(0.01, 1.5 / min(drawn_on)):
        raise Skipped(
            "mask_mismatch", f"drawn on {drawn_on[0]} x {drawn_on[1]} pixels, the mammogram has {shape[0]} x {shape[1]}"
        )
    return down, across


def _floor(edge: float) -> int:
    """Down to a whole pixel; what rounding of a scale has added is nothing."""
    return math.floor(edge + 1e-6)


def _ceil(edge: float) -> int:
    return math.ceil(edge - 1e-6)


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
    labelled, count = ndimage.label(inner, structure=EIGHT)
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
    return Box(top=float(top), left=float(left), bottom=float(bottom), right=float(right), drawn_on=outline.drawn_on)


def breast_box(region: NDArray[np.bool_], *, shape: tuple[int, int]) -> Box:
    """The box around the breast.

    Args:
      region: as `breast_region` finds it, at every `COARSE`-th row and column of the mammogram.
      shape: rows and columns of the mammogram.

    Raises:
      Skipped: If nothing stands out.
    """
    # A film's edge is a strip of grey along the whole border.
    opened = ndimage.binary_opening(region, iterations=STRIP)
    wide = opened if opened.any() else region
    rows, columns = np.flatnonzero(wide.any(axis=1)), np.flatnonzero(wide.any(axis=0))
    if not len(rows):
        raise Skipped("no_lesion", "no breast stands out from the background")
    return Box(
        top=float(rows[0] * COARSE),
        left=float(columns[0] * COARSE),
        bottom=float(min((rows[-1] + 1) * COARSE, shape[0])),
        right=float(min((columns[-1] + 1) * COARSE, shape[1])),
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
