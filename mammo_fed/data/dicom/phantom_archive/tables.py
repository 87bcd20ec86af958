"""The tables and folders of each source, imitated for an archive of phantom patients."""

from __future__ import annotations

import csv
import hashlib
import plistlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from mammo_fed.data.cohort import MALIGNANT
from mammo_fed.data.dicom.findings import Box
from mammo_fed.data.dicom.phantom_archive.writing import Depth, Encoding, mammogram_header, write_dicom

__all__ = ["FORMS", "TABLES", "Drawn", "Form", "PhantomTree", "path_of"]

Form = Literal["csv", "cbis_ddsm", "bcdr", "inbreast", "cmmd", "vindr_mammo", "embed"]
LONG: Final[Mapping[str, str]] = {"L": "LEFT", "R": "RIGHT"}
CONTOUR_POINTS: Final = 48


@dataclass(frozen=True, kw_only=True)
class PhantomTree:
    """How the archive looks.

    Attributes:
      form: the source whose files it imitates.
      encoding: of the pixels.
      depth: how values are stored.
      rows, columns: size of the mammograms.
      decorate: adds attributes to a header, such as names that must not leave the site; given the header and the patient.
    """

    form: Form
    encoding: Encoding = "explicit"
    depth: Depth = "mono2_16"
    rows: int = 512
    columns: int = 384
    decorate: Callable[[Dataset, str], None] = lambda *_: None


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """One mass as it was put into a mammogram.

    Attributes:
      patient: identifier in the cohort.
      label: MALIGNANT or BENIGN.
      view: "CC" or "MLO".
      split: "train" or "test".
      side: "L" or "R".
      number: of the mammogram, from 0.
      box: around the mass; a square.
      values: stored values inside the box.
    """

    patient: str
    label: int
    view: str
    split: str
    side: str
    number: int
    box: Box
    values: NDArray[Any]

    @property
    def person(self) -> str:
        """The patient's number as CBIS-DDSM writes it."""
        return f"P_{int(self.patient.rpartition('-')[2]):05d}"


def path_of(one: Drawn, form: Form) -> str:
    """Where the mammogram lies below the archive."""
    match form:
        case "csv":
            return f"images/{one.number}.dcm"
        case "cbis_ddsm":
            return f"{_cbis_folder(one)}/1.3.6.{one.number}/1.3.7.{one.number}/1-1.dcm"
        case "bcdr":
            return f"{one.person}/img_{one.number}.dcm"
        case "inbreast":
            view = "CC" if one.view == "CC" else "ML"
            return f"AllDICOMs/{20000000 + one.number}_{int(one.person[2:]):016x}_MG_{one.side}_{view}_ANON.dcm"
        case "cmmd":
            return f"D1-{one.person[2:]}/1.3.6.{one.number}/1.3.7.{one.number}/1-{one.number + 1}.dcm"
        case "vindr_mammo":
            return f"images/{_hashed(one.person)}/{_hashed(str(one.number))}.dicom"
        case "embed":
            return f"images/cohort_1/{_empi(one)}/{_acc(one)}/1.3.8.{one.number}.dcm"


def _cbis_folder(one: Drawn) -> str:
    return f"Mass-{'Training' if one.split == 'train' else 'Test'}_{one.person}_{LONG[one.side]}_{one.view}"


def _write_csv(root: Path, drawn: Sequence[Drawn], tree: PhantomTree) -> None:  # noqa: ARG001 - all are called alike
    rows = [(path_of(one, "csv"), one.patient, _word(one), *(_corners(one)), one.view, one.split) for one in drawn]
    _table(root / "findings.csv", ("file", "patient", "label", "top", "left", "bottom", "right", "view", "split"), rows)


