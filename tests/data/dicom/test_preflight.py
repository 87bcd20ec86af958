"""A cohort's preflight: each fault is found by name, and keeps the site out until it is fixed or waived."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.cli.main import main
from mammo_fed.data.cohort import BENIGN, Cohort
from mammo_fed.data.dicom.phantom_archive.tree import PhantomTree, write_phantom_tree
from mammo_fed.data.phantom.hospitals import phantom_cohort, phantom_synthetic
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE
from mammo_fed.data.preflight import CHECKS, Archive, Finding, errors_of, preflight

SIZE = 32
WHOLE = Archive(refused={}, unlabelled=0, provenance={})


def cohort(images: int = 40, *, public: bool = True) -> Cohort:
    return phantom_cohort(
        name="one", num_images=images, style=EXTERNAL_STYLE, d_prime=2.4, image_size=SIZE, seed=1, split="train", public=public
    )


def outcome(found: Cohort, archive: Archive = WHOLE, *, reference: np.ndarray | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in preflight(found, archive, reference=reference)}


def with_pixels(found: Cohort, row: int, of: int) -> Cohort:
    pixels = found.pixels.copy()
    pixels[row] = pixels[of]
    return replace(found, pixels=pixels)


def two_patients(found: Cohort) -> tuple[int, int]:
    others = (found.patients != found.patients[0]) & (found.labels == found.labels[0])
    return 0, int(np.flatnonzero(others)[0])


def test_preflight_of_a_sound_cohort_finds_nothing_wrong():
    found = outcome(cohort(), reference=phantom_synthetic(count=60, image_size=SIZE).pixels)
    assert set(found) == set(CHECKS)
    assert {finding.level for finding in found.values()} == {"ok"}


def test_preflight_finds_the_same_pixels_under_two_patients_labels_and_splits():
    whole = cohort()
    row, of = two_patients(whole)
    assert outcome(with_pixels(whole, row, of))["duplicates_across_patients"].level == "error"
    other = int(np.flatnonzero(whole.labels != whole.labels[0])[0])
    assert outcome(with_pixels(whole, 0, other))["duplicates_across_labels"].level == "error"
    halves = np.where(whole.patients == whole.patients[0], "test", "train")
    assert outcome(with_pixels(replace(whole, splits=halves), row, of))["duplicates_across_splits"].level == "error"


def test_preflight_only_warns_of_a_patch_that_repeats_one_of_the_same_patient():
    whole = cohort()
    patient = next(name for name in whole.patients if (whole.patients == name).sum() > 1)
    first, second = np.flatnonzero(whole.patients == patient)[:2]
    found = outcome(with_pixels(whole, int(first), int(second)))
    assert found["duplicates_within_patients"].level == "warning"
    assert found["duplicates_across_patients"].level == "ok"


def test_preflight_finds_one_class_flat_patches_and_clipped_ones():
    whole = cohort()
    assert outcome(replace(whole, labels=np.full(len(whole), BENIGN)))["one_class"].level == "error"
    flat = whole.pixels.copy()
    flat[3] = 0.5
    assert outcome(replace(whole, pixels=flat))["flat_patches"].level == "error"
    clipped = np.where(whole.pixels > 0.5, 1.0, 0.0).astype(np.float32)
    assert outcome(replace(whole, pixels=clipped))["clipped_patches"].level == "warning"


def test_preflight_of_many_unreadable_files_or_wrong_annotations_is_an_error_and_of_few_a_warning():
    for reason, name in (("decoding_failed", "unreadable_files"), ("mask_mismatch", "misplaced_annotations")):
        assert outcome(cohort(), replace(WHOLE, refused={reason: 1}))[name].level == "warning"
        assert outcome(cohort(), replace(WHOLE, refused={reason: 9}))[name].level == "error"
        assert outcome(cohort(), replace(WHOLE, refused={"implant": 30}))[name].level == "ok"


def test_preflight_warns_of_mixed_intensities_spacings_and_missing_labels():
    about = {
        "a": {"windowing": "range 0 to 1", "spacing_down_mm": "0.05"},
        "b": {"windowing": "linear window", "spacing_down_mm": "0.2"},
    }
    found = outcome(cohort(), Archive(refused={"unknown_label": 2}, unlabelled=3, provenance=about))
    assert [found[name].level for name in ("mixed_intensities", "mixed_spacing", "missing_labels")] == ["warning"] * 3


def test_preflight_warns_of_a_cohort_that_looks_unlike_the_reference():
    dark = replace(cohort(), pixels=cohort().pixels * np.float32(0.2))
    assert outcome(dark, reference=phantom_synthetic(count=60, image_size=SIZE).pixels)["drift"].level == "warning"


def test_preflight_shows_no_small_count_of_patients_who_are_not_public():
    hidden = cohort(12, public=False)
    row, of = two_patients(hidden)
    found = outcome(with_pixels(hidden, row, of), replace(WHOLE, refused={"decoding_failed": 1}))
    assert "fewer than 5" in found["duplicates_across_patients"].message
    assert "fewer than 5" in found["unreadable_files"].message
    assert "1 of" not in found["unreadable_files"].message


def test_errors_are_left_unless_they_are_waived_by_name():
    found = [Finding(name="drift", level="warning", message=""), Finding(name="one_class", level="error", message="")]
    assert [one.name for one in errors_of(found)] == ["one_class"]
    assert errors_of(found, waived=["one_class"]) == ()


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A cohort folder in which two patients have the same pixels."""
    whole = cohort(16)
    row, of = two_patients(whole)
    write_phantom_tree(tmp_path / "tree", with_pixels(whole, row, of), tree=PhantomTree(form="csv", rows=96, columns=80))
    options = ["--size", str(SIZE), "--smallest", "8", "--margin", "0", "--windowing", "stored", "--public"]
    assert main(["data", "ingest", str(tmp_path / "tree"), str(tmp_path / "cohort"), *options]) == 0
    return tmp_path / "cohort"


