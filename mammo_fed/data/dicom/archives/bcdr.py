"""BCDR: contours of lesions in outline tables (`bcdr_*_outlines.csv`), biopsy-proven; a set of its own for external tests.

The published files are TIFF of 8 bits, and are read; a DICOM export of the same name is read instead where there is one
(`x.tif` -> `x.dcm`). Values have leading blanks; outlines are two lists, of x and of y, in pixels.

Source: Lopez et al., BCDR: a breast cancer digital repository, 2012.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.dicom.archives.places import DICOM, TIFF, Places, tables_named
from mammo_fed.data.dicom.archives.saved_tables import Repeats, SavedTable, TableRow, open_table, unusable
from mammo_fed.data.dicom.archives.words import is_blank, label_of, view_of, whole
from mammo_fed.data.dicom.findings import Finding, Outline, Skipped, SkippedFinding
from mammo_fed.errors import DataError

__all__ = ["findings"]

TABLES: Final = re.compile(r".*_outlines.*\.csv", re.IGNORECASE)
REQUIRED: Final = (
    "patient_id",
    "study_id",
    "lesion_id",
    "segmentation_id",
    "image_view",
    "image_filename",
    "lw_x_points",
    "lw_y_points",
    "classification",
)
# Findings that are masses carry a 1 here, where the table has the column.
NODULE: Final = "mammography_nodule"
YES: Final = ("1", "yes", "true")
NO: Final = ("0", "no", "false", "", "nan")
NAME: Final = ("patient_id", "study_id", "lesion_id", "segmentation_id", "image_filename")
# As the repository numbers them: right and left CC, right and left oblique; newer tables write words.
VIEWS: Final[Mapping[str, str]] = {"1": "CC", "2": "CC", "3": "MLO", "4": "MLO", "o": "MLO", "ro": "MLO", "lo": "MLO"}


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Masses of all outline tables below the folder, table by table.

    Raises:
      DataError: If there is no table, or it is not one of BCDR.
    """
    paths = tables_named(root, TABLES)
    if not paths:
        raise DataError(f"{root} holds no *_outlines.csv; give the folder of BCDR that does")
    tables = [open_table(path, required=REQUIRED, optional=(NODULE,)) for path in paths]
    repeats = Repeats()
    images: dict[str, Path] = {}
    for table in tables:
        places = Places(table.path.parent)
        for row in table.rows():
            nodule = whole(row.fields.get(NODULE, "1")).casefold()
            if row.fault or nodule not in (*YES, *NO):
                yield unusable(table, row, row.fault or f"{NODULE} must be 0 or 1")
            elif nodule in YES:
                found = _checked(table, row, places, repeats)
                if isinstance(found, Finding) and images.setdefault(found.name, found.image) != found.image:
                    # Sets of the repository number their patients and lesions each for itself.
                    found = replace(found, name=f"{found.name} ({table.path.name})")
                yield found


def _checked(table: SavedTable, row: TableRow, places: Places, repeats: Repeats) -> Finding | SkippedFinding:
    name = " ".join(row.fields[part] for part in NAME)
    try:
        if is_blank(row.fields["patient_id"]):
            return unusable(table, row, "patient_id is empty")
        if repeats.again((places.root, *sorted(row.fields.items()))):
            name = f"{name} ({table.path.name} row {row.line})"
            raise Skipped("repeated_row", "the same as a row above")
        return _finding(table, row, places, name)
    except Skipped as error:
        return SkippedFinding(name=name, reason=error.reason, detail=f"{table.path} row {row.line}: {error.detail}")


def _finding(table: SavedTable, row: TableRow, places: Places, name: str) -> Finding:
    """Raises: Skipped, if the row breaks a rule."""
    fields = row.fields
    label = label_of(fields["classification"])
    if label is None:
        raise Skipped("unknown_label", f"classification={fields['classification']!r}")
    view = whole(fields["image_view"]).casefold()
    lesion = Outline(points=_points(table, fields))
    return Finding(
        image=_image(places, fields["image_filename"]),
        lesion=lesion,
        patient=fields["patient_id"],
        name=name,
        label=label,
        split="external",
        view=VIEWS[view] if view in VIEWS else view_of(view) or "",
    )


def _image(places: Places, text: str) -> Path:
    """The DICOM export, or else the published file."""
    stem = re.sub(r"\.(tiff?|dcm|dicom)$", "", text.strip(), flags=re.IGNORECASE)
    try:
        return places.find(stem, DICOM)
    except Skipped as error:
        if error.reason != "missing_file":
            raise
    return places.find(f"{stem}{TIFF[0]}", TIFF)


def _points(table: SavedTable, fields: Mapping[str, str]) -> NDArray[np.float64]:
    lists = [fields[name].strip("[]()").split() for name in ("lw_y_points", "lw_x_points")]
    if len(lists[0]) != len(lists[1]):
        raise Skipped("unreadable_annotation", f"the outline has {len(lists[1])} x and {len(lists[0])} y")
    try:
        return np.array([[table.number(value) for value in one] for one in lists], dtype=np.float64).T.reshape(-1, 2)
    except ValueError as error:
        raise Skipped("unreadable_annotation", "the outline is no list of numbers") from error
