"""The generic form of an archive: DICOM files anywhere below a folder, and one table that says where the lesions are.

findings.csv, UTF-8, separated by commas, with a header:

  file      the mammogram, relative to the folder, inside it
  patient   any text; values that differ in case, blanks and what is not seen are one patient
  label     malignant or 1, benign or 0; empty without a biopsy: the patch is then of use for pretraining only
  top, left, bottom, right   the lesion's box in pixels, bottom and right exclusive; or
  mask      a DICOM file as large as the mammogram, of two values; or
  contour   "row,column row,column ...", at least three points, in pixels
  view      CC, MLO or empty (the file's own attribute is then used); may be left out
  split     train, val, test or external; without the column every row is train
  name      unique name of the finding; without it the file and the number of its row

One of box, mask and contour in every row. Other columns are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.findings import Box, Finding, Lesion, Masks, Outline, SkippedFinding
from mammo_fed.data.sources.rows import SPLITS, Split
from mammo_fed.data.sources.tables import path_inside, read_table
from mammo_fed.errors import DataError
from mammo_fed.privacy.patient_identity import require_identifier

__all__ = ["TABLE_NAME", "findings"]

TABLE_NAME: Final = "findings.csv"
BOX: Final = ("top", "left", "bottom", "right")
REQUIRED: Final = ("file", "patient", "label")
OPTIONAL: Final = (*BOX, "mask", "contour", "view", "split", "name")
LABELS: Final[Mapping[str, int | None]] = {"malignant": MALIGNANT, "1": MALIGNANT, "benign": BENIGN, "0": BENIGN, "": None}
VIEWS: Final = ("CC", "MLO", "")
SPLIT_OF: Final[Mapping[str, Split]] = {split: split for split in SPLITS}


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Findings of the table, in its order.

    Raises:
      DataError: If the table cannot be read, or a row breaks a rule.
    """
    table = root / TABLE_NAME
    for line, fields in read_table(table, required=REQUIRED, optional=OPTIONAL):
        yield _finding(root.resolve(), f"{table} row {line}", fields, name=fields.get("name") or f"{fields['file']} {line}")


def _finding(folder: Path, where: str, fields: Mapping[str, str], *, name: str) -> Finding:
    require_identifier(fields["patient"], where=where)
    if fields["label"] not in LABELS:
        raise DataError(f"{where}: label={fields['label']!r} must be malignant, benign, 1, 0 or empty; correct the row")
    view, split = fields.get("view", ""), fields.get("split", "train")
    if view not in VIEWS:
        raise DataError(f"{where}: view={view!r} must be CC, MLO or empty; correct the row")
    if split not in SPLIT_OF:
        raise DataError(f"{where}: split={split!r} must be one of {', '.join(SPLITS)}; correct the row")
    return Finding(
        image=path_inside(folder, fields["file"], column="file", where=where),
        lesion=_lesion(folder, where, fields),
        patient=fields["patient"],
        name=name,
        label=LABELS[fields["label"]],
        split=SPLIT_OF[split],
        view=view,
    )


def _lesion(folder: Path, where: str, fields: Mapping[str, str]) -> Lesion:
    corners = [fields.get(name, "") for name in BOX]
    given = [
        word
        for word, value in (("box", any(corners)), ("mask", fields.get("mask")), ("contour", fields.get("contour")))
        if value
    ]
    if len(given) != 1:
        raise DataError(f"{where}: gives {' and '.join(given) or 'no lesion'}; give one of box, mask and contour")
    try:
        match given[0]:
            case "box":
                top, left, bottom, right = (float(corner) for corner in corners)
                return Box(top=top, left=left, bottom=bottom, right=right)
            case "mask":
                return Masks(candidates=(path_inside(folder, fields["mask"], column="mask", where=where),))
            case _:
                points = [[float(number) for number in point.split(",")] for point in fields["contour"].split()]
                return Outline(points=np.array(points, dtype=np.float64).reshape(-1, 2))
    except ValueError as error:
        raise DataError(f"{where}: the {given[0]} is not made of numbers; correct the row") from error
