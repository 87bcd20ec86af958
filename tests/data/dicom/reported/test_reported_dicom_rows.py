"""One odd row, file or header in an archive that is otherwise whole: one finding is refused, and the rest is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydicom.sequence import Sequence

from mammo_fed.data.dicom.findings import REASONS
from tests.data.dicom.reported.drawing import TOLERANCE, Archive, Told, as_stored, code, header, read_rows, scene

CRANIO_CAUDAL = ("R-10242", "SRT", "cranio-caudal")
MEDIO_LATERAL_OBLIQUE = ("R-10226", "SRT", "medio-lateral oblique")
MAGNIFIED = ("R-102D6", "SRT", "Magnification")


def archive_of(folder: Path, count: int = 6) -> Archive:
    archive = Archive(folder / "archive")
    for number in range(count):
        image = header(as_stored(scene(number)), number=number)
        archive.add(f"lesion {number}", image=image, wanted=scene(number), file=f"{number}.dcm")
    return archive


def whole(told: Told, *, but: int) -> None:
    """All lesions but one are as drawn, and the counts add up."""
    assert max(told.off(f"lesion {number}") for number in range(6) if number != but) < TOLERANCE
    about = told.about
    assert about["refused"] == {told.reason(f"lesion {but}"): 1}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("file", "gone.dcm", "missing_file"),
        ("file", "../../elsewhere.dcm", "unusable_row"),
        ("label", "perhaps", "unknown_label"),
        ("label", "BI-RADS 5", "unknown_label"),
        ("view", "ZZ", "unusable_row"),
        ("split", "holdout", "unusable_row"),
        ("top", "", "unusable_row"),
        ("left", "forty", "unusable_row"),
        ("patient", " ", "unusable_row"),
    ],
)
def test_dicom_row_that_cannot_be_used_is_one_refused_finding(tmp_path: Path, column: str, value: str, reason: str) -> None:
    """What the table says of one lesion is no reason to lose the others; how many were lost is counted by reason."""
    archive = archive_of(tmp_path)
    for row in archive.rows:
        row.setdefault(column, "CC" if column == "view" else "train")
    archive.rows[3][column] = value
    told = archive.ingest()
    assert told.code == 0
    assert told.reason("lesion 3") == reason
    whole(told, but=3)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("label", "Malignant "),
        ("label", "BENIGN"),
        ("file", "sub\\3.dcm"),
        ("view", "mlo"),
        ("top", "96,0"),
        ("patient", "Jane\u00a0Doe"),
    ],
)
def test_dicom_row_as_spreadsheets_write_it_is_read(tmp_path: Path, column: str, value: str) -> None:
    """Blanks, capitals, a decimal comma and the other system's separator of folders leave no doubt of what is meant."""
    archive = archive_of(tmp_path)
    for row in archive.rows:
        row.setdefault(column, "CC")
    archive.rows[3][column] = value
    if column == "file":
        (archive.root / "sub").mkdir()
        os.rename(archive.root / "3.dcm", archive.root / "sub/3.dcm")
    told = archive.ingest()
    assert (told.code, told.about["refused"]) == (0, {})
    assert told.off("lesion 3") < TOLERANCE


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


def test_dicom_magnified_view_is_cropped_in_millimetres_of_the_breast(tmp_path: Path) -> None:
    """Imager Pixel Spacing is at the detector (PS3.3 C.8.7.10): at a magnification of 1.8 a pixel shows 0.07 / 1.8 mm."""
    archive = archive_of(tmp_path, 2)
    item = code(*CRANIO_CAUDAL, ViewModifierCodeSequence=Sequence([code(*MAGNIFIED)]))
    how = {"EstimatedRadiographicMagnificationFactor": "1.8", "ViewCodeSequence": Sequence([item])}
    archive.add("near", image=header(as_stored(scene(9)), number=9, **how), file="9.dcm")
    told = archive.ingest("--side-mm", "6")
    sides = {row["source_sha256"]: row["crop_side"] for row in told.provenance}
    assert sorted(sides.values()) == ["154", "86", "86"]


def test_dicom_view_is_known_by_its_code(tmp_path: Path) -> None:
    """View Code Sequence is required of mammograms, View Position is not (PS3.3 C.8.11.7); three schemes have codes."""
    archive = Archive(tmp_path / "archive")
    said = [
        CRANIO_CAUDAL,
        MEDIO_LATERAL_OBLIQUE,
        ("399162004", "SCT", "cc"),
        ("399368009", "SCT", "mlo"),
        ("Y-X1770", "SNM3", "mlo"),
    ]
    for number, words in enumerate(said):
        how = {"ViewPosition": None, "ViewCodeSequence": Sequence([code(*words)])}
        archive.add(f"{number}", image=header(as_stored(scene(number)), number=number, **how), file=f"{number}.dcm")
    told = archive.ingest()
    views = {row["image"]: row["view"] for row in told.rows}
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
    archive.wanted["lesion 3"] = scene(33)[96:224, 40:168]
    assert archive.ingest().off("lesion 3") < TOLERANCE


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
