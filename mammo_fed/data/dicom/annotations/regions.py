"""Regions of an annotation, the choice of one, and several contours of one lesion."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np

from mammo_fed.data.dicom.findings import Box, Outline, Skipped

__all__ = ["Named", "Region", "Shape", "chosen", "corners_of", "joined", "one_region"]

Shape: TypeAlias = Box | Outline
# A contour whose box has a smaller part of the largest's area is a slip of the pen.
SLIP: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a region can be asked for by: its number, and its labels."""

    number: int
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Region(Named):
    """A region of a mammogram, drawn by shapes.

    Attributes:
      shapes: its contours on this mammogram; none where it has no extent, such as a point.
      kind: "mass"; "other" where it says to be a finding of another kind; "unsaid"; "hidden" where it is not meant to be shown.
    """

    shapes: tuple[Shape, ...]
    kind: Literal["mass", "other", "unsaid", "hidden"] = "unsaid"


Any_ = TypeVar("Any_", bound=Named)


def chosen(named: Sequence[Any_], region: str) -> Any_:
    """The one that is asked for, by its number or a label; case and runs of blanks do not count.

    Raises:
      Skipped: If none is, or several are.
    """
    wanted, number = _plain(region), None
    # A spreadsheet may have made 2.0 of a 2.
    with contextlib.suppress(ValueError, OverflowError):
        number = int(float(wanted)) if float(wanted).is_integer() else None
    found = [one for one in named if one.number == number or wanted in map(_plain, one.labels)]
    if len(found) > 1:
        raise Skipped("several_regions", f"{len(found)} regions of the annotation are called by the name that is asked for")
    if not found:
        raise Skipped("no_lesion", f"none of the {len(named)} regions on this mammogram has the name that is asked for")
    return found[0]


def one_region(regions: Sequence[Region], region: str) -> Shape:
    """Where the region is that is asked for, or the only one.

    Raises:
      Skipped: If there is none, or several to choose from, or it has no extent or is no mass.
    """
    if region.strip():
        one = chosen(regions, region)
        if one.kind == "other":
            raise Skipped("other_finding", "the region says to be a finding of another kind than a mass")
        return joined(one.shapes)
    if not regions:
        raise Skipped("no_lesion", "the annotation marks nothing on this mammogram")
    masses = [one for one in regions if one.kind in ("mass", "unsaid")]
    if not masses:
        hidden = all(one.kind == "hidden" for one in regions)
        raise Skipped("no_lesion" if hidden else "other_finding", "no region of the annotation is a mass that is to be shown")
    drawn = [one for one in masses if one.shapes] or masses
    if len(drawn) > 1:
        raise Skipped("several_regions", f"the annotation marks {len(drawn)} regions on this mammogram, and none is chosen")
    return joined(drawn[0].shapes)


def joined(shapes: Sequence[Shape]) -> Shape:
    """Contours of one lesion as one; apart, as in a mask, where they lie farther from each other than the largest is long.

    Raises:
      Skipped: If there is none, or they are apart.
    """
    if not shapes:
        raise Skipped("unreadable_annotation", "the region has no closed contour: a point or a line has no extent")
    if len(shapes) == 1:
        return shapes[0]
    boxes = np.array([corners_of(shape) for shape in shapes]).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    boxes = boxes[areas >= SLIP * areas.max()]
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    largest = boxes[int(np.argmax(longer))]
    gaps = np.maximum(boxes[:, :2] - largest[2:], largest[:2] - boxes[:, 2:]).max(axis=1)
    if gaps.max() > longer.max():
        raise Skipped("lesions_apart", f"the region has {len(boxes)} contours that are apart")
    (top, left), (bottom, right) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    return Box(top=float(top), left=float(left), bottom=float(bottom), right=float(right))


def corners_of(shape: Shape) -> tuple[tuple[float, float], tuple[float, float]]:
    """The box around a shape: (top, left), (bottom, right)."""
    if isinstance(shape, Box):
        return (shape.top, shape.left), (shape.bottom, shape.right)
    (top, left), (bottom, right) = shape.points.min(axis=0), shape.points.max(axis=0)
    return (float(top), float(left)), (float(bottom), float(right))


def _plain(label: str) -> str:
    return " ".join(label.split()).casefold()
