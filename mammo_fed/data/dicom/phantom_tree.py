"""Phantom patients as an archive of DICOM files, in the form of each source: to try an ingestion without a patient's data."""

from __future__ import annotations

import csv
import plistlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from mammo_fed.data.cohort import MALIGNANT, Cohort
from mammo_fed.data.dicom.findings import Box
from mammo_fed.data.dicom.writing import Depth, Encoding, mammogram_header, store, write_dicom
from mammo_fed.errors import InvalidSetting

__all__ = ["FORMS", "Drawn", "Form", "PhantomTree", "write_phantom_tree"]

Form = Literal["csv", "cbis_ddsm", "bcdr", "inbreast", "cmmd"]
# Mean brightness of the breast around a mass, in [0, 1]; the background is black.
BREAST: Final = 0.35
SIDES: Final = ("L", "R")
VIEWS: Final = ("CC", "MLO")
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


def write_phantom_tree(root: Path, cohort: Cohort, *, tree: PhantomTree) -> tuple[Drawn, ...]:
    """Write an archive with a mammogram for every patch of a phantom cohort; the same arguments give the same files.

    Args:
      root: folder to make; must be new or empty.
      cohort: drawn patches, square.
      tree: how the archive looks.

    Returns:
      What was drawn where, in the cohort's order.

    Raises:
      InvalidSetting: If the folder holds something, the patches do not fit into the mammograms, or an encoder is missing.
    """
    size = cohort.image_size[0]
    if root.exists() and any(root.iterdir()):
        raise InvalidSetting(f"FOLDER={root} must be new or empty, and it holds something; choose another")
    if size + 2 > min(tree.rows, tree.columns):
        raise InvalidSetting(f"patches of {size} pixels do not fit into mammograms of {tree.rows} x {tree.columns}")
    root.mkdir(parents=True, exist_ok=True)
    people: dict[str, list[int]] = {}
    for number, patient in enumerate(cohort.patients.tolist()):
        people.setdefault(patient, []).append(number)
    if max(map(len, people.values())) > len(SIDES) * len(VIEWS):
        raise InvalidSetting("a phantom patient has more than four patches; each goes into a mammogram of its own")
    persons = {patient: person for person, patient in enumerate(people)}
    drawn = []
    for number, patient in enumerate(cohort.patients.tolist()):
        image, one = _draw(cohort, number, tree, person=persons[patient], place=people[patient].index(number))
        header = mammogram_header(image, tree.depth, name=f"{cohort.name}/{number}", view=one.view, side=one.side)
        tree.decorate(header, one.patient)
        write_dicom(header, root / _path(one, tree.form), tree.encoding)
        drawn.append(one)
    TABLES[tree.form](root, drawn, tree)
    return tuple(drawn)


def _draw(cohort: Cohort, number: int, tree: PhantomTree, *, person: int, place: int) -> tuple[NDArray[Any], Drawn]:
    """A breast-shaped canvas with the patch inside."""
    size, rng = cohort.image_size[0], np.random.default_rng([number, tree.rows, tree.columns])
    down, across = np.mgrid[-1 : 1 : tree.rows * 1j, 0 : 1 : tree.columns * 1j]
    inside = np.hypot(down, across / 0.9) < 1
    scene = np.where(inside, BREAST + 0.05 * rng.standard_normal(inside.shape), 0.0).astype(np.float32)
    top = int(rng.integers(1, tree.rows - size))
    left = int(rng.integers(1, max(2, (tree.columns - size) // 2 + 1)))
    scene = np.where(inside, _surrounded(scene, cohort.pixels[number], top=top, left=left), 0.0)
    scene[top : top + size, left : left + size] = cohort.pixels[number]
    stored = store(np.clip(scene, 0.0, 1.0), tree.depth)
    return stored, Drawn(
        patient=f"person-{person + 1}",
        label=int(cohort.labels[number]),
        view=VIEWS[place % 2],
        split="test" if str(cohort.splits[number]) in ("test", "external") else "train",
        side=SIDES[place // 2],
        number=number,
        box=Box(top=float(top), left=float(left), bottom=float(top + size), right=float(left + size)),
        values=stored[top : top + size, left : left + size].copy(),
    )


def _surrounded(scene: NDArray[np.float32], patch: NDArray[np.float32], *, top: int, left: int) -> NDArray[np.float32]:
    """The scene with the patch in it, mirrored beyond its border and faded into what lies around.

    A border would be the same in all crops, and a preflight would take them for copies of one another.
    """
    pad = len(patch) // 2
    ramp = np.minimum(1.0, np.arange(1, len(patch) + 2 * pad + 1) / (pad + 1))
    weight = (np.minimum(ramp, ramp[::-1])[:, None] * np.minimum(ramp, ramp[::-1])).astype(np.float32)
    # On a larger canvas, for what is mirrored may lie beyond the scene.
    canvas = np.pad(scene, pad)
    place = (slice(top, top + len(weight)), slice(left, left + len(weight)))
    canvas[place] = weight * np.pad(patch, pad, mode="reflect") + (1 - weight) * canvas[place]
    return canvas[pad:-pad, pad:-pad]


def _path(one: Drawn, form: Form) -> str:
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


def _cbis_folder(one: Drawn) -> str:
    return f"Mass-{'Training' if one.split == 'train' else 'Test'}_{one.person}_{LONG[one.side]}_{one.view}"


def _write_csv(root: Path, drawn: Sequence[Drawn], tree: PhantomTree) -> None:  # noqa: ARG001 - all are called alike
    rows = [(_path(one, "csv"), one.patient, _word(one), *(_corners(one)), one.view, one.split) for one in drawn]
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
        file = f" {Path(_path(one, 'bcdr')).with_suffix('.tif')}"
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


TABLES: Final[Mapping[Form, Callable[[Path, Sequence[Drawn], PhantomTree], None]]] = {
    "csv": _write_csv,
    "cbis_ddsm": _write_cbis,
    "bcdr": _write_bcdr,
    "inbreast": _write_inbreast,
    "cmmd": _write_cmmd,
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
