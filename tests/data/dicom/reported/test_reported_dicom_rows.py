"""One odd row, file or header in an archive that is otherwise whole: one finding is refused, and the rest is read."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydicom.sequence import Sequence

from mammo_fed.data.dicom.findings import REASONS
from tests.data.dicom.reported.drawing import TOLERANCE, Archive, Told, as_stored, code, cut, header, read_rows, scene, write

CRANIO_CAUDAL = ("R-10242", "SRT", "cranio-caudal")
MEDIO_LATERAL_OBLIQUE = ("R-10226", "SRT", "medio-lateral oblique")
MAGNIFIED = ("R-102D6", "SRT", "Magnification")


def archive_of(folder: Path, count: int = 6) -> Archive:
    archive = Archive(folder / "archive")
    for number in range(count):
        image = header(as_stored(scene(number)), number=number)
        archive.add(f"lesion {number}", image=image, wanted=scene(number), file=f"{number}.dcm")
    return archive


ODD = {
    "no such file": ({"file": "gone.dcm"}, "missing_file"),
    "a file outside": ({"file": "../../elsewhere.dcm"}, "unusable_row"),
    "another system's folder": ({"file": "D:\\export\\0.dcm"}, "unusable_row"),
    "another word for a class": ({"label": "perhaps"}, "unknown_label"),
    "an assessment, no biopsy": ({"label": "BI-RADS 5"}, "unknown_label"),
    "no such view": ({"view": "ZZ"}, "unusable_row"),
    "no such split": ({"split": "holdout"}, "unusable_row"),
    "a corner missing": ({"top": ""}, "unusable_row"),
    "a corner in words": ({"left": "forty"}, "unusable_row"),
    "a box outside": ({"bottom": "3000"}, "lesion_outside"),
    "a box of parts of the image": ({"top": "0.3", "left": "0.2", "bottom": "0.7", "right": "0.6"}, "lesion_too_small"),
    "no patient": ({"patient": " "}, "unusable_row"),
    "a patient of the test split": ({"patient": "WOMAN 1009", "split": "test"}, "patient_in_two_splits"),
}
SPELT = {
    "a blank": {"label": "Malignant "},
    "capitals": {"label": "BENIGN"},
    "a number": {"label": "1.0"},
    "the other system's separator": {"file": "sub\\8.dcm"},
    "small letters": {"view": "mlo"},
    "a side": {"view": "L-CC"},
    "another view": {"view": "LM"},
    "an exponent": {"top": "9.6e1"},
    "a blank that does not break": {"patient": "Jane\u00a0Doe"},
    "capitals of a name": {"file": "0.DCM"},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Two lesions as they should be, one row of each odd kind, and one of each that is spelt in another way."""
    archive = archive_of(tmp_path_factory.mktemp("rows"), 2)
    image = header(as_stored(scene(8)), number=8)
    write(image, archive.root / "sub/8.dcm")
    for number, (name, (change, _)) in enumerate(ODD.items()):
        archive.add(name, **{"file": "1.dcm", "patient": f"odd {number}", "split": "train", "view": "CC", **change})
    for number, (name, change) in enumerate(SPELT.items()):
        archive.add(name, **{"file": "1.dcm", "patient": f"spelt {number}", "split": "train", "view": "CC", **change})
    for row in archive.rows[:2]:
        row.update(split="train", view="CC")
    return archive.ingest()


def test_dicom_rows_beside_odd_ones_are_read(told: Told) -> None:
    """What the table says of one lesion is no reason to lose the others; how many were lost is counted by reason."""
    assert told.code == 0
    assert told.off("lesion 1") < TOLERANCE
    # Whose rows say that she is of two splits, has no patch of either.
    assert told.about["refused"] == Counter([*(reason for _, reason in ODD.values()), "patient_in_two_splits"])
    assert len(told.rows) == 1 + len(SPELT)


@pytest.mark.parametrize("name", ODD)
def test_dicom_row_that_cannot_be_used_is_one_refused_finding(told: Told, name: str) -> None:
    """With the reason that is true."""
    assert told.reason(name) == ODD[name][1]


