"""BCDR: contours of lesions in outline tables (`bcdr_*_outlines.csv`), biopsy-proven; a set of its own for external tests.

The published files are TIFF; a DICOM export of the same name is read where there is one (`x.tif` -> `x.dcm`).

Source: Lopez et al., BCDR: a breast cancer digital repository, 2012.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.findings import Finding, Outline, SkippedFinding
from mammo_fed.data.sources.tables import read_table
from mammo_fed.errors import DataError
from mammo_fed.privacy.patient_identity import require_identifier

__all__ = ["findings"]

TABLES: Final = "*_outlines.csv"
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
LABELS: Final[Mapping[str, int]] = {"malign": MALIGNANT, "benign": BENIGN}
# As the repository numbers them: right and left CC, right and left oblique; newer tables write words.
VIEWS: Final[Mapping[str, str]] = {"1": "CC", "2": "CC", "3": "MLO", "4": "MLO"}


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Masses of all outline tables below the folder, table by table.

    Raises:
      DataError: If there is no table, it is not one of BCDR, or a row has no patient.
    """
    tables = sorted(root.rglob(TABLES))
    if not tables:
        raise DataError(f"{root} holds no {TABLES}; give the folder of BCDR that does")
    for table in tables:
        for line, row in read_table(table, required=REQUIRED, optional=None):
            if row.get(NODULE, "1") == "1":
                require_identifier(row["patient_id"], where=f"{table} row {line}")
                yield _finding(table, row)


def _finding(table: Path, row: Mapping[str, str]) -> Finding | SkippedFinding:
    name = " ".join(row[part] for part in ("patient_id", "study_id", "lesion_id", "segmentation_id", "image_filename"))
    label = LABELS.get(row["classification"].lower())
    if label is None:
        return SkippedFinding(name=name, reason="unknown_label", detail=f"{name}: {row['classification']!r}")
    folder = table.parent.resolve()
    image = (folder / row["image_filename"]).with_suffix(".dcm").resolve()
    if not image.is_relative_to(folder) or not image.is_file():
        return SkippedFinding(name=name, reason="missing_file", detail=f"{image} is not there; TIFF files need a DICOM export")
    try:
        across = [float(value) for value in row["lw_x_points"].split()]
        down = [float(value) for value in row["lw_y_points"].split()]
        points = np.array([down, across], dtype=np.float64).T
    except ValueError as error:
        return SkippedFinding(
            name=name, reason="unreadable_annotation", detail=f"{name}: the outline is no list of numbers ({error})"
        )
    view = row["image_view"].upper()
    return Finding(
        image=image,
        lesion=Outline(points=points.reshape(-1, 2)),
        patient=row["patient_id"],
        name=name,
        label=label,
        split="external",
        view=VIEWS.get(view, "CC" if "CC" in view else "MLO" if "O" in view else ""),
    )