def test_preflight_error_keeps_a_cohort_out_of_a_run_until_it_is_waived(faulty, tmp_path, capsys):
    run = [
        "simulate",
        "data=cohort",
        f"data.root={faulty}",
        "data.public=true",
        "federation.num_sites=1",
        "federation.rounds=1",
    ]
    run += ["model=efficientnet_lite0", "model.input_size=32", "synthesis.count=16", "data.image_size=32", "model.components=8"]
    assert main([*run, f"hydra.run.dir={tmp_path / 'a'}"]) == 2
    assert "failed its preflight (duplicates_across_patients)" in capsys.readouterr().err
    assert main([*run, "data.waived=[duplicates]", f"hydra.run.dir={tmp_path / 'b'}"]) == 2
    assert "is no check" in capsys.readouterr().err
    assert main([*run, "data.waived=[duplicates_across_patients]", f"hydra.run.dir={tmp_path / 'c'}"]) == 0


def test_preflight_by_command_writes_a_page_for_the_site_and_fails_on_errors(faulty, capsys):
    assert main(["data", "check", str(faulty), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["errors_left"] == ["duplicates_across_patients"]
    assert main(["data", "check", str(faulty), "--waive", "duplicates_across_patients"]) == 0
    assert main(["data", "check", str(faulty), "--waive", "everything"]) == 2
    page = faulty / "preflight.html"
    assert page.stat().st_mode & 0o077 == 0
    text = page.read_text(encoding="utf-8")
    assert "do not send it" in text
    assert "data:image/png;base64," in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_preflight_that_was_not_run_on_the_cohort_as_it_is_now_keeps_it_out(faulty, tmp_path, capsys):
    (faulty / "preflight.json").unlink()
    assert main(["simulate", "data=cohort", f"data.root={faulty}", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "has not been checked as it is now" in capsys.readouterr().err
