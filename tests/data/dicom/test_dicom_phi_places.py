"""The audit of identifiers names every place that carries something: beside attributes, in free text, and in files beside."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from mammo_fed.cli.main import main
from mammo_fed.data.dicom.identifiers.audit import HeaderAudit, audit_headers
from mammo_fed.data.dicom.phantom_archive.tree import PhantomTree, write_phantom_tree
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE
from tests.data.dicom.making import gradient, mammogram, write
from tests.data.dicom.mutations import bundled_files

WORD = "ZEBRA^ANN"


def audited(folder: Path) -> HeaderAudit:
    return audit_headers(sorted(folder.rglob("*")), processes=1)


def places(folder: Path, *made: Dataset) -> set[str]:
    """What the audit names in some files."""
    for number, header in enumerate(made):
        write(header, folder / f"{number}.dcm")
    found = audited(folder)
    assert found.files == len(made)
    return set(found.identifying)


def item(**attributes: object) -> Dataset:
    made = Dataset()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


USUAL = {"SOPInstanceUID", "MediaStorageSOPInstanceUID"}


def test_dicom_file_without_words_of_anybody_has_uids_alone(tmp_path):
    about = {"Manufacturer": "maker", "ViewPosition": "MLO", "ImageLaterality": "L", "SoftwareVersions": "1.2"}
    view = item(CodeValue="R-10242", CodingSchemeDesignator="SRT", CodeMeaning="cranio-caudal")
    assert places(tmp_path, mammogram(gradient(), ViewCodeSequence=[view], **about)) <= USUAL | {"SoftwareVersions"}


def test_dicom_audit_names_attributes_of_words(tmp_path):
    names = {
        "AcquisitionDeviceProcessingDescription",
        "ContentLabel",
        "GraphicLayerDescription",
        "ImageComments",
        "LUTExplanation",
        "PartialViewDescription",
        "SegmentLabel",
        "SeriesDescription",
        "StationName",
        "TextValue",
    }
    assert places(tmp_path, mammogram(gradient(), **dict.fromkeys(names, "ZEBRA ANN"))) - USUAL == names


def test_dicom_audit_names_words_in_attributes_of_codes(tmp_path):
    foreign = item(CodeValue="1", CodingSchemeDesignator="99HOSPITAL", CodeMeaning=WORD)
    for number, one in enumerate([item(CodeMeaning=WORD), foreign]):
        write(mammogram(gradient(), ViewCodeSequence=[one]), tmp_path / f"{number}.dcm")
    words = mammogram(gradient(), ViewPosition="ZEBRA", Modality="ZEBRA", Laterality="ANN", ImageLaterality="L")
    write(words, tmp_path / "words.dcm")
    counts = audited(tmp_path).identifying
    assert {
        name: counts.get(name) for name in ("CodeMeaning", "ViewPosition", "Modality", "Laterality", "ImageLaterality")
    } == {
        "CodeMeaning": 2,
        "ViewPosition": 1,
        "Modality": 1,
        "Laterality": 1,
        "ImageLaterality": None,
    }


def test_dicom_audit_names_overlays_icons_documents_and_private_attributes(tmp_path):
    made = mammogram(gradient())
    made.add_new(0x60004000, "LT", WORD)
    made.add_new(0x60021500, "LO", WORD)
    made.add_new(0x60000022, "LO", WORD)
    made.private_block(0x0011, "MAKER", create=True).add_new(2, "SQ", [item(PatientName=WORD)])
    made.IconImageSequence = [item(Rows=2, Columns=2, BitsAllocated=8, PixelData=b"ZEBR")]
    made.EncapsulatedDocument = b"%PDF-1.7 ZEBRA "
    found = places(tmp_path, made)
    assert {"OverlayComments", "OverlayLabel", "OverlayDescription", "private attributes"} <= found
    assert {"IconImageSequence", "EncapsulatedDocument", "PatientName"} <= found


def test_dicom_audit_looks_at_the_preamble_and_at_group_2(tmp_path):
    made = mammogram(gradient())
    made.file_meta.SourceApplicationEntityTitle = "ZEBRA"
    made.file_meta.PrivateInformationCreatorUID, made.file_meta.PrivateInformation = "1.2.3.4", b"ZEBRA\0"
    made.preamble = b"ZEBRA".ljust(128, b"\0")
    found = places(tmp_path, made)
    assert {"preamble", "SourceApplicationEntityTitle", "PrivateInformation", "PrivateInformationCreatorUID"} <= found


def test_dicom_file_that_is_a_tiff_file_too_has_no_words_in_its_preamble(tmp_path):
    made = mammogram(gradient())
    made.preamble = struct.pack("<2sHI", b"II", 42, 4096).ljust(128, b"\0")
    assert places(tmp_path, made) <= USUAL


def test_dicom_audit_names_bytes_after_the_pixels_and_after_the_data_set(tmp_path):
    made = mammogram(gradient())
    made.PixelData += b"ZEBRA ANN "
    write(made, tmp_path / "pixels.dcm")
    for name, rest in (("three", b"ZEB"), ("zeros", bytes(600))):
        path = write(mammogram(gradient()), tmp_path / f"{name}.dcm")
        path.write_bytes(path.read_bytes() + rest)
    write(mammogram(gradient(), DataSetTrailingPadding=bytes(8)), tmp_path / "padded.dcm")
    write(mammogram(gradient(), DataSetTrailingPadding=b"ZEBRA ANN 12"), tmp_path / "filled.dcm")
    counts = dict(audited(tmp_path).identifying)
    assert (counts.pop("bytes after the pixels"), counts.pop("bytes after the data set")) == (1, 2)
    assert set(counts) <= USUAL


def compressed(syntax: str) -> Dataset:
    made = mammogram((gradient() >> 8).astype("uint8"), bits=8)
    if syntax == JPEGBaseline8Bit:
        buffer = io.BytesIO()
        Image.fromarray(np.frombuffer(made.PixelData, np.uint8).reshape(96, 64)).save(buffer, "JPEG")
        made.PixelData = encapsulate([buffer.getvalue()])
        made["PixelData"].is_undefined_length = True
        made.file_meta.TransferSyntaxUID = syntax
    else:
        made.compress(syntax, generate_instance_uid=False)
    return made


def with_frame(made: Dataset, change: object) -> Dataset:
    made.PixelData = encapsulate([change(next(generate_frames(made.PixelData, number_of_frames=1)))])
    made["PixelData"].is_undefined_length = True
    return made


def segment(marker: bytes, words: bytes) -> bytes:
    return marker + struct.pack(">H", len(words) + 2) + words


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGBaseline8Bit])
def test_dicom_audit_names_comments_in_codestreams_and_what_follows_them(tmp_path, syntax):
    def commented(frame: bytes) -> bytes:
        if syntax == JPEG2000Lossless:
            at = frame.index(b"\xff\x52")
            return frame[:at] + segment(b"\xff\x64", b"\0\1ZEBRA ANN") + frame[at:]
        return frame[:2] + segment(b"\xff\xfe", b"ZEBRA ANN") + frame[2:]

    for number, change in enumerate((lambda frame: frame, commented, lambda frame: frame + b"ZEBRA ANN")):
        write(with_frame(compressed(syntax), change), tmp_path / f"{number}.dcm")
    counts = audited(tmp_path).identifying
    assert (counts["comments in compressed pixels"], counts["bytes after the pixels"]) == (1, 1)


def test_dicom_audit_names_application_data_of_a_jpeg_frame(tmp_path):
    def applied(marker: bytes) -> Dataset:
        words = segment(marker, b"Exif\0\0ZEBRA")
        return with_frame(compressed(JPEGBaseline8Bit), lambda frame: frame[:2] + words + frame[2:])

    for marker in (b"\xff\xe1", b"\xff\xed"):
        write(applied(marker), tmp_path / f"{marker[1]}.dcm")
    assert audited(tmp_path).identifying["comments in compressed pixels"] == 2


def test_dicom_files_without_a_meta_header_are_audited(tmp_path):
    made = mammogram(gradient(), PatientName=WORD)
    buffer = io.BytesIO()
    del made.file_meta
    made.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=False)
    (tmp_path / "a").write_bytes(buffer.getvalue())
    found = audited(tmp_path)
    assert (found.files, found.identifying["PatientName"]) == (1, 1)


def test_dicom_directories_and_files_beside_are_counted_by_kind(tmp_path):
    write(mammogram(gradient()), tmp_path / "a.dcm")
    directory = item(FileSetID="ZEBRA", DirectoryRecordSequence=[item(PatientName=WORD, ReferencedFileID=["ANN", "IM1"])])
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID, directory.file_meta.TransferSyntaxUID = "1.2.3", ImplicitVRLittleEndian
    write(directory, tmp_path / "DICOMDIR")
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7 ZEBRA")
    (tmp_path / "photo").write_bytes(b"\xff\xd8\xff\xe0ZEBRA\0")
    (tmp_path / "notes.dcm").write_text("ZEBRA ANN")
    (tmp_path / "table.csv").write_text("patient\nZEBRA\n")
    (tmp_path / "empty").touch()
    (tmp_path / "data.bin").write_bytes(bytes(range(64)) * 4)
    found = audited(tmp_path)
    assert found.others == {"DICOMDIR": 1, "JPEG": 1, "PDF": 1, "empty": 1, "other": 1, "text": 2}
    assert (found.files, found.unreadable) == (2, 6)
    assert {"PatientName", "ReferencedFileID", "FileSetID"} <= set(found.identifying)


def test_no_value_of_a_dicom_file_is_printed_by_the_audit(tmp_path, capfd):
    archive, cohort = tmp_path / "archive", tmp_path / "cohort"
    drawn = phantom_cohort(name="any", num_images=8, style=EXTERNAL_STYLE, d_prime=3.0, image_size=32, seed=1, split="train")

    def plant(header: Dataset, patient: str) -> None:
        header.PatientName = header.ContentLabel = header.ImageComments = "ZEBRA"
        header.file_meta.SourceApplicationEntityTitle = "ZEBRA"
        header.preamble = b"ZEBRA".ljust(128, b"\0")

    write_phantom_tree(archive, drawn, tree=PhantomTree(form="csv", rows=96, columns=80, decorate=plant))
    (archive / "ZEBRA.pdf").write_bytes(b"%PDF ZEBRA")
    (archive / "ZEBRA.dcm").write_bytes(b"ZEBRA" * 100)
    assert main(["data", "ingest", str(archive), str(cohort), "--source", "csv", "--size", "32", "--smallest", "16"]) == 0
    waived = ["--waive", "drift", "--waive", "one_class", "--waive", "unreadable_files", "--waive", "misplaced_annotations"]
    for more in ([], ["--json"]):
        main(["data", "check", str(cohort), "--archive", str(archive), *waived, *more])
        captured = capfd.readouterr()
        said = captured.out + captured.err
        assert "ContentLabel" in said
        assert "PDF" in said
        assert "zebra" not in said.lower()
    assert b"zebra" not in (cohort / "preflight.html").read_bytes().lower()


def test_dicom_audit_counts_every_one_of_pydicoms_own_files(tmp_path):
    paths = bundled_files()
    found = audit_headers(paths, processes=2)
    assert found.files + found.unreadable == len(paths) > 100
    assert sum(found.others.values()) == found.unreadable + found.others.get("DICOMDIR", 0)
    assert found.identifying["PatientName"] > 50
