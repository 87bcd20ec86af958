"""CBIS-DDSM as The Cancer Imaging Archive ships it: tables with broken lines, and masks that change places with crops.

A folder of the download holds `mass_case_description_train_set.csv` and `..._test_set.csv` (or both in one table), and in any
depth folders `Mass-Training_P_00001_LEFT_CC` (the mammogram) and `Mass-Training_P_00001_LEFT_CC_1` (mask and crop of its first
mass, in one series or two, in either order). The identifiers in the tables' paths are not those of every download: folders are
found by name. An interrupted download beside a whole one gives copies and parts of files: each file counts once.

Source: Lee et al., Sci Data 4:170177, 2017; The Cancer Imaging Archive, CC BY 3.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.archives.places import dicom_files, distinct, folders_named, tables_named
from mammo_fed.data.dicom.archives.saved_tables import Repeats, SavedTable, TableRow, open_table, unusable
from mammo_fed.data.dicom.archives.words import side_of, whole
from mammo_fed.data.dicom.findings import Finding, Masks, SkippedFinding
from mammo_fed.data.sources.rows import Split
from mammo_fed.errors import DataError

__all__ = ["findings"]

TABLES: Final = re.compile(r"mass_case_description.*\.csv", re.IGNORECASE)
# The table of the training set is read first, whatever the tables are called.
ORDER: Final = ("train", "test")
PREFIXES: Final[Mapping[str, tuple[str, Split]]] = {
    "training": ("Mass-Training", "train"),
    "train": ("Mass-Training", "train"),
    "test": ("Mass-Test", "test"),
}
LABELS: Final[Mapping[str, int]] = {"malignant": MALIGNANT, "benign": BENIGN, "benign without callback": BENIGN}
COLUMNS: Final = ("patient_id", "left or right breast", "image view", "abnormality id", "pathology")
OPTIONAL: Final = ("abnormality type", "image file path")
PATIENT: Final = re.compile(r"(?:P[_-]?)?([0-9]{1,5})", re.IGNORECASE)
SIDES: Final[Mapping[str, str]] = {"L": "LEFT", "R": "RIGHT"}
VIEWS: Final = ("CC", "MLO")
# What a folder of the download is called; everything else below the root is left alone.
FOLDER: Final = re.compile(r"(Mass|Calc)-(Training|Test)_P_\d{5}_(LEFT|RIGHT)_(CC|MLO)(_\d+)?", re.IGNORECASE)
CALCIFICATION: Final = "calc"


@dataclass(frozen=True, kw_only=True)
class _Mass:
    """A row as the names of folders need it."""

    table: SavedTable
    row: TableRow
    patient: str
    view: str
    image: str
    name: str
    split: Split


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Masses of all tables, train first, in the tables' order.

    Raises:
      DataError: If there is no table, or it is not one of CBIS-DDSM.
    """
    paths = tables_named(root, TABLES)
    if not paths:
        raise DataError(
            f"{root} holds neither mass_case_description_train_set.csv nor mass_case_description_test_set.csv; "
            "give the folder with the tables and the DICOM folders"
        )
    tables = [open_table(path, required=COLUMNS, optional=OPTIONAL) for path in sorted(paths, key=_order)]
    folders = folders_named(root, FOLDER)
    masses = [mass for table in tables for row in table.rows() if (mass := _mass(table, row, folders)) is not None]
    said: dict[str, set[int | None]] = {}
    for one in masses:
        if isinstance(one, _Mass):
            said.setdefault(one.name, set()).add(_label(one))
    repeats = Repeats()
    for one in masses:
        if isinstance(one, SkippedFinding):
            yield one
        elif len(said[one.name]) > 1:
            yield unusable(one.table, one.row, f"the tables give {one.name} two pathologies")
        elif repeats.again(one.name):
            where = f"{one.table.path.name} row {one.row.line}"
            yield SkippedFinding(name=f"{one.name} ({where})", reason="repeated_row", detail=f"{where}: {one.name} again")
        else:
            yield _finding(root, one, folders)


def _order(path: Path) -> tuple[int, str]:
    return next((place for place, word in enumerate(ORDER) if word in path.name.casefold()), len(ORDER)), str(path)


def _mass(table: SavedTable, row: TableRow, folders: Mapping[str, Sequence[Path]]) -> _Mass | SkippedFinding | None:
    """A row's mass; None for a calcification."""
    fields = row.fields
    if row.fault:
        return unusable(table, row, row.fault)
    if fields.get("abnormality type", "").casefold().startswith(CALCIFICATION):
        return None
    number, side = PATIENT.fullmatch(whole(fields["patient_id"])), SIDES.get(side_of(fields["left or right breast"]))
    view, abnormality = fields["image view"].upper(), whole(fields["abnormality id"])
    if number is None or side is None or view not in VIEWS or not abnormality.isascii() or not abnormality.isdigit():
        return unusable(table, row, "patient, breast, view and abnormality make no folder's name")
    patient = f"P_{int(number[1]):05d}"
    rest = f"{patient}_{side}_{view}"
    named = FOLDER.fullmatch(re.split(r"[/\\]", fields.get("image file path", ""))[0])
    word = named[2].casefold() if named else next((word for word in ORDER if word in table.path.name.casefold()), "")
    there = [one for one in ("training", "test") if f"{PREFIXES[one][0]}_{rest}".casefold() in folders]
    if word not in PREFIXES and len(there) == 1:
        word = there[0]
    if word not in PREFIXES:
        return unusable(table, row, "neither the table's name nor a path says whether it is of the training or the test set")
    prefix, split = PREFIXES[word]
    image = f"{prefix}_{rest}"
    return _Mass(
        table=table,
        row=row,
        patient=patient,
        view=view,
        image=image,
        name=f"{image}_{int(abnormality)}",
        split=split,
    )


def _label(mass: _Mass) -> int | None:
    return LABELS.get(re.sub(r"[\W_]+", " ", mass.row.fields["pathology"]).strip().casefold())


def _finding(root: Path, mass: _Mass, folders: Mapping[str, Sequence[Path]]) -> Finding | SkippedFinding:
    label, name = _label(mass), mass.name
    if label is None:
        detail = f"{name}: pathology={mass.row.fields['pathology']!r}"
        return SkippedFinding(name=name, reason="unknown_label", detail=detail)
    mammograms = _files(root, folders, mass.image)
    if len(mammograms) > 1:
        detail = f"{mass.image} holds {len(mammograms)} different DICOM files instead of 1; leave the mammogram alone there"
        return SkippedFinding(name=name, reason="unusable_row", detail=detail)
    if not mammograms:
        return SkippedFinding(name=name, reason="missing_file", detail=f"{mass.image} holds no DICOM file")
    candidates = _files(root, folders, name)
    if not candidates:
        return SkippedFinding(name=name, reason="no_mask", detail=f"{name} holds no DICOM file")
    return Finding(
        image=mammograms[0],
        lesion=Masks(candidates=tuple(candidates)),
        patient=mass.patient,
        name=name,
        label=label,
        split=mass.split,
        view=mass.view,
    )


def _files(root: Path, folders: Mapping[str, Sequence[Path]], name: str) -> Sequence[Path]:
    return distinct(path for folder in folders.get(name.casefold(), ()) for path in dicom_files(root, folder))
