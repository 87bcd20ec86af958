"""Who is a patient in archives as they come, and what of her leaves the archive: a word of the preflight, and nothing else."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless

from mammo_fed.data.dicom.findings import Box
from tests.data.dicom.reported.drawing import TOLERANCE, Archive, as_stored, code, header, scene

OTHER = Box(top=180, left=10, bottom=308, right=138)
# Not a name that occurs in pixels or numbers by chance.
NAME, NUMBER = "ZQXDOE^JANE", "99887766"


def test_dicom_file_under_two_identifiers_is_an_error(tmp_path: Path) -> None:
    """One mammogram with two lesions, a leading zero lost for one of them: the ledger would count one woman twice."""
    archive = Archive(tmp_path / "archive")
    for number in range(4):
        archive.add(
            f"a{number}", image=header(as_stored(scene(number)), number=number), file=f"{number}.dcm", patient=f"P{number + 10}"
        )
        archive.add(f"b{number}", file=f"{number}.dcm", patient=f"P0{number + 10}", box=OTHER)
    told = archive.ingest()
    assert told.level("one_file_two_patients") == "error"
    assert "one_file_two_patients" in told.said


def test_dicom_archive_with_one_identifier_for_all_is_worth_a_word(tmp_path: Path) -> None:
    """An anonymiser's word for everybody makes one patient of the cohort, to whom all of the budget is charged."""
    archive = Archive(tmp_path / "archive")
    for number in range(8):
        image = header(as_stored(scene(number)), number=number, PatientID="ANON")
        archive.add(f"{number}", image=image, file=f"{number}.dcm", patient="ANONYMOUS")
    assert archive.ingest().level("many_people_one_patient") == "warning"


def test_dicom_identifiers_that_differ_in_zeros_and_dashes_are_worth_a_word(tmp_path: Path) -> None:
    """They are different patients to the ledger; whether they are different people, only the hospital knows."""
    archive = Archive(tmp_path / "archive")
    for number, patient in enumerate(["0012345", "12345", "12-345", "12 345", "0012346", "12346"]):
        archive.add(f"{number}", image=header(as_stored(scene(number)), number=number), file=f"{number}.dcm", patient=patient)
    assert archive.ingest().level("similar_identifiers") == "warning"


@pytest.mark.parametrize("compressed", [False, True])
def test_dicom_archive_full_of_a_name_leaves_none_of_it_anywhere(tmp_path: Path, compressed: bool) -> None:
    """Folders, tables, nested and private attributes, preamble, group 2, overlays, icons and codestreams (PS3.15 annex E)."""
    archive = Archive(tmp_path / "archive")
    for number in range(3):
        image = header(as_stored(scene(number)), number=number, PatientName=NAME, PatientID=f"{NUMBER}{number}")
        for name in ("ImageComments", "SeriesDescription", "StationName", "ContentLabel", "InstitutionName"):
            setattr(image, name, NAME)
        item = code("R-10242", "SRT", NAME, PatientName=NAME)
        image.RequestAttributesSequence, image.ViewCodeSequence = Sequence([item]), Sequence([item])
        image.private_block(0x0009, f"{NAME} CREATOR", create=True).add_new(1, "LO", NAME)
        image.add_new(0x60004000, "LT", NAME)
        image.StudyInstanceUID, image.ViewPosition = f"1.2.3.{NUMBER}{number}", "ZQXDOE"
        image.file_meta.SourceApplicationEntityTitle = "ZQXDOE"
        image.preamble = (NAME.encode() * 20)[:128]
        if compressed:
            image.compress(JPEG2000Lossless, generate_instance_uid=False)
            frame = next(generate_frames(image.PixelData, number_of_frames=1))
            # A comment before the quantisation defaults (ISO 15444-1, A.9.2).
            at, comment = frame.index(b"\xff\x52"), NAME.encode()
            segment = b"\xff\x64" + struct.pack(">HH", len(comment) + 4, 1) + comment
            image.PixelData = encapsulate([frame[:at] + segment + frame[at:]])
        path = f"ZQXDOE_{NUMBER}/IM_ZQXDOE_{number}.dcm"
        archive.add(f"ZQXDOE {number}", image=image, wanted=scene(number), file=path, patient=f"ZQXDOE {NUMBER}{number}")
    odd = header(as_stored(scene(7)), number=7, PatientName=NAME, Modality="ZQXDOE")
    archive.add("ZQXDOE 7", image=odd, file=f"ZQXDOE_{NUMBER}/odd.dcm", patient="ZQXDOE 7")
    archive.add("ZQXDOE 8", file=f"ZQXDOE_{NUMBER}/gone.dcm", patient="ZQXDOE 8")
    archive.add("ZQXDOE 9", file=f"ZQXDOE_{NUMBER}/IM_ZQXDOE_0.dcm", patient="ZQXDOE 9", label="ZQXDOE")
    archive.rows.append(dict(archive.rows[0]))
    told = archive.ingest(explain=False)
    assert told.code == 0
    assert told.off("ZQXDOE 0") < TOLERANCE
    said = told.said.replace(str(tmp_path), "")
    assert "zqx" not in said.lower()
    assert NUMBER not in said
    for path in told.cohort.rglob("*"):
        if path.is_file():
            content = path.read_bytes().lower().replace(str(tmp_path).lower().encode(), b"")
            assert b"zqx" not in content, path.name
            assert NUMBER.encode() not in content, path.name
