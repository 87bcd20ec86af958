"""VinDr-Mammo 1.0.0: boxes around masses, graded by BI-RADS. That is no biopsy: its patches are of use for pretraining only.

`finding_annotations.csv`, one row for each box, and `images/<study_id>/<image_id>.dicom`. Relied on are the columns study_id,
image_id, view_position, height and width (of the image that the box is on), finding_categories (a list in quotes, such as
`['Mass', 'Skin Retraction']`), xmin, ymin, xmax, ymax (pixels; empty without a finding) and split (training, test). No patient
is published: a study is taken for one. Rows without a finding and calcifications alone are passed over; other findings are
counted.

Source: Nguyen et al., Sci Data 10:277, 2023; PhysioNet, doi:10.13026/br2v-7517, under its data use agreement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from mammo_fed.data.dicom.archives.places import DICOM, Places, tables_named
from mammo_fed.data.dicom.archives.saved_tables import Repeats, SavedTable, TableRow, open_table, unusable
from mammo_fed.data.dicom.archives.words import is_blank, view_of, whole
from mammo_fed.data.dicom.findings import Box, Finding, Skipped, SkippedFinding
from mammo_fed.data.sources.rows import Split
from mammo_fed.errors import DataError

__all__ = ["findings"]

TABLE: Final = re.compile(r"finding_annotations.*\.csv", re.IGNORECASE)
CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")
SIZE: Final = ("height", "width")
REQUIRED: Final = ("study_id", "image_id", "view_position", *SIZE, "finding_categories", *CORNERS, "split")
SPLITS: Final[Mapping[str, Split]] = {"training": "train", "train": "train", "test": "test"}
MASS: Final = "mass"
PASSED_OVER: Final = frozenset({"no finding", "suspicious calcification"})
IMAGES: Final = "images"


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Boxes around masses, in the table's order.

    Raises:
      DataError: If the table is missing or not one of VinDr-Mammo.
    """
    paths = tables_named(root, TABLE)
    if len(paths) != 1:
        raise DataError(f"{root} holds {len(paths)} tables finding_annotations.csv; give the folder of VinDr-Mammo with one")
    table = open_table(paths[0], required=REQUIRED)
    places, repeats = Places(paths[0].parent), Repeats()
    for row in table.rows():
        kinds = _kinds(row.fields["finding_categories"])
        if row.fault or not kinds:
            yield unusable(table, row, row.fault or "finding_categories is empty")
        elif not kinds <= PASSED_OVER:
            yield _checked(table, row, places, repeats, kinds)


def _kinds(text: str) -> frozenset[str]:
    words = (word.strip().strip("'\"").casefold() for word in text.strip().strip("[]").split(","))
    return frozenset(word for word in words if word)


def _checked(
    table: SavedTable, row: TableRow, places: Places, repeats: Repeats, kinds: frozenset[str]
) -> Finding | SkippedFinding:
    name = " ".join((row.fields["image_id"], *(whole(row.fields[corner]) for corner in CORNERS)))
    try:
        if repeats.again(tuple(sorted(row.fields.items()))):
            name = f"{name} ({table.path.name} row {row.line})"
            raise Skipped("repeated_row", "the same as a row above")
        if MASS not in kinds:
            raise Skipped("other_finding", "it is no mass")
        return _finding(table, row, places, name)
    except Skipped as error:
        return SkippedFinding(name=name, reason=error.reason, detail=f"{table.path} row {row.line}: {error.detail}")


def _finding(table: SavedTable, row: TableRow, places: Places, name: str) -> Finding:
    """Raises: Skipped, if the row breaks a rule."""
    fields = row.fields
    view, split = view_of(fields["view_position"]), SPLITS.get(fields["split"].casefold())
    if is_blank(fields["study_id"]) or not fields["image_id"] or view is None or split is None:
        raise Skipped("unusable_row", "study, image, view and split must be those of VinDr-Mammo")
    try:
        left, top, right, bottom = (table.number(fields[corner]) for corner in CORNERS)
        height, width = (table.number(fields[side]) for side in SIZE)
    except ValueError as error:
        raise Skipped("unusable_row", "the box or the image's size is not made of numbers") from error
    if not (height >= 1 and width >= 1):
        raise Skipped("unusable_row", "height and width must be above 0")
    (top, bottom), (left, right) = sorted((top, bottom)), sorted((left, right))
    return Finding(
        image=places.find(f"{IMAGES}/{fields['study_id']}/{fields['image_id']}", DICOM),
        lesion=Box(top=top, left=left, bottom=bottom, right=right, drawn_on=(int(height), int(width))),
        patient=fields["study_id"],
        name=name,
        label=None,
        split=split,
        view=view,
    )
