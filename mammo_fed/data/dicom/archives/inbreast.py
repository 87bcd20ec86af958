"""INbreast: contours of masses in OsiriX XML. Its labels are no biopsies: its patches are of use for pretraining only.

`AllDICOMs/<file>_<patient>_MG_<side>_<view>_ANON.dcm` and `AllXML/<file>.xml`.

Source: Moreira et al., Academic Radiology 19(2), 2012.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from xml.parsers.expat import ExpatError

import numpy as np

from mammo_fed.data.dicom.findings import Finding, Outline, SkippedFinding, files_inside
from mammo_fed.errors import DataError

__all__ = ["findings"]

IMAGES: Final = "AllDICOMs"
CONTOURS: Final = "AllXML"
NAME: Final = re.compile(r"(?P<file>\d+)_(?P<patient>[0-9a-f]+)_MG_(?P<side>[LR])_(?P<view>CC|ML|MLO)_ANON\.dcm")
POINT: Final = re.compile(r"\(\s*([-+.\deE]+)\s*,\s*([-+.\deE]+)\s*\)")
MASS: Final = "mass"
LARGEST_XML: Final = 10 << 20
# Entities are how a small XML file becomes a huge one; OsiriX writes none.
ENTITY: Final = b"<!ENTITY"


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Contours named "Mass" of all mammograms, by file name.

    Raises:
      DataError: If the folders are not there.
    """
    if not (root / IMAGES).is_dir() or not (root / CONTOURS).is_dir():
        raise DataError(f"{root} holds no {IMAGES} and {CONTOURS}; give the folder of INbreast that does")
    for path in files_inside(root, (root / IMAGES).glob("*.dcm")):
        named = NAME.fullmatch(path.name)
        if named is None:
            yield SkippedFinding(name=path.name, reason="unreadable_annotation", detail=f"{path} is not named as in INbreast")
            continue
        contours = root / CONTOURS / f"{named['file']}.xml"
        # A mammogram without a contour is a normal one.
        if files_inside(root, [contours]):
            yield from _masses(path, named, contours)


def _masses(image: Path, named: re.Match[str], contours: Path) -> Iterator[Finding | SkippedFinding]:
    try:
        regions = _regions(contours)
    except (OSError, ValueError, ExpatError, plistlib.InvalidFileException) as error:
        yield SkippedFinding(
            name=contours.name, reason="unreadable_annotation", detail=f"{contours} cannot be read ({type(error).__name__})"
        )
        return
    for number, region in enumerate(regions):
        if str(region.get("Name", "")).strip().lower() != MASS:
            continue
        yield Finding(
            image=image,
            lesion=Outline(points=_points(region)),
            patient=named["patient"],
            name=f"{named['file']} {number}",
            label=None,
            split="train",
            view="CC" if named["view"] == "CC" else "MLO",
        )


def _regions(contours: Path) -> list[Mapping[str, Any]]:
    if contours.stat().st_size > LARGEST_XML:
        raise ValueError("too large")
    content = contours.read_bytes()
    if ENTITY in content:
        raise ValueError("entities")
    try:
        found = plistlib.loads(content, fmt=plistlib.FMT_XML)["Images"][0]["ROIs"]
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("not OsiriX") from error
    return [region for region in found if isinstance(region, Mapping)] if isinstance(found, list) else []


def _points(region: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Corners as (row, column); OsiriX writes "(x, y)". What is no pair of numbers is a point that is no number."""
    listed = region.get("Point_px")
    pairs = [POINT.fullmatch(str(point).strip()) for point in listed] if isinstance(listed, list) else []
    points = []
    for pair in pairs:
        try:
            points.append((float(pair[2]), float(pair[1])) if pair else (np.nan, np.nan))
        except ValueError:
            points.append((np.nan, np.nan))
    return np.array(points, dtype=np.float64).reshape(-1, 2)
