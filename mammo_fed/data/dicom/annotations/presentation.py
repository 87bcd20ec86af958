"""Graphics of a presentation state (PS3.3, C.10.5) that are drawn on a mammogram."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from mammo_fed.data.dicom.annotations.references import check_refers, instances, items_of
from mammo_fed.data.dicom.annotations.regions import Region, Shape, one_region
from mammo_fed.data.dicom.annotations.shapes import graphic_points, shape_of
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.headers import text_of

__all__ = ["drawn_graphic"]

Points = NDArray[np.float64]
# PS3.3, C.10.5.1.3 (compound graphics): two corners of a rectangle, and four ends of an ellipse's axes.
COMPOUND: Final = ("RECTANGLE", "ELLIPSE", "MULTILINE")


def drawn_graphic(annotation: Dataset, *, uids: frozenset[str], shape: tuple[int, int], region: str) -> Shape:
    """Where a closed graphic of a presentation state lies on a mammogram.

    Args:
      annotation: the presentation state.
      uids: of the mammogram, as `uids_of` gives them.
      shape: its rows and columns.
      region: number of the graphic among the closed ones on this mammogram, from 1, in the order of the file; or its layer, its
        tracking identifier, or the text beside it; "" where there is only one.

    Raises:
      Skipped: If no graphic on this mammogram is a region, several are, or units or a transformation are not known.
    """
    of_file = {
        uid
        for series in items_of(annotation, "ReferencedSeriesSequence")
        for uid in instances(items_of(series, "ReferencedImageSequence"))
    } | set(instances(items_of(annotation, "ReferencedImageSequence")))
    regions: list[Region] = []
    elsewhere, lines = set[str](), 0
    for group in items_of(annotation, "GraphicAnnotationSequence"):
        named = set(instances(items_of(group, "ReferencedImageSequence"))) or of_file
        if named and not named & uids:
            elsewhere |= named
            continue
        for labels, kind, points, closed in _graphics(annotation, group, uids, shape):
            found = shape_of(kind, points, closed=closed)
            if found is None:
                lines += 1
                continue
            regions.append(Region(number=len(regions) + 1, labels=labels, shapes=(found,)))
    if not regions:
        if lines:
            raise Skipped(
                "unreadable_annotation", "the graphics on this mammogram are points and open lines, which have no extent"
            )
        check_refers(elsewhere or of_file, uids)
    return one_region(regions, region)


def _graphics(
    annotation: Dataset, group: Dataset, uids: frozenset[str], shape: tuple[int, int]
) -> Iterator[tuple[tuple[str, ...], str, Points, bool]]:
    """Labels, type and points in pixels of each graphic, and whether it is known to be closed."""
    plain, compound = items_of(group, "GraphicObjectSequence"), items_of(group, "CompoundGraphicSequence")
    texts = [text for one in items_of(group, "TextObjectSequence") if (text := text_of(one, "UnformattedTextValue"))]
    shared = (text_of(group, "GraphicLayer"), *(texts if len(plain) + len(compound) == 1 else ()))
    # A compound graphic may be drawn again by plain ones of its group, for those who do not know it.
    drawn_again = {text_of(one, "GraphicGroupID") for one in plain} - {""}
    for one in plain:
        units = text_of(one, "GraphicAnnotationUnits").upper()
        kind, closed = text_of(one, "GraphicType").upper(), text_of(one, "GraphicFilled").upper() == "Y"
        yield _labels(one, shared), kind, _in_pixels(graphic_points(one), units, annotation, uids, shape), closed
    for one in compound:
        kind = text_of(one, "CompoundGraphicType").upper()
        if kind not in COMPOUND or text_of(one, "GraphicGroupID") in drawn_again:
            continue
        points = _in_pixels(graphic_points(one), text_of(one, "CompoundGraphicUnits").upper(), annotation, uids, shape)
        if kind == "RECTANGLE" and len(points) == 2:
            if text_of(one, "RotationAngle") not in ("", "0", "0.0"):
                raise Skipped("unreadable_annotation", "a rectangle of the presentation state is turned")
            (left, top), (right, bottom) = points
            points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        yield _labels(one, shared), "ELLIPSE" if kind == "ELLIPSE" else "POLYLINE", points, kind == "RECTANGLE"


def _labels(graphic: Dataset, shared: tuple[str, ...]) -> tuple[str, ...]:
    own = (text_of(graphic, "TrackingID"), text_of(graphic, "TrackingUID"))
    return tuple(label for label in (*own, *shared) if label)


def _in_pixels(points: Points, units: str, annotation: Dataset, uids: frozenset[str], shape: tuple[int, int]) -> Points:
    """Points as (column, row) of the mammogram's pixels.

    PIXEL is of the image before it is turned or flipped, and so needs nothing. DISPLAY is a part of the displayed area, after
    it was turned and flipped.
    """
    if units == "PIXEL":
        return points
    if units != "DISPLAY":
        raise Skipped("unreadable_annotation", "graphics of the presentation state are in units that are not read")
    (left, top), (right, bottom) = _displayed(annotation, uids, shape)
    across, down = points[:, 0], points[:, 1]
    turn = text_of(annotation, "ImageRotation") or "0"
    # PS3.3, C.10.6: clockwise, and the flip comes after it; so it is taken back first.
    if text_of(annotation, "ImageHorizontalFlip").upper() == "Y":
        across = 1 - across
    turned = {"0": (across, down), "90": (down, 1 - across), "180": (1 - across, 1 - down), "270": (1 - down, across)}
    if turn not in turned:
        raise Skipped("unreadable_annotation", "the presentation state turns the image by an angle that is not read")
    columns, rows = turned[turn]
    return np.column_stack([left + columns * (right - left), top + rows * (bottom - top)])


def _displayed(
    annotation: Dataset, uids: frozenset[str], shape: tuple[int, int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Upper left and lower right corner, as (column, row), of the part of the mammogram that is displayed.

    PS3.3, C.10.4: corners are pixels, counted from 1 before the image is turned; what is the first one on the display may be
    any corner of the image.
    """
    areas = items_of(annotation, "DisplayedAreaSelectionSequence")
    ours = [one for one in areas if not (named := set(instances(items_of(one, "ReferencedImageSequence")))) or named & uids]
    if len(ours) != 1:
        raise Skipped(
            "unreadable_annotation", "graphics are in parts of a displayed area, and the file has not one for this image"
        )
    corners = [list(ours[0].get(f"DisplayedArea{corner}HandCorner") or ()) for corner in ("TopLeft", "BottomRight")]
    if any(len(corner) != 2 for corner in corners):
        raise Skipped("unreadable_annotation", "graphics are in parts of a displayed area that has no corners")
    (first_column, first_row), (last_column, last_row) = ((int(part) for part in corner) for corner in corners)
    left, right = sorted((first_column, last_column))
    top, bottom = sorted((first_row, last_row))
    if not (-shape[1] <= left <= right <= 2 * shape[1] and -shape[0] <= top <= bottom <= 2 * shape[0]):
        raise Skipped("unreadable_annotation", "the displayed area of the presentation state is not around the mammogram")
    return (left - 1.0, top - 1.0), (float(right), float(bottom))
