"""Planted identifiers: in every text attribute of the headers, and in pixels; none is found outside the archive."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.sequence import Sequence

from mammo_fed.cli.main import main
from mammo_fed.data.cohort import concatenate
from mammo_fed.data.dicom.identifiers.audit import audit_headers
from mammo_fed.data.dicom.identifiers.text_in_pixels import shows_text
from mammo_fed.data.dicom.phantom_archive.tree import PhantomTree, write_phantom_tree
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE
from mammo_fed.simulations import in_process
from tests.data.dicom.making import gradient, mammogram, write

# One attribute of every VR that holds text, a date or a number that people type.
PLANTED = {
    "PatientName": "ZEBRAPN^ANN",
    "PatientID": "ZEBRALO",
    "AccessionNumber": "ZEBRASH",
    "PatientBirthDate": "19610228",
    "StudyTime": "235857.77",
    "AcquisitionDateTime": "20190817235857",
    "InstitutionAddress": "ZEBRAST street",
    "AdditionalPatientHistory": "ZEBRALT history",
    "RetrieveURL": "http://zebraur.example/1",
    "StationAETitle": "ZEBRAAE",
    "PatientAge": "077Y",
    "ProtocolName": "ZEBRALO2",
    "PatientSex": "ZEBRACS",
    "PatientWeight": "83.1940652",
    "AcquisitionNumber": "831940652",
    "ReferringPhysicianName": "ZEBRAPN2^DOCTOR",
    "LongCodeValue": "ZEBRAUC",
    "TextValue": "ZEBRAUT",
    "FrameOfReferenceUID": "1.2.3.717171.1",
}
# Long enough not to turn up in a hash or a picture by chance.
SEARCHED = (
    "zebra",
    "19610228",
    "235857.77",
    "20190817235857",
    "83.1940652",
    "831940652",
    "1.2.3.717171",
    "person-",
    "p_0000",
    "hospital-47",
)


def plant(header: Dataset, patient: str) -> None:
    for name, value in PLANTED.items():
        setattr(header, name, value)
    nested = Dataset()
    nested.PatientID = f"ZEBRANESTED {patient}"
    header.OtherPatientIDsSequence = Sequence([nested])
    header.private_block(0x0099, "ZEBRACREATOR", create=True).add_new(1, "LO", "ZEBRAPRIVATE")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted") / "hospital-4711-Jane"
    parts = [
        phantom_cohort(name=split, num_images=24, style=EXTERNAL_STYLE, d_prime=3.0, image_size=32, seed=1, split=split)
        for split in ("train", "test")
    ]
    write_phantom_tree(
        root, concatenate(parts, name="phantom"), tree=PhantomTree(form="cbis_ddsm", rows=96, columns=80, decorate=plant)
    )
    return root


def found_in(content: bytes) -> list[str]:
    return [word for word in SEARCHED if word.encode() in content.lower()]


def test_planted_identifiers_are_found_in_no_artefact_log_or_message_of_a_run(archive, tmp_path, monkeypatch, capfd, caplog):
    messages: list[bytes] = []
    wire = in_process.through_the_wire

    def recorded(message: Any) -> Any:
        sent = wire(message)
        messages.extend(record.deflate() for record in sent.content.values())
        return sent

    monkeypatch.setattr(in_process, "through_the_wire", recorded)
    caplog.set_level(logging.DEBUG, "mammo_fed")
    out = tmp_path / "work"
    out.mkdir()
    cohort = out / "cohort"
    assert main(["data", "ingest", str(archive), str(cohort), "--source", "cbis_ddsm", "--size", "32", "--smallest", "16"]) == 0
    assert main(["data", "check", str(cohort), "--waive", "drift", "--waive", "one_class"]) == 0
    run = [
        "simulate",
        "data=cohort",
        f"data.root={cohort}",
        "federation.num_sites=2",
        "engine.wire=true",
        "federation.rounds=2",
    ]
    run += ["model=efficientnet_lite0", "model.input_size=32", "synthesis.count=16", "data.image_size=32", "model.components=8"]
    assert main([*run, f"hydra.run.dir={out / 'run'}", f"engine.cache={out / 'cache'}"]) == 0
    said = capfd.readouterr()
    assert len(messages) > 8
    assert not [word for message in messages for word in found_in(message)]
    # The paths are the operator's own words: the console may repeat the archive that it was given.
    console = (said.out + said.err + caplog.text).replace(str(archive), "").replace("\n", "")
    assert not found_in(console.encode())
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) > 40
    for path in written:
        assert not found_in(path.read_bytes() + str(path.relative_to(out)).encode()), path


def test_header_audit_names_what_identifies_people_and_counts_files(archive):
    paths = sorted(path for path in archive.rglob("*") if path.is_file())
    audit = audit_headers(paths, processes=1)
    assert (audit.files, audit.unreadable) == (48 * 3, 2)
    for name in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "private attributes", "InstitutionAddress"):
        assert audit.identifying[name] == audit.files, name
    assert "Rows" not in audit.identifying
    assert (audit.burned_in, audit.unsaid) == (0, 0)


def test_header_audit_counts_files_that_admit_burned_in_text_or_do_not_say(tmp_path):
    write(mammogram(gradient(), BurnedInAnnotation="YES"), tmp_path / "a.dcm")
    write(mammogram(gradient()), tmp_path / "b.dcm")
    audit = audit_headers(sorted(tmp_path.iterdir()), processes=1)
    assert (audit.burned_in, audit.unsaid) == (1, 1)


def labelled(text: str, *, size: int = 160) -> np.ndarray:
    image = Image.new("L", (size, size), 4)
    ImageDraw.Draw(image).text((6, 8), text, fill=255, font_size=14)
    return np.asarray(image, dtype=np.float32) / 255


@pytest.mark.parametrize("text", ["DOE JANE 1961", "RCC 4711", "L MLO"])
def test_text_on_the_background_is_seen(text):
    assert shows_text(labelled(text))


def test_tissue_masses_and_single_spots_are_not_taken_for_text():
    drawn = phantom_cohort(name="any", num_images=40, style=EXTERNAL_STYLE, d_prime=2.4, image_size=128, seed=5, split="train")
    assert not any(shows_text(patch) for patch in drawn.pixels)
    spot = np.zeros((128, 128), np.float32)
    spot[40:60, 40:60] = 1.0
    assert not shows_text(spot)
    assert not shows_text(np.random.default_rng(0).random((128, 128), dtype=np.float32))


def test_text_that_a_crop_shows_keeps_the_image_out_unless_it_is_let_in(tmp_path, capfd):
    folder = tmp_path / "archive"
    folder.mkdir()
    pixels = (labelled("DOE JANE") * 65535).astype(np.uint16)
    pixels[60:150, 60:150] = 20000 + gradient(90, 90, top=9000)
    write(mammogram(pixels), folder / "a.dcm")
    write(mammogram(gradient(160, 160), BurnedInAnnotation="YES"), folder / "b.dcm")
    write(mammogram(gradient(160, 160)), folder / "c.dcm")
    rows = io.StringIO("file,patient,label,top,left,bottom,right\n")
    rows.seek(0, io.SEEK_END)
    for number, name in enumerate("abc"):
        rows.write(f"{name}.dcm,p{number},{number % 2},5,5,155,155\n")
    (folder / "findings.csv").write_text(rows.getvalue())
    assert main(["data", "ingest", str(folder), str(tmp_path / "cohort"), "--json"]) == 0
    assert '"burned_in_text": 2' in capfd.readouterr().out
    assert main(["data", "ingest", str(folder), str(tmp_path / "cohort"), "--burned-in", "--json"]) == 0
    assert '"images": 3' in capfd.readouterr().out