def _write_cbis(root: Path, drawn: Sequence[Drawn], tree: PhantomTree) -> None:
    header = ["patient_id", "breast_density", "left or right breast", "image view", "abnormality id", "abnormality type"]
    header += ["pathology", "image file path", "cropped image file path", "ROI mask file path"]
    for split, name in (("train", "mass_case_description_train_set.csv"), ("test", "mass_case_description_test_set.csv")):
        rows = []
        for one in drawn:
            if one.split != split:
                continue
            paths = _write_mask_and_crop(root, one, tree)
            pathology = "MALIGNANT" if one.label == MALIGNANT else ("BENIGN", "BENIGN_WITHOUT_CALLBACK")[one.number % 2]
            about = (one.person, 2, LONG[one.side], one.view, 1, "mass", pathology)
            # The published tables break lines inside quoted paths, and their identifiers are not those of the download.
            rows.append((*about, f"{_cbis_folder(one)}/9.9/9.9/000000.dcm", f"{paths[0]}\n", f"{paths[1]}\n"))
        _table(root / name, header, rows)


def _write_mask_and_crop(root: Path, one: Drawn, tree: PhantomTree) -> tuple[str, str]:
    size = len(one.values)
    mask = np.zeros((tree.rows, tree.columns), np.uint8)
    down, across = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    # A disc that touches all four sides of the box.
    top, left = int(one.box.top), int(one.box.left)
    mask[top : top + size, left : left + size] = 255 * (np.hypot(down, across) <= 1.0 + 1.5 / size)
    folder = f"{_cbis_folder(one)}_1"
    series = "1.3.7.1" if one.number % 3 else "1.3.7.2"
    paths = [f"{folder}/1.3.6.1/1.3.7.1/1-1.dcm", f"{folder}/1.3.6.1/{series}/1-2.dcm"]
    if one.number % 2:
        paths.reverse()
    for path, pixels in zip(paths, (one.values, mask), strict=True):
        depth: Depth = "mono2_8" if pixels is mask else tree.depth
        header = mammogram_header(pixels, depth, name=f"{path}", view=one.view, side=one.side)
        tree.decorate(header, one.patient)
        write_dicom(header, root / path, tree.encoding)
    return paths[0], paths[1]


def _write_bcdr(root: Path, drawn: Sequence[Drawn], tree: PhantomTree) -> None:  # noqa: ARG001
    header = ["patient_id", "study_id", "series", "lesion_id", "segmentation_id", "image_view", "image_filename"]
    header += ["lw_x_points", "lw_y_points", "mammography_type", "mammography_nodule", "classification"]
    rows = []
    for one in drawn:
        points = _contour(one)
        across, down = (" ".join(f"{value:g}" for value in column) for column in (points[:, 1], points[:, 0]))
        view = {("R", "CC"): 1, ("L", "CC"): 2, ("R", "MLO"): 3, ("L", "MLO"): 4}[one.side, one.view]
        file = f" {Path(path_of(one, 'bcdr')).with_suffix('.tif')}"
        grade = " Malign" if one.label == MALIGNANT else " Benign"
        rows.append((one.person, one.number, 1, 1, 1, view, file, across, down, 1, 1, grade))
    _table(root / "bcdr_d01_outlines.csv", header, rows)


def _write_inbreast(root: Path, drawn: Sequence[Drawn], tree: PhantomTree) -> None:  # noqa: ARG001
    (root / "AllXML").mkdir()
    for one in drawn:
        points = [f"({across:f}, {down:f})" for down, across in _contour(one)]
        regions = [{"Name": "Mass", "Point_px": points}, {"Name": "Calcification", "Point_px": ["(1.0, 1.0)"]}]
        content = plistlib.dumps({"Images": [{"ImageIndex": 0, "NumberOfROIs": 2, "ROIs": regions}]})
        (root / "AllXML" / f"{20000000 + one.number}.xml").write_bytes(content)


def _write_cmmd(root: Path, drawn: Sequence[Drawn], tree: PhantomTree) -> None:  # noqa: ARG001
    sides = dict.fromkeys((f"D1-{one.person[2:]}", one.side) for one in drawn)
    labels = {(f"D1-{one.person[2:]}", one.side): one.label for one in drawn}
    rows = [
        (patient, side, 50, 1, "mass", "Malignant" if labels[patient, side] == MALIGNANT else "Benign", "")
        for patient, side in sides
    ]
    header = ("ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype")
    _table(root / "CMMD_clinicaldata_revision.csv", header, rows)


