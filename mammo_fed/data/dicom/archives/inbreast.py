"""INbreast: contours of masses in OsiriX XML. Its labels are no biopsies: its patches are of use for pretraining only.

`AllDICOMs/<file>_<patient>_MG_<side>_<view>_ANON.dcm` and `AllXML/<file>.xml`. The table `INbreast.csv` gives BI-RADS, which is
no biopsy, and is not read. Regions named as calcifications, clusters or points are passed over; masses are findings, and other
regions (spiculated ones, asymmetries, distortions) are counted.

Source: Moreira et al., Academic Radiology 19(2), 2012.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.dicom.archives.places import dicom_files, distinct, folders_named, walk
from mammo_fed.data.dicom.archives.saved_tables import Repeats
from mammo_fed.data.dicom.findings import Finding, Outline, SkippedFinding, files_inside
from mammo_fed.errors import DataError

__all__ = ["findings"]

IMAGES: Final = "AllDICOMs"
CONTOURS: Final = "AllXML"
# The release writes ML for the oblique view; it has a caudo-cranial one (FB) too.
VIEWS: Final[Mapping[str, str]] = {"CC": "CC", "ML": "MLO", "MLO": "MLO"}
NAME: Final = re.compile(r"(?P<file>\d+)_(?P<patient>[0-9a-f]+)_MG_(?P<side>[LR])_(?P<view>[A-Z]+)_ANON(\.\w+)?", re.IGNORECASE)
XML: Final = re.compile(r"(?P<file>\d+)\.xml", re.IGNORECASE)
NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
POINT: Final = re.compile(rf"\(\s*({NUMBER})\s*[,;]\s*({NUMBER})\s*\)", re.ASCII)
# As a system writes it whose decimals have commas: "(10,5, 20,5)".
COMMAS: Final = re.compile(r"\(\s*([-+]?\d+),(\d+)\s*[,;]\s*([-+]?\d+),(\d+)\s*\)", re.ASCII)
MASS: Final = re.compile(r"mass(es)?(?![a-z]).*", re.IGNORECASE | re.DOTALL)
PASSED_OVER: Final = re.compile(r".*calc.*|(clusters?|points?)(?![a-z]).*", re.IGNORECASE | re.DOTALL)
LARGEST_XML: Final = 10 << 20
# Entities are how a small XML file becomes a huge one; OsiriX writes none.
ENTITY: Final = b"<!ENTITY"


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Contours of masses of all mammograms, by file name.

    Raises:
      DataError: If the folders are not there.
    """
    images, contours = (folders_named(root, re.compile(name, re.IGNORECASE)) for name in (IMAGES, CONTOURS))
    if not images or not contours:
        raise DataError(f"{root} holds no {IMAGES} and {CONTOURS}; give the folder of INbreast that does")
    paths = sorted(
        (path for folder in images[IMAGES.casefold()] for path in dicom_files(root, folder)), key=lambda one: one.name
    )
    by_number = _contours(root, contours[CONTOURS.casefold()])
    by_file: dict[str, list[Path]] = {}
    for path in paths:
        named = NAME.fullmatch(path.name)
        if named is None:
            yield SkippedFinding(
                name=str(path.relative_to(root)), reason="unreadable_annotation", detail=f"{path} is not named as in INbreast"
            )
        else:
            by_file.setdefault(named["file"], []).append(path)
    for number, found in by_file.items():
        # A mammogram without a contour is a normal one.
        if number in by_number:
            yield from _masses(number, distinct(found), by_number.pop(number))
    for number, left in by_number.items():
        yield from _masses(number, [], left)


def _contours(root: Path, folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Files of contours by their mammogram's number."""
    files = files_inside(root, (path / name for folder in folders for path, _, names in walk(folder) for name in names))
    found: dict[str, list[Path]] = {}
    for path in sorted(files, key=lambda one: one.name):
        if named := XML.fullmatch(path.name):
            found.setdefault(named["file"], []).append(path)
    return {number: distinct(paths) for number, paths in found.items()}


def _masses(number: str, images: Sequence[Path], contours: Sequence[Path]) -> Iterator[Finding | SkippedFinding]:
    try:
        if len(contours) > 1 or len(images) > 1:
            raise ValueError("several files of one number")
        regions = _regions(contours[0])
    except (OSError, ValueError) as error:
        detail = f"{contours[0]} cannot be read ({type(error).__name__})"
        yield SkippedFinding(name=contours[0].name, reason="unreadable_annotation", detail=detail)
        return
    repeats = Repeats()
    for place, region in enumerate(regions):
        called, name = str(region.get("Name", "")).strip(), f"{number} {place}"
        if PASSED_OVER.fullmatch(called):
            continue
        points = _points(region)
        if not MASS.fullmatch(called):
            yield SkippedFinding(name=name, reason="other_finding", detail=f"{name}: {called!r} is no mass")
        elif not images:
            yield SkippedFinding(name=name, reason="missing_file", detail=f"{contours[0]} has no mammogram in {IMAGES}")
        elif repeats.again(points.tobytes()):
            yield SkippedFinding(name=name, reason="repeated_row", detail=f"{name}: the same contour as one above")
        else:
            yield _finding(images[0], name, points)


def _finding(image: Path, name: str, points: NDArray[np.float64]) -> Finding:
    named = NAME.fullmatch(image.name)
    if named is None:
        raise DataError(f"{image} is not named as in INbreast")
    view = VIEWS.get(named["view"].upper(), "")
    patient = named["patient"].lower()
    return Finding(image=image, lesion=Outline(points=points), patient=patient, name=name, label=None, split="train", view=view)


def _regions(contours: Path) -> list[Mapping[str, Any]]:
    if contours.stat().st_size > LARGEST_XML:
        raise ValueError("too large")
    # Some editors leave blanks above the declaration, which XML does not allow.
    content = contours.read_bytes().lstrip()
    if ENTITY in content:
        raise ValueError("entities")
    try:
        images = plistlib.loads(content, fmt=plistlib.FMT_XML)["Images"]
        found = [image["ROIs"] for image in images] if isinstance(images, list) else []
    except Exception as error:
        # The parser raises whatever the content leads to: of encodings, dates, numbers, depths.
        raise ValueError("not OsiriX") from error
    if not found:
        raise ValueError("not OsiriX")
    return [region for regions in found if isinstance(regions, list) for region in regions if isinstance(region, Mapping)]


def _points(region: Mapping[str, Any]) -> NDArray[np.float64]:
    """Corners as (row, column); OsiriX writes "(x, y)". What is no pair of numbers is a point that is no number."""
    listed = region.get("Point_px")
    points = [_point(str(point).strip()) for point in listed] if isinstance(listed, list) else []
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _point(text: str) -> tuple[float, float]:
    if pair := POINT.fullmatch(text):
        return float(pair[2]), float(pair[1])
    if parts := COMMAS.fullmatch(text):
        return float(f"{parts[3]}.{parts[4]}"), float(f"{parts[1]}.{parts[2]}")
    return np.nan, np.nan
