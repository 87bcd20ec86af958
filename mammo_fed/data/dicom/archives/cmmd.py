"""CMMD: biopsy labels of whole breasts, no lesion marked; the patch is all of the breast.

`CMMD_clinicaldata_revision.csv` (ID1, LeftRight, abnormality, classification, ...) and, in any depth, folders `<ID1>` with the
patient's images, whose headers say side and view. Save the download's spreadsheet as CSV. Breasts that the table lists with
calcifications alone are passed over; every other image of a listed patient is a finding or a refusal.

Source: The Chinese Mammography Database, The Cancer Imaging Archive, CC BY 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.archives.places import dicom_files, distinct, folders_named, tables_named
from mammo_fed.data.dicom.archives.saved_tables import Repeats, SavedTable, open_table, unusable
from mammo_fed.data.dicom.archives.words import side_of
from mammo_fed.data.dicom.findings import Breast, Finding, Reason, Skipped, SkippedFinding
from mammo_fed.data.dicom.image.reading import read_side_and_view
from mammo_fed.errors import DataError
from mammo_fed.privacy.patient_identity import normal_identifier

__all__ = ["findings"]

TABLE_NAME: Final = "CMMD_clinicaldata_revision.csv"
TABLES: Final = re.compile(r"cmmd_clinicaldata.*\.csv", re.IGNORECASE)
SPREADSHEETS: Final = re.compile(r"cmmd_clinicaldata.*\.xlsx?", re.IGNORECASE)
REQUIRED: Final = ("ID1", "LeftRight", "abnormality", "classification")
LABELS: Final[Mapping[str, int]] = {"malignant": MALIGNANT, "benign": BENIGN}
CALCIFICATION: Final = re.compile(r"(micro)?calcifications?", re.IGNORECASE)
MASS: Final = re.compile(r"both|.*\bmass(es)?\b.*", re.IGNORECASE)
PATIENT: Final = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, kw_only=True)
class _Side:
    """What the rows of one breast say together: a label, or why there is none; `mass` where a row lists one."""

    labels: tuple[str, ...]
    mass: bool

    def label(self) -> tuple[int | None, Reason, str]:
        """The label; without one, the reason and its text."""
        unknown = [label for label in self.labels if label not in LABELS]
        if unknown:
            return None, "unknown_label", f"classification={unknown[0]!r}"
        if len(self.labels) > 1:
            return None, "unusable_row", "the table gives the breast two classifications"
        return LABELS[self.labels[0]], "unknown_label", ""


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Mammograms of breasts with a mass, patient by patient in the table's order.

    Raises:
      DataError: If the table is missing or not one of CMMD.
    """
    table = open_table(_table(root), required=REQUIRED)
    breasts: dict[str, dict[str, _Side]] = {}
    refused = list(_refused(table, breasts))
    yield from refused
    folders = folders_named(root, re.compile("|".join(map(re.escape, breasts)) or r"(?!)", re.IGNORECASE))
    for patient, sides in breasts.items():
        # Folders are known by their names in lower case.
        folder = patient
        if any(side.mass for side in sides.values()):
            yield from _images(root, patient, sides, folders.get(folder.casefold(), ()))


def _table(root: Path) -> Path:
    found = tables_named(root, TABLES)
    chosen = [path for path in found if path.name.casefold() == TABLE_NAME.casefold()] or found
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise DataError(f"{root} holds {len(chosen)} different tables of CMMD; leave one there: {TABLE_NAME}")
    kind = "it only as a spreadsheet" if tables_named(root, SPREADSHEETS) else "none"
    raise DataError(f"{root} must hold the table {TABLE_NAME} and holds {kind}; save CMMD's spreadsheet as CSV in UTF-8 there")


def _refused(table: SavedTable, breasts: dict[str, dict[str, _Side]]) -> Iterator[SkippedFinding]:
    """Rows that cannot be used; the others are put into `breasts`, by patient and side."""
    repeats = Repeats()
    spellings: dict[str, str] = {}
    for row in table.rows():
        patient, side = row.fields["ID1"], side_of(row.fields["LeftRight"])
        calcification = CALCIFICATION.fullmatch(row.fields["abnormality"])
        label = row.fields["classification"].casefold()
        if row.fault:
            yield unusable(table, row, row.fault)
        elif not PATIENT.fullmatch(patient):
            yield unusable(table, row, "ID1 is no folder's name")
        elif not side:
            yield unusable(table, row, "LeftRight must be L or R")
        elif not calcification and not MASS.fullmatch(row.fields["abnormality"]):
            yield unusable(table, row, "abnormality must be mass, calcification or both")
        elif repeats.again((normal_identifier(patient), side, bool(calcification), label)) and not calcification:
            name = f"{patient} {side} ({table.path.name} row {row.line})"
            yield SkippedFinding(name=name, reason="repeated_row", detail=f"{name}: the same as a row above")
        else:
            sides = breasts.setdefault(spellings.setdefault(normal_identifier(patient), patient), {})
            known = sides.get(side, _Side(labels=(), mass=False))
            labels = tuple(dict.fromkeys((*known.labels, label)))
            sides[side] = _Side(labels=labels, mass=known.mass or not calcification)


def _images(
    root: Path, patient: str, sides: Mapping[str, _Side], folders: Sequence[Path]
) -> Iterator[Finding | SkippedFinding]:
    files = [path for folder in folders for path in dicom_files(root, folder)]
    files = distinct(files) if len(folders) > 1 else files
    masses = [side for side, about in sides.items() if about.mass]
    seen: set[str] = set()
    unread = False
    for path in files:
        name = f"{patient} {masses[0]} {path.relative_to(root)}"
        try:
            side, view = read_side_and_view(path)
        except Skipped as error:
            yield SkippedFinding(name=name, reason=error.reason, detail=error.detail)
            unread = True
            continue
        if not side:
            yield SkippedFinding(name=name, reason="no_side", detail=f"{path} does not say its side")
            unread = True
        elif side in masses:
            seen.add(side)
            yield _finding(
                path, name=f"{patient} {side} {path.relative_to(root)}", patient=patient, about=sides[side], view=view
            )
    for side in masses:
        # Images that could not be read, or say no side, may be the breast's.
        if side not in seen and not unread:
            detail = f"{patient} has no image of side {side}"
            yield SkippedFinding(name=f"{patient} {side}", reason="missing_file", detail=detail)


def _finding(path: Path, *, name: str, patient: str, about: _Side, view: str) -> Finding | SkippedFinding:
    label, reason, why = about.label()
    if label is None:
        return SkippedFinding(name=name, reason=reason, detail=f"{path}: {why}")
    return Finding(image=path, lesion=Breast(), patient=patient, name=name, label=label, split="external", view=view)
