"""What an ingestion can be asked for: raw data, synthetic views, one physical scale, a blank background, the paper's range."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    DigitalMammographyXRayImageStorageForProcessing,
)

from mammo_fed.data.cohort import MALIGNANT
from mammo_fed.data.dicom.findings import Box, Finding
from mammo_fed.data.dicom.geometry import CropRule
from mammo_fed.data.dicom.ingest import Ingested, IngestPlan, ingest
from mammo_fed.data.dicom.patch import PatchRecipe
from mammo_fed.data.patches import read_patches
from mammo_fed.data.pseudonyms import Pseudonyms
from tests.data.dicom.making import mammogram, write

ROWS, COLUMNS, SIZE = 256, 192, 64
BOX = Box(top=90, left=30, bottom=90 + SIZE, right=30 + SIZE)
CROP = CropRule(margin=0.0, smallest=1, size=SIZE)
BRIGHTEST = 0.9


def scene() -> NDArray[np.float64]:
    """A breast with a mass on black air, in [0, 1]; the brightest pixel is in the mass."""
    down, across = np.mgrid[-1 : 1 : ROWS * 1j, 0 : 1 : COLUMNS * 1j]
    texture = 0.3 + 0.03 * np.random.default_rng(1).standard_normal((ROWS, COLUMNS))
    shown = np.where(np.hypot(down, across / 0.8) < 1, texture, 0.0)
    shown[110:140, 50:80] += 0.3
    shown[120, 60] = BRIGHTEST
    return np.clip(shown, 0.0, BRIGHTEST)


def stored(shown: NDArray[np.float64]) -> NDArray[np.uint16]:
    return np.round(shown * 4095).astype(np.uint16)


def ingested(tmp_path: Path, header: Dataset, *, lesion: Box = BOX, **recipe: Any) -> tuple[Ingested, Path]:
    path = write(header, tmp_path / "a.dcm")
    made = PatchRecipe(**{"crop": CROP, "windowing": "minmax", "modality": "MG", **recipe})
    finding = Finding(image=path, lesion=lesion, patient="one", name="a", label=MALIGNANT, split="train")
    done = ingest(
        [finding],
        tmp_path / "cohort",
        plan=IngestPlan(source="csv", recipe=made, public=True, processes=1),
        pseudonyms=Pseudonyms.kept_at(tmp_path / "salt"),
    )
    return done, tmp_path / "cohort"


def patch_in(folder: Path) -> NDArray[np.float32]:
    pixels: NDArray[np.float32] = read_patches(sorted((folder / "patches").glob("*.png")), image_size=None)[0]
    return pixels


def noted(folder: Path) -> dict[str, str]:
    with (folder / "provenance.csv").open(newline="") as file:
        return next(csv.DictReader(file))


def drawn(shown: NDArray[np.float64], *, most: float = BRIGHTEST) -> NDArray[np.float64]:
    return np.clip(shown[90 : 90 + SIZE, 30 : 30 + SIZE] / most, 0.0, 1.0)


def raw(relation: str, sign: int) -> Dataset:
    """What a detector counts behind the scene: the more, the less is in the way."""
    if relation == "LIN":
        values = np.round(60000 * np.exp(-3 * scene()))
    else:
        values = np.round(4095 * (1 - scene() if sign > 0 else scene()))
    return mammogram(
        values.astype(np.uint16),
        SOPClassUID=DigitalMammographyXRayImageStorageForProcessing,
        PresentationIntentType="FOR PROCESSING",
        PixelIntensityRelationship=relation,
        PixelIntensityRelationshipSign=sign,
    )


@pytest.mark.parametrize(("relation", "sign"), [("LIN", 1), ("LOG", 1), ("LOG", -1)])
def test_dicom_raw_data_is_shown_as_tissue_where_it_is_asked_for(tmp_path, relation, sign):
    done, folder = ingested(tmp_path, raw(relation, sign), intent="processing")
    assert done.images == 1
    assert np.abs(patch_in(folder) - drawn(scene())).max() < 0.01
    assert done.taken["intent"] == {"processing": 1}


def test_dicom_raw_data_is_refused_unless_it_is_asked_for_and_says_what_its_values_are(tmp_path):
    assert ingested(tmp_path, raw("LIN", 1))[0].refused == {"for_processing": 1}
    silent = raw("LIN", 1)
    del silent.PixelIntensityRelationship
    assert ingested(tmp_path, silent, intent="any")[0].refused == {"unclear_polarity": 1}
    assert ingested(tmp_path, mammogram(stored(scene()), bits=12), intent="processing")[0].refused == {"for_presentation": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]},
        {"SeriesDescription": "L CC C-View"},
        {"ProtocolName": "synthetic 2D MLO"},
    ],
)
def test_dicom_view_that_was_computed_is_taken_only_where_it_is_asked_for(tmp_path, changes):
    header = mammogram(stored(scene()), bits=12, **changes)
    assert ingested(tmp_path, header)[0].refused == {"synthetic_view": 1}
    assert ingested(tmp_path, header, synthetic_views=True)[0].images == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"SOPClassUID": BreastTomosynthesisImageStorage},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.4"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "TOMO_PROJ"]},
    ],
)
def test_dicom_projection_of_a_tomosynthesis_is_refused_whatever_is_asked_for(tmp_path, changes):
    header = mammogram(stored(scene()), bits=12, **changes)
    assert ingested(tmp_path, header, synthetic_views=True, intent="any")[0].refused == {"tomosynthesis": 1}


@pytest.mark.parametrize(("code", "reason"), [("G-8310", "specimen"), ("127457009", "specimen")])
def test_dicom_specimen_is_known_by_its_view_code(tmp_path, code, reason):
    view = Dataset()
    view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = code, "SRT", "tissue specimen from breast"
    header = mammogram(stored(scene()), bits=12, ViewCodeSequence=Sequence([view]))
    assert ingested(tmp_path, header)[0].refused == {reason: 1}


def marked_scene() -> NDArray[np.float64]:
    """With letters of lead beside the breast, brighter than it, and so near that the crop shows some."""
    shown = scene()
    shown[100:112, 165:170] = shown[100:112, 175:180] = 1.0
    return shown


def test_dicom_marker_beside_the_breast_is_not_for_the_range_but_for_the_papers(tmp_path):
    header = mammogram(stored(marked_scene()), bits=12)
    done, folder = ingested(tmp_path, header)
    assert done.images == 1
    assert np.abs(patch_in(folder) - drawn(scene())).max() < 0.01
    assert noted(folder)["notes"] == "marker_left_out"
    ingested(tmp_path, header, windowing="paper")
    assert np.abs(patch_in(folder) - drawn(scene(), most=1.0)).max() < 0.01
    assert noted(folder)["notes"] == ""


def test_dicom_background_is_black_where_it_is_asked_for(tmp_path):
    header = mammogram(stored(marked_scene()), bits=12)
    lesion = Box(top=60, left=0, bottom=60 + COLUMNS, right=COLUMNS)
    whole = CropRule(margin=0.0, smallest=1, size=COLUMNS)
    _, folder = ingested(tmp_path, header, lesion=lesion, crop=whole, burned_in=True)
    assert patch_in(folder)[40:52, 165:170].min() > 0.9
    ingested(tmp_path, header, lesion=lesion, crop=whole, burned_in=True, blank_background=True)
    assert patch_in(folder)[:, 165:].max() == 0.0
    # The box holds the marker: it is in the range.
    assert np.abs(patch_in(folder)[30:94, 30:94] - drawn(scene(), most=1.0)).max() < 0.01


def test_dicom_pixels_of_one_physical_size_are_cut_as_large_as_each_image_needs(tmp_path, capsys):
    from mammo_fed.cli.main import main

    archive = tmp_path / "archive"
    archive.mkdir()
    for name, spacing in (("fine", 0.05), ("coarse", 0.1)):
        write(mammogram(stored(scene()), bits=12, ImagerPixelSpacing=[spacing, spacing]), archive / f"{name}.dcm")
    (archive / "findings.csv").write_text(
        "file,patient,label,top,left,bottom,right,name\n"
        "fine.dcm,one,malignant,100,40,140,80,fine\ncoarse.dcm,two,benign,100,40,140,80,coarse\n"
    )
    command = ["data", "ingest", str(archive), str(tmp_path / "cohort"), "--size", "32", "--public"]
    assert main([*command, "--spacing-mm", "0.2"]) == 0
    with (tmp_path / "cohort" / "provenance.csv").open(newline="") as file:
        sides = {row["spacing_down_mm"]: row["crop_side"] for row in csv.DictReader(file)}
    assert sides == {"0.05": "128", "0.1": "64"}
    assert main([*command, "--spacing-mm", "0"]) == 2
    assert "--spacing-mm=0.0 must be above 0" in capsys.readouterr().err


def test_dicom_box_that_was_drawn_on_a_smaller_copy_is_scaled_and_on_another_shape_refused(tmp_path):
    header = mammogram(stored(scene()), bits=12)
    half = Box(top=45, left=15, bottom=45 + SIZE / 2, right=15 + SIZE / 2, drawn_on=(ROWS // 2, COLUMNS // 2))
    _, folder = ingested(tmp_path, header, lesion=half)
    assert np.abs(patch_in(folder) - drawn(scene())).max() < 0.01
    turned = Box(top=45, left=15, bottom=77, right=47, drawn_on=(COLUMNS, ROWS))
    assert ingested(tmp_path, header, lesion=turned)[0].refused == {"mask_mismatch": 1}
