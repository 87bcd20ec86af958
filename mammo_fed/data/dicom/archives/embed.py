"""EMBED (Emory Breast Imaging Dataset), its open data on AWS: regions that radiologists marked, labelled by pathology.

Relied on, by the data's own description (github.com/Emory-HITI/EMBED_Open_Data):

  EMBED_OpenData_metadata[_reduced].csv   one row for each image: empi_anon (patient), acc_anon (examination), anon_dicom_path
      (of which the last folders and the file's name are looked for below the archive), ImageLateralityFinal, ViewPosition,
      FinalImageType, num_roi, ROI_coords (rectangles of `ymin, xmin, ymax, xmax` in pixels)
  EMBED_OpenData_clinical[_reduced].csv   one row for each finding, and each of its biopsies: empi_anon, acc_anon, numfind, side
      (L, R; B or empty for both), massshape, calcfind, bside (of the pathology), path_severity

Regions and findings are linked by patient, examination and side only. So a region has a label where all findings of its breast
in that examination are masses (shapes round, oval, irregular, generic) of one pathology: 0 and 1 (invasive, in situ) are
malignant, 4 and 5 (benign, normal tissue) are benign, none is no label. High-risk and borderline lesions (2, 3) and other
cancers (6) are neither. Breasts of other findings are counted as such. Only 2D images are read; no split is published, so all
is `train`.

Source: Jeong et al., Radiology: Artificial Intelligence 5(1), 2023.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.data.dicom.archives.places import Places, tables_named
from mammo_fed.data.dicom.archives.saved_tables import Repeats, SavedTable, TableRow, open_table, unusable
from mammo_fed.data.dicom.archives.words import is_blank, side_of, view_of, whole
from mammo_fed.data.dicom.findings import Box, Finding, Skipped, SkippedFinding
from mammo_fed.errors import DataError

__all__ = ["findings"]

CLINICAL: Final = re.compile(r"embed_opendata_clinical.*\.csv", re.IGNORECASE)
METADATA: Final = re.compile(r"embed_opendata_metadata.*\.csv", re.IGNORECASE)
OF_FINDINGS: Final = ("empi_anon", "acc_anon", "side", "massshape", "path_severity")
OF_IMAGES: Final = (
    "empi_anon",
    "acc_anon",
    "anon_dicom_path",
    "ImageLateralityFinal",
    "FinalImageType",
    "num_roi",
    "ROI_coords",
)
MASSES: Final = frozenset("GROX")
SEVERITIES: Final[Mapping[str, int]] = {"0": MALIGNANT, "1": MALIGNANT, "4": BENIGN, "5": BENIGN}
NEITHER: Final = frozenset("236")
# From the worst; the table numbers cancers of elsewhere last.
WORST_FIRST: Final = "0162345"
BOTH: Final = ("", "B")
MISSING: Final = ("", "nan", "none")
NUMBER: Final = r"\s*([-+]?\d+(?:\.\d+)?)\s*"
RECTANGLE: Final = re.compile(rf"[\[(]{NUMBER},{NUMBER},{NUMBER},{NUMBER},?\s*[\])]", re.ASCII)
FULL_FIELD: Final = "2d"
SYNTHETIC: Final = ("c-view", "cview")
# cohort_1/<patient>/<study>/<file>: what a copy of the data may lack from the front.
FOLDERS: Final = 4
BELOW: Final = ("", "images")


@dataclass(kw_only=True)
class _Described:
    """One finding of an examination: whether it is a mass, and the severities of its biopsies."""

    mass: bool
    severities: set[str] = field(default_factory=set)


Breasts = dict[tuple[str, str, str], dict[str, _Described]]


def findings(root: Path) -> Iterator[Finding | SkippedFinding]:
    """Regions of full-field images, in the order of the table of images.

    Raises:
      DataError: If a table is missing or not one of EMBED.
    """
    clinical = _table(root, CLINICAL, "EMBED_OpenData_clinical", OF_FINDINGS, ("numfind", "calcfind", "bside"))
    metadata = _table(root, METADATA, "EMBED_OpenData_metadata", OF_IMAGES, ("ViewPosition",))
    breasts: Breasts = {}
    yield from _read_findings(clinical, breasts)
    places, repeats = Places(root), Repeats()
    for row in metadata.rows():
        count = whole(row.fields["num_roi"])
        if row.fault or (count and not count.isdigit()):
            yield unusable(metadata, row, row.fault or "num_roi must be a whole number")
        elif int(count or 0):
            yield from _regions(metadata, row, breasts, places, repeats)


def _table(root: Path, pattern: re.Pattern[str], name: str, required: Sequence[str], optional: Sequence[str]) -> SavedTable:
    """The reduced table where both are there and it has the columns: it is the smaller one."""
    paths = sorted(tables_named(root, pattern), key=lambda path: ("reduced" not in path.name.casefold(), str(path)))
    if not paths:
        raise DataError(f"{root} holds no {name}.csv nor {name}_reduced.csv; give the folder of EMBED's images and tables")
    for path in paths[:-1]:
        with contextlib.suppress(DataError):
            return open_table(path, required=required, optional=optional)
    return open_table(paths[-1], required=required, optional=optional)


def _given(text: str) -> str:
    return "" if text.casefold() in MISSING else whole(text)


def _read_findings(table: SavedTable, breasts: Breasts) -> Iterator[SkippedFinding]:
    """Rows that cannot be used; the others are put into `breasts` by patient, examination and side."""
    for row in table.rows():
        fields = {name: _given(value) for name, value in row.fields.items()}
        side = fields["side"].upper()
        shape, severity = fields["massshape"].upper(), fields["path_severity"]
        if row.fault or side not in (*BOTH, "L", "R") or (severity and severity not in {*SEVERITIES, *NEITHER}):
            yield unusable(table, row, row.fault or "side must be L, R, B or empty, path_severity 0 to 6 or empty")
            continue
        if not (shape or fields.get("calcfind") or severity):
            continue
        of_biopsy = fields.get("bside", "").upper()
        for one in ("L", "R") if side in BOTH else (side,):
            found = breasts.setdefault((fields["empi_anon"], fields["acc_anon"], one), {})
            described = found.setdefault(fields.get("numfind", ""), _Described(mass=False))
            described.mass |= shape in MASSES and bool(shape)
            if severity and of_biopsy in (*BOTH, one):
                described.severities.add(severity)


def _regions(
    table: SavedTable, row: TableRow, breasts: Breasts, places: Places, repeats: Repeats
) -> Iterator[Finding | SkippedFinding]:
    fields = {name: _given(value) for name, value in row.fields.items()}
    image = PurePosixPath(fields["anon_dicom_path"].replace("\\", "/"))
    boxes = [tuple(map(float, found)) for found in RECTANGLE.findall(fields["ROI_coords"])]
    agreed = len(boxes) == int(fields["num_roi"])
    for number, box in enumerate(boxes if agreed else [()], start=1):
        name = f"{fields['acc_anon']} {image.name} {number}"
        try:
            if repeats.again((fields["acc_anon"], str(image), box)):
                name = f"{name} ({table.path.name} row {row.line})"
                raise Skipped("repeated_row", "the same region as above")
            if not agreed:
                raise Skipped("unreadable_annotation", f"ROI_coords gives {len(boxes)} regions, num_roi {fields['num_roi']}")
            yield _finding(fields, box, image, name, breasts, places)
        except Skipped as error:
            yield SkippedFinding(name=name, reason=error.reason, detail=f"{table.path} row {row.line}: {error.detail}")


def _finding(
    fields: Mapping[str, str], box: Sequence[float], image: PurePosixPath, name: str, breasts: Breasts, places: Places
) -> Finding:
    """Raises: Skipped, if the region cannot be used."""
    kind, side, view = (
        fields["FinalImageType"].casefold(),
        side_of(fields["ImageLateralityFinal"]),
        fields.get("ViewPosition", ""),
    )
    if kind != FULL_FIELD:
        raise Skipped(
            "synthetic_view" if kind in SYNTHETIC else "other_finding", f"FinalImageType={fields['FinalImageType']!r}"
        )
    if is_blank(fields["empi_anon"]):
        raise Skipped("unusable_row", "empi_anon is empty")
    if not side:
        raise Skipped("no_side", "ImageLateralityFinal is neither L nor R")
    label = _label(list(breasts.get((fields["empi_anon"], fields["acc_anon"], side), {}).values()))
    (top, bottom), (left, right) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    return Finding(
        image=_image(places, image),
        lesion=Box(top=top, left=left, bottom=bottom, right=right),
        patient=fields["empi_anon"],
        name=name,
        label=label,
        split="train",
        view=view_of(view) or "",
    )


def _label(described: Sequence[_Described]) -> int | None:
    """The one label of all findings of a breast; None without a biopsy.

    Raises:
      Skipped: If they are not masses, or not of one pathology.
    """
    if not any(one.mass for one in described):
        raise Skipped("other_finding", "the examination describes no mass in this breast")
    if not all(one.mass for one in described):
        raise Skipped("unusable_row", "the breast has a mass and another finding, and nothing says which of them the region is")
    # Of several specimens of one finding the worst counts.
    worst = {min(one.severities, key=WORST_FIRST.index, default="") for one in described}
    if len({SEVERITIES.get(severity, severity) for severity in worst}) > 1:
        raise Skipped("unusable_row", "the breast has masses of several pathologies, and nothing says which the region is")
    severity = worst.pop()
    if severity in NEITHER:
        raise Skipped("unknown_label", f"path_severity={severity} is neither malignant nor benign")
    return SEVERITIES[severity] if severity else None


def _image(places: Places, image: PurePosixPath) -> Path:
    parts = image.parts[-FOLDERS:]
    missing: Skipped | None = None
    for first in range(max(1, len(parts) - 1)):
        for below in BELOW:
            try:
                return places.find("/".join((*filter(None, (below,)), *parts[first:])))
            except Skipped as error:
                missing = missing or error
    raise missing or Skipped("unusable_row", "anon_dicom_path is empty")
