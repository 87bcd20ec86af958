"""One person under two identifiers, and many under one: found by files, headers, pixels and identifiers before a site joins."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mammo_fed.cli.main import main
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import Cohort
from mammo_fed.data.near_duplicates import near_duplicates
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE
from mammo_fed.data.preflight import CHECKS, Archive, Finding, preflight, table_findings
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.data.sources.csv_table import read_csv
from mammo_fed.data.sources.mammo_dp import read_mammo_dp
from mammo_fed.errors import DataError
from mammo_fed.settings.compose import compose_settings
from mammo_fed.settings.data import Partition
from tests.data.dicom.making import mammogram, write

SIZE = 64


def cohort(images: int = 24, *, public: bool = True, size: int = SIZE) -> Cohort:
    return phantom_cohort(
        name="one", num_images=images, style=EXTERNAL_STYLE, d_prime=2.4, image_size=size, seed=1, split="train", public=public
    )


def outcome(found: Cohort, provenance: dict[str, dict[str, str]]) -> dict[str, Finding]:
    archive = Archive(refused={}, unlabelled=0, provenance=provenance)
    return {finding.name: finding for finding in preflight(found, archive, reference=None)}


def noted(found: Cohort, **columns: Callable[[int, str], str]) -> dict[str, dict[str, str]]:
    """Provenance of every patch: each column a function of the row and the patient."""
    return {
        image: {"patient": patient, **{name: of(row, patient) for name, of in columns.items()}}
        for row, (image, patient) in enumerate(zip(found.images.tolist(), found.patients.tolist(), strict=True))
    }


def strangers(found: Cohort) -> tuple[int, int]:
    """Rows of two patients."""
    return 0, int(np.flatnonzero(found.patients != found.patients[0])[0])


SHARED = {
    "source_sha256": "one_file_two_patients",
    "instance": "one_instance_two_patients",
    "study": "one_study_two_patients",
    "header_patient": "one_header_patient_two_patients",
}


@pytest.mark.parametrize("column", SHARED)
def test_identity_of_files_and_headers_under_two_patients_is_an_error(column):
    whole = cohort()
    one, other = strangers(whole)
    assert outcome(whole, noted(whole, **{column: lambda row, _: f"v{row}"}))[SHARED[column]].level == "ok"
    found = outcome(whole, noted(whole, **{column: lambda row, _: "same" if row in (one, other) else f"v{row}"}))
    assert found[SHARED[column]].level == "error"
    assert [name for name, finding in found.items() if finding.level == "error"] == [SHARED[column]]


@pytest.mark.parametrize("column", SHARED)
def test_identity_shared_by_images_of_one_patient_is_no_fault(column):
    whole = cohort()
    assert outcome(whole, noted(whole, **{column: lambda _, patient: patient}))[SHARED[column]].level == "ok"


def test_identity_that_an_anonymiser_wrote_into_every_header_is_a_warning_and_hides_no_other_fault():
    whole = cohort(60)
    assert whole.num_patients > 20
    constant = outcome(whole, noted(whole, study=lambda *_: "1.2.3"))["one_study_two_patients"]
    assert constant.level == "warning"
    one, other = strangers(whole)
    mostly = noted(whole, study=lambda row, _: "9.9" if row in (one, other) else "1.2.3")
    assert outcome(whole, mostly)["one_study_two_patients"].level == "error"
    # A file is a file: no anonymiser writes one file for everybody.
    assert outcome(whole, noted(whole, source_sha256=lambda *_: "x"))["one_file_two_patients"].level == "error"


def test_identity_checks_of_an_earlier_folder_say_that_nothing_is_noted():
    found = outcome(cohort(), {})
    for name in SHARED.values():
        assert found[name].level == "ok"
        assert "is not noted" in found[name].message


@pytest.mark.parametrize(
    "names",
    [("P17", "P017"), ("P17", "P-17"), ("P-17", "P\u201317"), ("DOE^JANE^", "JANE DOE"), ("12-345", "0012345")],
    ids=ascii,
)
def test_identity_of_similar_identifiers_is_a_warning(names):
    whole = cohort()
    one, other = strangers(whole)
    renamed = {whole.patients[one]: names[0], whole.patients[other]: names[1]}
    patients = np.array([renamed.get(patient, patient) for patient in whole.patients])
    (found,) = (one for one in table_findings(replace(whole, patients=patients)) if one.name == "similar_identifiers")
    assert found.level == "warning"
    assert names[0] not in found.message
    hidden = replace(whole, patients=patients, public=False)
    assert "fewer than 5" in outcome(hidden, {})["similar_identifiers"].message


def test_identity_of_many_people_under_one_identifier_is_a_warning():
    whole = cohort()
    name = "many_people_one_patient"
    everybody = replace(whole, patients=np.full(len(whole), "P1"))
    assert outcome(everybody, {})[name].level == "warning"
    placeholder = np.where(whole.patients == whole.patients[0], "ANONYMOUS", whole.patients)
    assert outcome(replace(whole, patients=placeholder), {})[name].level == "warning"
    # Patients with one person in their headers each, and one patient with two.
    by_person = noted(whole, source_sha256=lambda row, _: f"f{row}", header_patient=lambda _, patient: patient)
    assert outcome(whole, by_person)[name].level == "ok"
    several = next(patient for patient in whole.patients if (whole.patients == patient).sum() > 1)
    first = int(np.flatnonzero(whole.patients == several)[0])
    by_person[str(whole.images[first])]["header_patient"] = "someone else"
    assert outcome(whole, by_person)[name].level == "warning"


def test_identity_of_headers_by_image_as_in_cbis_ddsm_is_no_fault():
    whole = cohort()
    by_image = noted(
        whole, source_sha256=lambda row, _: f"f{row}", header_patient=lambda row, _: f"h{row}", study=lambda row, _: f"s{row}"
    )
    assert {finding.level for finding in outcome(whole, by_image).values()} == {"ok"}


def jpeg(patch: np.ndarray) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray((patch * 255).astype(np.uint8)).save(content, "JPEG", quality=40)
    return np.asarray(Image.open(content), dtype=np.float32) / 255


def closer(patch: np.ndarray) -> np.ndarray:
    edge = len(patch) // 16
    image = Image.fromarray(patch[edge:-edge, edge:-edge]).resize(patch.shape, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32).clip(0, 1)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg": jpeg,
    "8 bit": lambda patch: np.round(patch * 255) / 255,
    "rescaled": lambda patch: 0.3 + 0.5 * patch,
    "gamma": lambda patch: patch**0.6,
    "inverted": lambda patch: 1 - patch,
    "mirrored": lambda patch: patch[:, ::-1],
    "upside down": lambda patch: patch[::-1],
    "shifted": lambda patch: np.pad(patch, ((3, 0), (4, 0)), mode="edge")[:-3, :-4],
    "cropped closer": closer,
}


@pytest.mark.parametrize("copy", COPIES)
def test_identity_of_a_copied_image_under_another_patient_is_an_error(copy):
    whole = cohort(32, size=96)
    one, other = strangers(whole)
    pixels = whole.pixels.copy()
    pixels[other] = COPIES[copy](pixels[one]).astype(np.float32)
    found = outcome(replace(whole, pixels=pixels), {})
    assert found["near_duplicates_across_patients"].level == "error"
    assert found["duplicates_across_patients"].level == "ok"
    assert near_duplicates(pixels, whole.unit_index("patient")).tolist() == [[one, other]]
    same = np.where(whole.patients == whole.patients[other], whole.patients[one], whole.patients)
    assert outcome(replace(whole, pixels=pixels, patients=same), {})["near_duplicates_across_patients"].level == "ok"


def test_identity_of_different_patients_is_never_taken_for_a_copy():
    for size in (32, 64):
        whole = cohort(120, size=size)
        assert len(near_duplicates(whole.pixels, whole.unit_index("patient"))) == 0
    assert len(near_duplicates(np.zeros((3, 8, 8), np.float32), np.arange(3))) == 0
    assert len(near_duplicates(np.full((3, 64, 64), 0.5, np.float32), np.arange(3))) == 0


@pytest.mark.slow
@pytest.mark.skipif("MAMMO_DP_ROOT" not in os.environ, reason="MAMMO_DP_ROOT is unset: no clone of RichardObi/mammo_dp")
def test_identity_of_real_patients_is_never_taken_for_a_copy():
    whole = read_mammo_dp(Path(os.environ["MAMMO_DP_ROOT"]), split="train")
    assert len(near_duplicates(whole.pixels, whole.unit_index("patient"))) == 0


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Mammograms with whole headers of 8 patients, and a table whose rows a test may change."""
    root = tmp_path / "archive"
    root.mkdir()
    rng = np.random.default_rng(3)
    lines = ["file,patient,label,top,left,bottom,right"]
    for number in range(8):
        header = mammogram(
            rng.integers(0, 65536, (96, 96), dtype=np.uint16),
            PatientID=f"MRN{100 + number}",
            SOPInstanceUID=f"1.2.3.{number + 1}",
            StudyInstanceUID=f"1.2.4.{number + 1}",
        )
        write(header, root / f"{number}.dcm")
        lines.append(f"{number}.dcm,Q{10 * number + 3},{'malignant' if number % 2 else 'benign'},10,10,42,42")
    (root / "findings.csv").write_text("\n".join(lines) + "\n")
    return root


