"""CBIS-DDSM as The Cancer Imaging Archive ships it: tables with broken lines, and masks that change places with crops.

A folder of the download holds `mass_case_description_train_set.csv` and `..._test_set.csv`, and below it (in any depth) folders
`Mass-Training_P_00001_LEFT_CC` (the mammogram) and `Mass-Training_P_00001_LEFT_CC_1` (mask and crop of its first mass, in one
series or two, in either order). The identifiers in the tables' paths are not those of every download: folders are found by
name.

Source: Lee et al., Sci Data 4:170177, 2017; The Cancer Imaging Archive, CC BY 3.0.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.findings import Finding, Masks, SkippedFinding, files_inside
from mammo_fed.data.sources.rows import Split
from mammo_fed.errors import DataError

__all__ = ["findings"]

TABLES: Final[Mapping[str, tuple[str, Split]]] = {
    "mass_case_description_train_set.csv": ("Mass-Training", "train"),
    "mass_case_description_test_set.csv": ("Mass-Test", "test"),
}
LABELS: Final[Mapping[str, int]] = {"MALIGNANT": MALIGNANT, "BENIGN": BENIGN, "BENIGN_WITHOUT_CALLBACK": BENIGN}
COLUMNS: Final = ("patient_id", "left or right breast", "image view", "abnormality id", "pathology")
VIEWS: Final = ("CC", "MLO")
# What a folder of the download is called; everything else below the root is left alone.
FOLDER: Final = re.compile(r"(Mass|Calc)-(Training|Test)_P_\d{5}_(LEFT|RIGHT)_(CC|MLO)(_\d+)?")
WIDEST_FIELD: Final = 1 << 16


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Masses of both tables, train first, in the tables' order.

    Raises:
      DataError: If there is no table, or it is not one of CBIS-DDSM.
    """
    tables = [(root / name, *about) for name, about in TABLES.items() if (root / name).is_file()]
    if not tables:
        raise DataError(f"{root} holds neither {' nor '.join(TABLES)}; give the folder with the tables and the DICOM folders")
    folders = _folders(root)
    for table, prefix, split in tables:
        for row in _rows(table):
            yield _finding(row, prefix, split, folders)


def _finding(row: Mapping[str, str], prefix: str, split: Split, folders: Mapping[str, Path]) -> Finding | SkippedFinding:
    patient, side, view = row["patient_id"], row["left or right breast"], row["image view"]
    image = f"{prefix}_{patient}_{side}_{view}"
    name = f"{image}_{row['abnormality id']}"
    if row["pathology"] not in LABELS:
        return SkippedFinding(name=name, reason="unknown_label", detail=f"{name}: pathology={row['pathology']!r}")
    mammograms = _files(folders.get(image))
    if len(mammograms) != 1:
        return SkippedFinding(
            name=name, reason="missing_file", detail=f"{image} holds {len(mammograms)} DICOM files instead of 1"
        )
    candidates = _files(folders.get(name))
    if not candidates:
        return SkippedFinding(name=name, reason="no_mask", detail=f"{name} holds no DICOM file")
    return Finding(
        image=mammograms[0],
        lesion=Masks(candidates=tuple(candidates)),
        patient=patient,
        name=name,
        label=LABELS[row["pathology"]],
        split=split,
        view=view if view in VIEWS else "",
    )


def _rows(table: Path) -> Iterator[Mapping[str, str]]:
    """Rows of a table whose quoted paths may hold line breaks."""
    before = csv.field_size_limit(WIDEST_FIELD)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = [(name or "").strip() for name in reader.fieldnames or ()]
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise DataError(f"table {table} has no column {missing[0]!r}; it is not one of CBIS-DDSM")
            for values in reader:
                row = {(name or "").strip(): value.strip() for name, value in values.items() if isinstance(value, str)}
                if any(row.values()):
                    yield {name: row.get(name, "") for name in COLUMNS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"table {table} cannot be read ({type(error).__name__}); download it again") from error
    finally:
        csv.field_size_limit(before)


def _folders(root: Path) -> dict[str, Path]:
    """Folders of the download by name, wherever they lie."""
    found: dict[str, Path] = {}
    for path, names, _ in os.walk(root):
        for name in sorted(names):
            if FOLDER.fullmatch(name):
                found.setdefault(name, Path(path) / name)
        names[:] = sorted(name for name in names if not FOLDER.fullmatch(name))
    return found


def _files(folder: Path | None) -> Sequence[Path]:
    return files_inside(folder, folder.rglob("*.dcm")) if folder is not None else []
