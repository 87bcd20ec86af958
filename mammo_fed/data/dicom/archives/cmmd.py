"""CMMD: biopsy labels of whole breasts, no lesion marked; the patch is all of the breast.

`CMMD_clinicaldata_revision.csv` (ID1, LeftRight, abnormality, classification, ...) and below the folder `<ID1>/.../*.dcm`,
whose headers say side and view. Save the download's spreadsheet as CSV. Rows of calcifications alone are passed over.

Source: The Chinese Mammography Database, The Cancer Imaging Archive, CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.findings import Breast, Finding, Skipped, SkippedFinding, files_inside
from mammo_fed.data.dicom.reading import read_side_and_view
from mammo_fed.data.sources.tables import read_table

__all__ = ["findings"]

TABLE_NAME: Final = "CMMD_clinicaldata_revision.csv"
REQUIRED: Final = ("ID1", "LeftRight", "abnormality", "classification")
LABELS: Final[Mapping[str, int]] = {"malignant": MALIGNANT, "benign": BENIGN}
PASSED_OVER: Final = "calcification"


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Mammograms of breasts with a mass, in the table's order.

    Raises:
      DataError: If the table is missing or not one of CMMD.
    """
    for _, row in read_table(root / TABLE_NAME, required=REQUIRED, optional=None):
        if row["abnormality"].lower() == PASSED_OVER:
            continue
        patient, side = row["ID1"], row["LeftRight"].upper()
        name = f"{patient} {side}"
        label = LABELS.get(row["classification"].lower())
        if label is None:
            yield SkippedFinding(name=name, reason="unknown_label", detail=f"{name}: {row['classification']!r}")
            continue
        yield from _images(root, patient, side, label)


def _images(root: Path, patient: str, side: str, label: int) -> Iterator[Finding | SkippedFinding]:
    folder = root / patient
    inside = patient and folder.resolve().parent == root.resolve()
    files = files_inside(root, folder.rglob("*.dcm")) if inside and folder.is_dir() else []
    if not files:
        yield SkippedFinding(name=f"{patient} {side}", reason="missing_file", detail=f"{folder} holds no DICOM file")
    for path in files:
        name = f"{patient} {side} {path.relative_to(root)}"
        try:
            found, view = read_side_and_view(path)
        except Skipped as error:
            yield SkippedFinding(name=name, reason=error.reason, detail=error.detail)
            continue
        if found == side:
            yield Finding(image=path, lesion=Breast(), patient=patient, name=name, label=label, split="external", view=view)