def ingested(archive: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Levels of the preflight by check."""
    folder = archive.with_name("cohort")
    options = ["--size", "32", "--smallest", "8", "--margin", "0", "--windowing", "stored"]
    assert main(["data", "ingest", str(archive), str(folder), "--source", "csv", *options]) == 0
    capsys.readouterr()
    main(["data", "check", str(folder), "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {finding["name"] for finding in found} == set(CHECKS)
    return {finding["name"]: finding["level"] for finding in found}


def append(archive: Path, line: str) -> None:
    with (archive / "findings.csv").open("a") as table:
        table.write(line + "\n")


def test_identity_of_a_sound_archive_raises_nothing(archive, capsys):
    levels = ingested(archive, capsys)
    assert {levels[name] for name in levels if "patient" in name or "identifiers" in name} == {"ok"}


def test_identity_of_one_file_in_two_rows_is_found_and_no_value_of_a_header_is_kept(archive, capsys):
    append(archive, "0.dcm,Q003,benign,50,50,82,82")
    levels = ingested(archive, capsys)
    assert {levels[name] for name in SHARED.values()} == {"error"}
    assert levels["similar_identifiers"] == "warning"
    for path in archive.with_name("cohort").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [word for word in (b"MRN1", b"1.2.3.1", b"1.2.4.1", b"Q003") if word in content], path


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"SOPInstanceUID": "1.2.3.1"}, "one_instance_two_patients"),
        ({"StudyInstanceUID": "1.2.4.1"}, "one_study_two_patients"),
        ({"PatientID": " mrn100 "}, "one_header_patient_two_patients"),
    ],
    ids=["instance", "study", "patient"],
)
def test_identity_of_a_header_under_two_patients_is_found_in_an_archive(archive, capsys, changed, name):
    values = {"PatientID": "MRN999", "SOPInstanceUID": "1.2.3.99", "StudyInstanceUID": "1.2.4.99", **changed}
    pixels = np.random.default_rng(9).integers(0, 65536, (96, 96), dtype=np.uint16)
    write(mammogram(pixels, **values), archive / "new.dcm")
    append(archive, "new.dcm,Z500,benign,10,10,42,42")
    levels = ingested(archive, capsys)
    assert [other for other in SHARED.values() if levels[other] == "error"] == [name]


@pytest.mark.parametrize("nobody", ["ANONYMOUS", "removed", "0", "", "N/A"])
def test_identity_of_a_placeholder_in_two_headers_is_nobody(archive, capsys, nobody):
    for number in range(2):
        pixels = np.random.default_rng(20 + number).integers(0, 65536, (96, 96), dtype=np.uint16)
        write(
            mammogram(pixels, PatientID=nobody, SOPInstanceUID=f"9.{number}", StudyInstanceUID=f"8.{number}"),
            archive / f"n{number}.dcm",
        )
        append(archive, f"n{number}.dcm,Z{500 + 7 * number},benign,10,10,42,42")
    assert ingested(archive, capsys)["one_header_patient_two_patients"] == "ok"


def test_identity_of_one_identifier_for_all_is_found_behind_its_pseudonym(archive, capsys):
    table = archive / "findings.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(line.replace(line.split(",")[1], "ANONYMOUS") for line in lines[1:])]) + "\n")
    assert ingested(archive, capsys)["many_people_one_patient"] == "warning"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A hospital's own table, in which one image is another patient's too, encoded anew."""
    whole = cohort(24)
    one, other = strangers(whole)
    pixels = whole.pixels.copy()
    pixels[other] = jpeg(pixels[one])
    lines = ["patient,image,label"]
    for row, patch in enumerate(pixels):
        Image.fromarray(np.round(patch.astype(np.float64) * 65535).astype(np.uint16)).save(tmp_path / f"{row}.png")
        lines.append(f"{whole.patients[row]},{row}.png,{whole.labels[row]}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "table.csv"


def test_identity_errors_keep_a_hospitals_own_table_out_until_they_are_waived(table, cache):
    share = Partition(num_sites=1, how="uniform", alpha=1.0, seed=0)

    def load(*options: str) -> int:
        data = compose_settings(["data=csv", f"data.root={table}", *options]).settings.data
        return len(load_pool(data, share, cache=ArrayCache(cache)).cohort)

    with pytest.raises(DataError, match=r"failed its preflight: fewer than 5 patches .*\(near_duplicates_across_patients\)"):
        load("data.public=false")
    with pytest.raises(DataError, match="is no check"):
        load("data.public=false", "data.waived=[near]")
    assert load("data.public=false", "data.waived=[near_duplicates_across_patients]") == 24
    assert load("data.public=true") == 24
    assert [one.name for one in table_findings(read_csv(table, split=None, public=True)) if one.level != "ok"] == [
        "near_duplicates_across_patients"
    ]