def _hashed(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _empi(one: Drawn) -> int:
    return 10_000_000 + int(one.person[2:])


def _acc(one: Drawn) -> int:
    return 20_000_000 + one.number


def _write_vindr(root: Path, drawn: Sequence[Drawn], tree: PhantomTree) -> None:
    header = ["study_id", "series_id", "image_id", "laterality", "view_position", "height", "width", "breast_birads"]
    header += ["breast_density", "finding_categories", "finding_birads", "xmin", "ymin", "xmax", "ymax", "split"]
    rows: list[Sequence[object]] = []
    for one in drawn:
        path = Path(path_of(one, "vindr_mammo"))
        top, left, bottom, right = _corners(one)
        about = (path.parent.name, _hashed(f"series {one.number}"), path.stem, one.side, one.view, tree.rows, tree.columns)
        split = "training" if one.split == "train" else "test"
        rows.append((*about, "BI-RADS 4", "DENSITY B", "['Mass']", "BI-RADS 4", left, top, right, bottom, split))
        rows.append((*about, "BI-RADS 1", "DENSITY B", "['No Finding']", "", "", "", "", "", split))
    _table(root / "finding_annotations.csv", header, rows)


def _write_embed(root: Path, drawn: Sequence[Drawn], tree: PhantomTree) -> None:  # noqa: ARG001
    (root / "tables").mkdir()
    clinical, metadata = [], []
    for one in drawn:
        top, left, bottom, right = _corners(one)
        severity = 0 if one.label == MALIGNANT else 4
        clinical.append((_empi(one), _acc(one), 1, one.side, "O", "", one.side, f"{severity}.0"))
        # Paths are those of the machine that the data comes from.
        path = f"/mnt/NAS2/mammo/anon_dicom/{path_of(one, 'embed').removeprefix('images/')}"
        region = f"(({top}, {left}, {bottom}, {right}),)"
        metadata.append((_empi(one), _acc(one), path, one.side, one.view, "2D", 1, region))
    findings = ("empi_anon", "acc_anon", "numfind", "side", "massshape", "calcfind", "bside", "path_severity")
    _table(root / "tables" / "EMBED_OpenData_clinical.csv", findings, clinical)
    images = ("empi_anon", "acc_anon", "anon_dicom_path", "ImageLateralityFinal", "ViewPosition", "FinalImageType")
    _table(root / "tables" / "EMBED_OpenData_metadata.csv", (*images, "num_roi", "ROI_coords"), metadata)


TABLES: Final[Mapping[Form, Callable[[Path, Sequence[Drawn], PhantomTree], None]]] = {
    "csv": _write_csv,
    "cbis_ddsm": _write_cbis,
    "bcdr": _write_bcdr,
    "inbreast": _write_inbreast,
    "cmmd": _write_cmmd,
    "vindr_mammo": _write_vindr,
    "embed": _write_embed,
}
FORMS: Final[tuple[Form, ...]] = tuple(TABLES)


def _word(one: Drawn) -> str:
    return "malignant" if one.label == MALIGNANT else "benign"


def _corners(one: Drawn) -> tuple[str, ...]:
    return tuple(f"{edge:g}" for edge in (one.box.top, one.box.left, one.box.bottom, one.box.right))


def _contour(one: Drawn) -> NDArray[np.float64]:
    """A circle inside the box that touches its sides, as (row, column)."""
    middle = np.array([one.box.top + one.box.bottom, one.box.left + one.box.right]) / 2
    turn = np.arange(CONTOUR_POINTS) * (2 * np.pi / CONTOUR_POINTS)
    circle: NDArray[np.float64] = np.round(middle + np.stack([np.sin(turn), np.cos(turn)], axis=1) * (len(one.values) / 2), 3)
    return circle


def _table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
