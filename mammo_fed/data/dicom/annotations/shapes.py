"""Graphics of DICOM as shapes in pixels: points are (column, row), and the first pixel covers [0, 1) of both.

PS3.3, C.10.5 and C.18.6.1.1: the upper left corner of the upper left pixel is 0.0\\0.0, the lower right corner of the lower
right pixel is columns\\rows. So nothing is to be added; only displayed areas count pixels from 1 (C.10.4).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from mammo_fed.data.dicom.annotations.regions import Shape
from mammo_fed.data.dicom.findings import Box, Outline, Skipped

__all__ = ["graphic_points", "shape_of"]

MOST_POINTS: Final = 100_000
# Of a pixel: two points that are so near are one that was rounded.
SAME: Final = 0.01
# Of an interpolated curve, between two given points.
STEPS: Final = 16


def graphic_points(item: Dataset, *, dimensions: int = 2) -> NDArray[np.float64]:
    """Points of `GraphicData` or of a contour's `ContourData`, shape (points, dimensions).

    Raises:
      Skipped: If there are too many, or they are no whole number of finite points.
    """
    value: Any = item.get("GraphicData" if dimensions == 2 else "ContourData")
    numbers = [] if value is None else [value] if isinstance(value, (int, float, str)) else list(value)
    if len(numbers) > MOST_POINTS * dimensions:
        raise Skipped("too_large", f"a contour of the annotation has more than {MOST_POINTS} points")
    try:
        values = np.array([float(number) for number in numbers], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise Skipped("unreadable_annotation", "a contour of the annotation has coordinates that are no numbers") from error
    if len(values) % dimensions or not np.isfinite(values).all():
        raise Skipped("unreadable_annotation", "a contour of the annotation has coordinates that do not make points")
    return values.reshape(-1, dimensions)


def shape_of(kind: str, points: NDArray[np.float64], *, closed: bool) -> Shape | None:
    """The region inside a graphic; None where it has none: a point, a line, an open curve.

    PS3.3, C.10.5.1.2 and C.18.6.1.2: a circle is its centre and a point on it; an ellipse is the ends of its major axis, then
    those of its minor axis; a polyline is closed where its last point is its first.

    Args:
      kind: the graphic's type.
      points: float64, shape (points, 2), as (column, row) in pixels.
      closed: whether the graphic is known to be a region, such as an outline or one that is filled, even if its first point is
        not repeated.
    """
    if kind == "CIRCLE" and len(points) == 2:
        radius = math.dist(points[0], points[1])
        return _around(points[0], radius, radius) if radius > 0 else None
    if kind == "ELLIPSE" and len(points) == 4:
        # The extent of an ellipse with half axes a and b is the length of (a, b) in each direction.
        half = np.hypot(points[1] - points[0], points[3] - points[2]) / 2
        return _around(points[:2].mean(axis=0), half[0], half[1]) if half.min() > 0 else None
    if kind == "MULTIPOINT" and closed:
        return _outline(points)
    if kind in ("POLYLINE", "INTERPOLATED") and len(points) > 2 and (closed or np.abs(points[0] - points[-1]).max() < SAME):
        return _outline(_curve(points) if kind == "INTERPOLATED" else points)
    return None


def _around(middle: NDArray[np.float64], across: float, down: float) -> Box:
    column, row = float(middle[0]), float(middle[1])
    return Box(top=row - down, left=column - across, bottom=row + down, right=column + across)


def _outline(points: NDArray[np.float64]) -> Outline | None:
    """At least three points that differ."""
    return Outline(points=points[:, ::-1].copy()) if len(np.unique(points, axis=0)) > 2 else None


def _curve(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth closed curve through points (the standard leaves open which): between them it reaches farther than they do."""
    # Only curves need it, and it takes a while to import.
    from scipy.interpolate import CubicSpline

    ring = np.vstack([points, points[:1]])
    ring = ring[np.r_[True, (np.diff(ring, axis=0) != 0).any(axis=1)]]
    if len(ring) < 4:
        return points
    along = np.r_[0.0, np.cumsum(np.hypot(*np.diff(ring, axis=0).T))]
    fine = np.interp(np.arange(STEPS * (len(ring) - 1)) / STEPS, np.arange(len(ring)), along)
    curve: NDArray[np.float64] = CubicSpline(along, ring, bc_type="periodic")(fine)
    return curve
