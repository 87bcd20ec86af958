"""The generic form of an archive: DICOM or TIFF files anywhere below a folder, and one table that says where the lesions are.

findings.csv, as spreadsheets save it (`saved_tables.py`), with a header:

  file        the mammogram, relative to the folder, inside it
  patient     any text; values that differ in case, blanks and what is not seen are one patient
  label       malignant or 1, benign or 0; empty without a biopsy: the patch is then of use for pretraining only
  top, left, bottom, right   the lesion's box in pixels, bottom and right exclusive; or
  mask, annotation           a DICOM file that marks the lesion: an image of two values, SEG, RTSTRUCT, SR or GSPS; or
  contour     "row,column row,column ...", at least three points, in pixels
  region      chooses one of several regions of the mask or annotation: its number from 1, or its label
  rows, columns              size of the image that the box or contour was drawn on, where it is not the mammogram's
  view        CC, MLO, or what people write for them; others and none are empty (the file's own attribute is then used)
  split       train, val, test or external; without the column every row is train
  name        unique name of the finding; without it the file and the number of its row

One of box, mask, annotation and contour in every row. Other columns are refused; a row that breaks a rule is one refused
finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.archives.places import DICOM, Places
from mammo_fed.data.dicom.archives.saved_tables import Repeats, SavedTable, TableRow, open_table
from mammo_fed.data.dicom.archives.words import is_blank, label_of, view_of, whole
from mammo_fed.data.dicom.findings import Box, Finding, Lesion, Masks, Outline, Skipped, SkippedFinding
from mammo_fed.data.sources.rows import SPLITS, Split
from mammo_fed.errors import DataError

__all__ = ["TABLE_NAME", "findings"]

TABLE_NAME: Final = "findings.csv"
NAMES: Final = ("findings.csv", "findings.tsv", "findings.txt")
SPREADSHEET: Final = re.compile(r"findings\.(xlsx?|ods|numbers)", re.IGNORECASE)
BOX: Final = ("top", "left", "bottom", "right")
FILES: Final = ("mask", "annotation")
REQUIRED: Final = ("file", "patient", "label")
OPTIONAL: Final = (*BOX, *FILES, "region", "contour", "rows", "columns", "view", "split", "name")
NUMBERS: Final[Mapping[str, int | None]] = {"1": MALIGNANT, "0": BENIGN, "": None}
SPLIT_OF: Final[Mapping[str, Split]] = {
    **{split: split for split in SPLITS},
    "training": "train",
    "validation": "val",
    "testing": "test",
}


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Findings of the table, in its order.

    Raises:
      DataError: If the table cannot be read, or its header is not of such a table.
    """
    table = open_table(_table(root), required=REQUIRED, optional=OPTIONAL, strict=True)
    places, repeats = Places(root), Repeats()
    for row in table.rows():
        where = f"{table.path} row {row.line}"
        name = row.fields.get("name") or f"{row.fields['file']} {row.line}"
        try:
            if row.fault:
                name = f"{table.path.name} row {row.line}"
                raise Skipped("unusable_row", row.fault)
            if repeats.again(tuple(sorted(row.fields.items()))):
                name = f"{name} (row {row.line})"
                raise Skipped("repeated_row", "the same as a row above")
            yield _finding(table, row, places, name)
        except Skipped as error:
            yield SkippedFinding(name=name, reason=error.reason, detail=f"{where}: {error.detail}")


def _table(root: Path) -> Path:
    """The table, also where a system wrote its name or its suffix in another way."""
    here = sorted(path for path in root.iterdir() if path.is_file()) if root.is_dir() else []
    named = [path for path in here if path.name.casefold() in NAMES]
    if (root / TABLE_NAME).is_file() or len(named) != 1:
        if not named and any(SPREADSHEET.fullmatch(path.name) for path in here):
            raise DataError(f"{root} holds its table only as a spreadsheet; save it as {TABLE_NAME} (CSV in UTF-8) there")
        return root / TABLE_NAME
    return named[0]


def _finding(table: SavedTable, row: TableRow, places: Places, name: str) -> Finding:
    """Raises: Skipped, if the row breaks a rule."""
    fields = row.fields
    if is_blank(fields["patient"]):
        raise Skipped("unusable_row", "patient is empty; every row needs an identifier")
    number = whole(fields["label"])
    label = NUMBERS[number] if number in NUMBERS else label_of(fields["label"])
    if label is None and number:
        raise Skipped("unknown_label", f"label={fields['label']!r} must be malignant, benign, 1, 0 or empty; correct the row")
    view, split = view_of(fields.get("view", "")), SPLIT_OF.get(fields.get("split", "train").casefold())
    if view is None:
        raise Skipped("unusable_row", f"view={fields['view']!r} must be CC, MLO, another view of mammography or empty")
    if split is None:
        raise Skipped("unusable_row", f"split={fields['split']!r} must be one of {', '.join(SPLITS)}; correct the row")
    return Finding(
        lesion=_lesion(table, fields, places),
        image=places.find(fields["file"]),
        patient=fields["patient"],
        name=name,
        label=label,
        split=split,
        view=view,
    )


def _lesion(table: SavedTable, fields: Mapping[str, str], places: Places) -> Lesion:
    corners = [fields.get(name, "") for name in BOX]
    given = [name for name in (*FILES, "contour") if fields.get(name)]
    given += ["box"] if any(corners) else []
    if len(given) != 1:
        raise Skipped("unusable_row", f"it gives {' and '.join(given) or 'no lesion'}; give one of box, mask and contour")
    if given[0] in FILES:
        return Masks(candidates=(places.find(fields[given[0]], DICOM),), region=whole(fields.get("region", "")))
    try:
        drawn_on = _drawn_on(table, fields)
        if given[0] == "contour":
            return Outline(points=_points(table, fields["contour"]), drawn_on=drawn_on)
        if any("," in corner for corner in corners) and any("." in corner for corner in corners):
            # One of the two separates thousands, and nobody can know which.
            raise ValueError("two kinds of decimals")
        top, left, bottom, right = (table.number(corner) for corner in corners)
    except ValueError as error:
        raise Skipped("unusable_row", f"the {given[0]} is not made of numbers; correct the row") from error
    # Drawn from another corner it is the same rectangle.
    (top, bottom), (left, right) = sorted((top, bottom)), sorted((left, right))
    return Box(top=top, left=left, bottom=bottom, right=right, drawn_on=drawn_on)


def _drawn_on(table: SavedTable, fields: Mapping[str, str]) -> tuple[int, int] | None:
    sizes = [fields.get(name, "") for name in ("rows", "columns")]
    if not any(sizes):
        return None
    rows, columns = (table.number(size) for size in sizes) if all(sizes) else (0.0, 0.0)
    if not (rows >= 1 and columns >= 1 and rows.is_integer() and columns.is_integer()):
        raise Skipped("unusable_row", "rows and columns must both be whole numbers above 0; correct the row")
    return int(rows), int(columns)


def _points(table: SavedTable, text: str) -> NDArray[np.float64]:
    """Corners as (row, column); in a table without commas between its values a point may have decimal ones: `1,5,20,25`."""
    points = []
    for point in text.split():
        parts = point.split(",")
        if table.separator != "," and len(parts) == 4:
            parts = [f"{parts[0]}.{parts[1]}", f"{parts[2]}.{parts[3]}"]
        if len(parts) != 2:
            raise ValueError("not a pair")
        points.append([table.number(part) for part in parts])
    return np.array(points, dtype=np.float64).reshape(-1, 2)