@pytest.mark.parametrize("name", SPELT)
def test_dicom_row_as_spreadsheets_write_it_is_read(told: Told, name: str) -> None:
    """Blanks, capitals and the other system's separator of folders leave no doubt of what is meant."""
    number = {"the other system's separator": 8, "capitals of a name": 0}.get(name, 1)
    assert told.off(name, cut(scene(number))) < TOLERANCE


@pytest.mark.parametrize(("separator", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-16")])
def test_dicom_table_of_another_country_or_program_is_read(tmp_path: Path, separator: str, encoding: str) -> None:
    """Semicolons where the comma is a decimal sign; tabs and UTF-16 where a spreadsheet saves "Unicode text"."""
    archive = archive_of(tmp_path, 3)
    archive.rows[0].update(top="96,0", left="40,0")
    archive.rows[1]["patient"] = "M\u00fcller"
    archive.write_table()
    text = (archive.root / "findings.csv").read_text(encoding="utf-8")
    lines = [separator.join(line) for line in csv.reader(text.splitlines())]
    (archive.root / "findings.csv").write_text("\n".join([*lines, separator * 8, ""]), encoding=encoding)
    archive.rows.clear()
    told = archive.ingest()
    assert (told.code, told.about["refused"]) == (0, {})
    assert max(told.off(f"lesion {number}") for number in range(3)) < TOLERANCE


def test_dicom_row_that_stands_twice_counts_once(tmp_path: Path) -> None:
    """A finding named twice, in a table joined with itself: the first is taken."""
    archive = archive_of(tmp_path)
    archive.rows.append(dict(archive.rows[2]))
    told = archive.ingest()
    assert (told.code, told.about["refused"]) == (0, {"repeated_row": 1})
    assert max(told.off(f"lesion {number}") for number in range(6)) < TOLERANCE


def test_dicom_archive_of_which_most_is_refused_is_worth_a_word(tmp_path: Path) -> None:
    """Nothing is wrong with what is left, and yet it is not the hospital's mammograms."""
    archive = archive_of(tmp_path, 12)
    for number in range(4, 12):
        archive.add("", image=header(as_stored(scene(number)), number=number, Modality="CR"), file=f"{number}.dcm")
        archive.rows.pop()
    told = archive.ingest()
    assert (told.code, told.about["refused"]) == (0, {"wrong_modality": 8})
    assert told.level("refused_findings") == "warning"
    assert any("preflight" in line and "refused" in line for line in told.said.splitlines())


# How a header says its scale, and the pixels of 6 mm in the breast.
SCALES: dict[str, tuple[dict[str, Any], str]] = {
    # Imager Pixel Spacing is at the detector (PS3.3 C.8.7.10): at a magnification of 1.8 a pixel shows 0.07 / 1.8 mm.
    "contact": ({}, "86"),
    "magnified": ({"EstimatedRadiographicMagnificationFactor": "1.8"}, "154"),
    "no factor": ({"EstimatedRadiographicMagnificationFactor": None}, "86"),
    # Pixel Spacing that repeats the detector's is the detector's (PS3.3 10.7.1.3).
    "repeated": ({"PixelSpacing": [0.07, 0.07], "EstimatedRadiographicMagnificationFactor": "1.8"}, "154"),
    # One that was calibrated is in the breast, and not divided again.
    "calibrated": (
        {
            "PixelSpacing": [0.07 / 1.8, 0.07 / 1.8],
            "PixelSpacingCalibrationType": "GEOMETRY",
            "EstimatedRadiographicMagnificationFactor": "1.8",
        },
        "154",
    ),
    "pixel spacing alone": ({"ImagerPixelSpacing": None, "PixelSpacing": [0.07, 0.07]}, "86"),
    # Of digitised film.
    "scanned": ({"ImagerPixelSpacing": None, "NominalScannedPixelSpacing": [0.07, 0.07]}, "86"),
    "none": ({"ImagerPixelSpacing": None}, ""),
    "micrometres": ({"ImagerPixelSpacing": [70, 70]}, ""),
}


def test_dicom_crop_in_millimetres_is_in_those_of_the_breast(tmp_path: Path) -> None:
    """However the header says its scale; where it does not, the finding is refused."""
    archive = Archive(tmp_path / "archive")
    item = code(*CRANIO_CAUDAL, ViewModifierCodeSequence=Sequence([code(*MAGNIFIED)]))
    for number, (name, (how, _)) in enumerate(SCALES.items()):
        how = {attribute: value for attribute, value in how.items() if value or attribute == "ImagerPixelSpacing"}
        if name == "magnified":
            how["ViewCodeSequence"] = Sequence([item])
        archive.add(name, image=header(as_stored(scene(number)), number=number, **how), file=f"{number}.dcm")
    told = archive.ingest("--side-mm", "6")
    sides = {Path(row["image"]).stem: row["crop_side"] for row in told.provenance}
    found = {name: sides.get(told.pseudonym(name), "") for name in SCALES}
    assert found == {name: side for name, (_, side) in SCALES.items()}
    assert {told.reason(name) for name, side in found.items() if not side} == {"unknown_spacing"}


def test_dicom_view_is_known_by_its_code(tmp_path: Path) -> None:
    """View Code Sequence is required of mammograms, View Position is not (PS3.3 C.8.11.7); three schemes have codes."""
    archive = Archive(tmp_path / "archive")
    said = [
        CRANIO_CAUDAL,
        MEDIO_LATERAL_OBLIQUE,
        ("399162004", "SCT", "cc"),
        ("399368009", "SCT", "mlo"),
        ("R-10226", "SNM3", "mlo"),
    ]
    for number, words in enumerate(said):
        how = {"ViewPosition": None, "ViewCodeSequence": Sequence([code(*words)])}
        archive.add(f"{number}", image=header(as_stored(scene(number)), number=number, **how), file=f"{number}.dcm")
    told = archive.ingest()
    views = {Path(row["image"]).stem: row["view"] for row in told.rows}
    assert [views[told.pseudonym(str(number))] for number in range(5)] == ["CC", "MLO", "CC", "MLO", "MLO"]


def test_dicom_file_replaced_by_one_of_equal_size_and_time_makes_its_patch_again(tmp_path: Path) -> None:
    """Synchronising tools keep times, and uncompressed images of one detector have one size: content is what counts."""
    archive = archive_of(tmp_path)
    archive.ingest()
    path = archive.root / "3.dcm"
    before = path.stat()
    header(as_stored(scene(33)), number=3).save_as(path, enforce_file_format=True)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert archive.ingest().off("lesion 3", cut(scene(33))) < TOLERANCE


def test_dicom_problems_are_a_table_of_pseudonyms_in_the_cohort_and_of_true_names_beside_the_salt(tmp_path: Path) -> None:
    """The cohort folder holds nothing of a patient; who asks for names gets them beside the key of the pseudonyms."""
    archive = archive_of(tmp_path)
    archive.rows[1]["file"] = "ZQX-DOE.dcm"
    archive.rows[1]["name"] = "ZQX lesion"
    told = archive.ingest(explain=False)
    named = told.cohort.with_name(f"{told.cohort.name}.problems.csv")
    assert not named.exists()
    (row,) = read_rows(told.cohort / "problems.csv")
    assert row == {"finding": told.pseudonym("ZQX lesion"), "reason": "missing_file"}
    assert "ZQX" not in told.said
    assert "ZQX" in archive.ingest().said
    assert "ZQX" in named.read_text(encoding="utf-8")
    assert named.stat().st_mode & 0o077 == 0
    assert not [path for path in told.cohort.rglob("*") if path.is_file() and b"ZQX" in path.read_bytes()]


def test_dicom_archive_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    """Then there is no cohort to speak of, and the reasons are said."""
    archive = archive_of(tmp_path, 3)
    for row in archive.rows:
        row["file"] = f"gone/{row['file']}"
    told = archive.ingest(explain=False)
    assert told.code == 2
    assert "missing file: 3" in told.said
    assert set(told.about["refused"]) <= set(REASONS)
