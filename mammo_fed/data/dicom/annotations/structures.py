"""Contours of an RT Structure Set (PS3.3, C.8.8.6) on a mammogram: millimetres become pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from mammo_fed.data.dicom.annotations.references import check_refers, instances, items_of
from mammo_fed.data.dicom.annotations.regions import Named, Shape, chosen, joined
from mammo_fed.data.dicom.annotations.shapes import graphic_points, shape_of
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.headers import text_of

__all__ = ["contoured"]

# How far a contour may lie from the plane of the image, and by how much two pixel spacings of one file may differ.
OFF_PLANE_MM: Final = 0.5
ALIKE: Final = 1e-3
# How far the two directions of an image may be from perpendicular, and from length 1.
SKEW: Final = 1e-2
# "CLOSEDPLANAR_XOR" is for contours with holes, whose extent is the same.
CLOSED: Final = ("CLOSED_PLANAR", "CLOSEDPLANAR", "CLOSED_PLANAR_XOR", "CLOSEDPLANAR_XOR", "")


@dataclass(frozen=True, kw_only=True)
class _Structure(Named):
    contours: tuple[Dataset, ...]


def contoured(annotation: Dataset, *, image: Dataset, uids: frozenset[str], region: str) -> Shape:
    """Where a structure lies on a mammogram.

    Args:
      annotation: the structure set.
      image: the mammogram's header.
      uids: of the mammogram, as `uids_of` gives them.
      region: number or name of the structure; "" where only one is on this mammogram.

    Raises:
      Skipped: If no contour is of this mammogram, several structures are to choose from, or millimetres cannot become pixels.
    """
    names = _names(annotation)
    of_file, found, elsewhere = _referred(annotation), list[_Structure](), set[str]()
    for place, structure in enumerate(items_of(annotation, "ROIContourSequence"), start=1):
        number = text_of(structure, "ReferencedROINumber")
        labels, kind = names.get(number, ((), ""))
        ours = []
        for contour in items_of(structure, "ContourSequence"):
            named = set(instances(items_of(contour, "ContourImageSequence"))) or of_file
            if named and not named & uids:
                elsewhere |= named
            else:
                ours.append(contour)
        # What is around the patient is no lesion (PS3.3, C.8.8.8).
        if ours and kind != "EXTERNAL":
            known = int(number) if number.isdecimal() else place
            found.append(_Structure(number=known, labels=labels, contours=tuple(ours)))
    if not found:
        check_refers(elsewhere, uids)
        raise Skipped("no_lesion", "the structure set has no contour of a lesion")
    if not region.strip() and len(found) > 1:
        raise Skipped("several_regions", f"{len(found)} structures are on this mammogram, and none is chosen")
    one = chosen(found, region) if region.strip() else found[0]
    return joined(_shapes(one.contours, _Pixels(image)))


def _names(annotation: Dataset) -> dict[str, tuple[tuple[str, ...], str]]:
    """Labels of each structure, and what it is interpreted as, by its number."""
    names: dict[str, tuple[tuple[str, ...], str]] = {}
    for one in items_of(annotation, "StructureSetROISequence"):
        names[text_of(one, "ROINumber")] = (tuple(filter(None, [text_of(one, "ROIName")])), "")
    for one in items_of(annotation, "RTROIObservationsSequence"):
        number = text_of(one, "ReferencedROINumber")
        labels = names.get(number, ((), ""))[0]
        label = text_of(one, "ROIObservationLabel")
        names[number] = (
            (*labels, label) if label and label not in labels else labels,
            text_of(one, "RTROIInterpretedType").upper(),
        )
    return names


def _referred(annotation: Dataset) -> set[str]:
    """Images of the whole structure set, for contours that name none."""
    return {
        uid
        for frame in items_of(annotation, "ReferencedFrameOfReferenceSequence")
        for study in items_of(frame, "RTReferencedStudySequence")
        for series in items_of(study, "RTReferencedSeriesSequence")
        for uid in instances(items_of(series, "ContourImageSequence"))
    }


def _shapes(contours: Sequence[Dataset], pixels: _Pixels) -> tuple[Shape, ...]:
    closed = [one for one in contours if text_of(one, "ContourGeometricType").upper() in CLOSED]
    found = (shape_of("POLYLINE", pixels.of(graphic_points(one, dimensions=3)), closed=True) for one in closed)
    return tuple(shape for shape in found if shape is not None)


class _Pixels:
    """From millimetres to pixels.

    With Image Position and Image Orientation by PS3.3, C.7.6.2.1.1. A projection image has neither, and the standard gives no
    rule: millimetres are taken to count from the middle of its first pixel along its rows and columns, with z = 0, as programs
    do that give an image without a place an origin of 0. Other places than z = 0 are another, unknown, convention.
    """

    def __init__(self, image: Dataset) -> None:
        across, down = _numbers(image, "ImageOrientationPatient", 6), _numbers(image, "ImagePositionPatient", 3)
        self._placed = across is not None and down is not None
        self._origin = down if self._placed and down is not None else np.zeros(3)
        cosines = across if self._placed and across is not None else np.array([1.0, 0, 0, 0, 1, 0])
        self._along, self._downwards = cosines[:3], cosines[3:]
        axes = np.array([self._along, self._downwards])
        if np.abs(axes @ axes.T - np.eye(2)).max() > SKEW:
            raise Skipped(
                "unreadable_annotation", "the mammogram's orientation in space is none, so that contours have no place"
            )
        self._normal = np.cross(self._along, self._downwards)
        self._spacing = self._spacing_of(image)

    def of(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points in millimetres, shape (points, 3), as (column, row), shape (points, 2)."""
        moved = points - self._origin
        if len(points) and np.abs(moved @ self._normal).max() > OFF_PLANE_MM:
            reason = (
                "not in the plane of the mammogram"
                if self._placed
                else "not at z = 0, and a projection image has no place in space"
            )
            raise Skipped("unreadable_annotation", f"the contour is {reason}")
        down, across = self._spacing
        # The origin is the middle of the first pixel.
        return np.column_stack([moved @ self._along / across, moved @ self._downwards / down]) + 0.5

    def _spacing_of(self, image: Dataset) -> tuple[float, float]:
        known = [one for name in ("PixelSpacing", "ImagerPixelSpacing") if (one := _numbers(image, name, 2)) is not None]
        known = [one for one in known if (one > 0).all()]
        if not known:
            raise Skipped("unreadable_annotation", "contours are in millimetres, and the mammogram has no pixel spacing")
        if not self._placed and any(not math.isclose(a, b, rel_tol=ALIKE) for a, b in zip(known[0], known[-1], strict=True)):
            raise Skipped(
                "unreadable_annotation", "contours are in millimetres, and the mammogram has two pixel spacings that differ"
            )
        return float(known[0][0]), float(known[0][1])


def _numbers(image: Dataset, name: str, count: int) -> NDArray[np.float64] | None:
    value: Any = image.get(name)
    try:
        numbers = np.array([float(part) for part in value], dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
