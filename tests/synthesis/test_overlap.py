"""Whether a generator's patients train in a run too: judged by patients, and "none" is never said on images alone."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.data.cohort import Cohort
from mammo_fed.data.known_patients import NOBODY_KNOWN, known_patients, patient_overlap
from mammo_fed.data.phantom.hospitals import phantom_hospitals
from mammo_fed.data.sources.synthetic_set import Donor, read_provenance, read_synthetic_set, write_synthetic_set
from mammo_fed.errors import DataError
from mammo_fed.reporting.formatting import epsilon_text
from mammo_fed.reporting.record.provenance import Provenance
from mammo_fed.reporting.record.statements import synthetic_sentence

REQUIRED = "privacy.require_public_synthesis=true"


def people(*patients, public=True):
    count = len(patients)
    return Cohort(
        name="c",
        pixels=np.zeros((count, 4, 4), np.float32),
        labels=np.arange(count) % 2,
        patients=np.array(patients),
        images=np.array([f"i{row}" for row in range(count)]),
        views=np.full(count, "", dtype=np.str_),
        splits=np.full(count, "train"),
        public=public,
    )


def known(*patients, source="csv", **named):
    return known_patients(people(*patients), source=source, **named)


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        (known("P-1", "P-2"), known("P-2", "P-3"), "some"),
        (known("P-1"), known(" p-1\u200b"), "some"),
        (known("DOE  JANE"), known("Doe Jane"), "some"),
        (known("P-1"), known("P-2"), "unknown"),
        (known("P-1"), known("P-1", source="cohort"), "some"),
        (known("cbis-ddsm__P_00009", source="mammo_dp"), known("cbis-ddsm__P_00009", source="mammo_dp"), "some"),
        (known("cbis-ddsm__P_00009", source="mammo_dp"), known("cbis-ddsm__P_00010", source="mammo_dp"), "none"),
        (known("cbis-ddsm__P_00009", source="mammo_dp"), known("P_00009"), "some"),
        (known("cbis-ddsm__P_00009", source="mammo_dp"), known("P_9", source="cohort"), "some"),
        (known("cbis-ddsm__P_00009", source="mammo_dp"), known("P_00010"), "unknown"),
        (known("hospital__7", source="mammo_dp"), known("hospital__8", source="mammo_dp"), "unknown"),
        (known("hospital__7", source="mammo_dp"), known("hospital__7", source="mammo_dp"), "some"),
        (known("site-1/1", source="phantom", seed=0), known("site-1/1", source="phantom", seed=0), "some"),
        (known("site-1/1", source="phantom", seed=0), known("site-2/1", source="phantom", seed=0), "none"),
        (known("site-1/1", source="phantom", seed=0), known("site-1/1", source="phantom", seed=2), "none"),
        (known("site-1/1", source="phantom"), known("site-1/1"), "unknown"),
        (known("site-1/1", source="phantom"), known("P_00009", source="mammo_dp"), "unknown"),
        (known("P-1"), NOBODY_KNOWN, "unknown"),
        (known("P-1"), known("P-2", drawn=True), "unknown"),
    ],
)
def test_overlap_is_none_only_in_one_numbering_and_some_wherever_a_patient_is_in_both(one, other, answer):
    assert patient_overlap(one, other) == answer
    assert patient_overlap(other, one) == answer


def test_overlap_of_patients_who_are_not_public_is_told_to_nobody():
    with pytest.raises(DataError, match="not public"):
        known_patients(people("P-1", public=False), source="csv")
    told = {"image_digests": (), "numbering": "own", "patient_digests": ("0" * 16,)}
    with pytest.raises(DataError, match="not public"):
        Donor(name="h", source="csv", public=False, patients=1, images=1, fingerprint="", **told)


@pytest.fixture(scope="module")
def views(make_table, tmp_path_factory):
    """`views[0]`, `views[1]`: tables of the same patients, one image of each in the one and another image in the other."""
    drawn = phantom_hospitals(images_train=120, images_test=24, images_external=16, image_size=64, seed=8, num_sites=1).sites[0]
    rows = [np.flatnonzero(drawn.patients == patient) for patient in np.unique(drawn.patients)]
    both = [found for found in rows if len(found) > 1]
    assert len(both) >= 20
    parts = [drawn.select(np.array([found[view] for found in both])) for view in (0, 1)]
    assert set(parts[0].images.tolist()).isdisjoint(parts[1].images.tolist())
    return [make_table(tmp_path_factory.mktemp("view"), [("train", part)]).path for part in parts]


@pytest.fixture(scope="module")
def draw_set(cli, tiny, tmp_path_factory):
    """`draw_set("data=csv", ...)`: a set of a generator that was trained with privacy on these public patients."""

    def make(*overrides):
        folder = tmp_path_factory.mktemp("gan")
        code, _, err = cli("gan", "train", *tiny, *overrides, "privacy.target_epsilon=3", f"hydra.run.dir={folder / 'run'}")
        assert code == 0, err
        code, _, err = cli("gan", "sample", folder / "run", "--output", folder / "set", "--count", "20")
        assert code == 0, err
        return folder / "set"

    return make


@pytest.fixture(scope="module")
def set_of_one_view(draw_set, views):
    return draw_set("data=csv", f"data.root={views[0]}", "data.public=true")


@pytest.fixture(scope="module")
def set_of_a_phantom(draw_set, small):
    return draw_set(*(setting for setting in small if setting.startswith("data.")), "donor.num_sites=2")


def using(folder, *more):
    return (f"synthesis.root={folder}", "synthesis.source=folder", "federation.num_sites=2", *more)


def patients_in(path):
    return ("data=csv", f"data.root={path}", "data.public=true")


def rewritten(table, folder, change):
    """The table with changed identifiers, beside copies of the same images."""
    shutil.copytree(Path(table).parent / "png", folder / "png")
    with Path(table).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "patient": change(row["patient"])} for row in rows)
    return folder / "table.csv"


def test_overlap_of_other_views_of_the_same_patients_is_some(succeed, set_of_one_view, views):
    provenance = read_provenance(set_of_one_view)
    assert len(provenance.donor.patient_digests) == provenance.donor.patients
    record = succeed(*using(set_of_one_view, *patients_in(views[1]))).record
    seen = record.synthesis.provenance
    assert seen.overlap == "some"
    assert max(site.epsilon for site in record.privacy.sites) < seen.total_epsilon < np.inf
    assert "patients who are in both cohorts are protected with" in record.synthesis.total


@pytest.mark.parametrize("change", [str.upper, lambda name: f" {name}\u00ad", lambda name: name.replace("-", "\u200b-", 1)])
def test_overlap_of_the_same_patients_in_another_spelling_is_some(succeed, set_of_one_view, views, tmp_path, change):
    table = rewritten(views[1], tmp_path / "respelt", change)
    assert succeed(*using(set_of_one_view, *patients_in(table))).record.synthesis.provenance.overlap == "some"


def test_overlap_of_a_table_with_other_names_is_unknown(succeed, simulate, set_of_one_view, views, tmp_path):
    """Whether the names of two tables are the same people's nobody can tell; composed, and refused where that matters."""
    table = rewritten(views[1], tmp_path / "renamed", lambda name: f"other-{name}")
    record = succeed(*using(set_of_one_view, *patients_in(table))).record
    assert record.synthesis.provenance.overlap == "unknown"
    assert "patients who may be in both cohorts are protected with" in record.synthesis.total
    assert simulate(*using(set_of_one_view, *patients_in(table), REQUIRED)).code == 3


@pytest.mark.parametrize("view", [0, 1])
def test_overlap_refuses_a_set_of_the_same_patients_where_public_synthesis_is_required(simulate, set_of_one_view, views, view):
    finished = simulate(*using(set_of_one_view, *patients_in(views[view]), REQUIRED))
    assert finished.code == 3
    assert "train in this run too" in " ".join(finished.err.split())


def test_overlap_with_a_set_of_before_is_never_none_by_its_images_alone(succeed, simulate, set_of_one_view, views, tmp_path):
    cohort, provenance = read_synthetic_set(set_of_one_view)
    before = replace(provenance, donor=replace(provenance.donor, numbering="", patient_digests=()))
    write_synthetic_set(tmp_path / "set", cohort.pixels, cohort.labels, provenance=before)
    told = json.loads((tmp_path / "set" / "provenance.json").read_text())
    assert told["format"] == "mammo-fed synthetic set 1"
    assert "patient_digests" not in told["donor"]
    for view, answer in ((0, "some"), (1, "unknown")):
        record = succeed(*using(tmp_path / "set", *patients_in(views[view]))).record
        assert record.synthesis.provenance.overlap == answer
        assert simulate(*using(tmp_path / "set", *patients_in(views[view]), REQUIRED)).code == 3


def test_overlap_of_a_phantoms_other_seed_is_none_and_the_composed_figure_stands_beside(succeed, set_of_a_phantom):
    finished = succeed(*using(set_of_a_phantom, "seed=1", REQUIRED))
    seen, total = finished.record.synthesis.provenance, finished.record.synthesis.total
    assert seen.overlap == "none"
    figure = f"a patient in both would have (epsilon={epsilon_text(seen.total_epsilon)}, delta="
    assert "each cohort has its own guarantee" in total
    assert figure in total
    assert figure in " ".join(finished.out.split())
    assert "a patient in both would have" in (finished.folder / "report.html").read_text(encoding="utf-8")
    assert succeed(*using(set_of_a_phantom)).record.synthesis.provenance.overlap == "some"


def test_overlap_of_a_phantom_that_is_drawn_otherwise_from_the_same_seed_is_some(succeed, set_of_a_phantom):
    record = succeed(*using(set_of_a_phantom, "data.d_prime=1.0", "data.images_train=80")).record
    assert record.synthesis.provenance.overlap == "some"


def test_overlap_of_a_synthetic_set_that_holds_the_runs_own_images_is_some(succeed, views, tmp_path):
    """A folder of images may claim what it likes."""
    folder = tmp_path / "claimed"
    folder.mkdir()
    with Path(views[0]).open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            content = (Path(views[0]).parent / row["image"]).read_bytes()
            (folder / f"{number:04d}_{row['label']}.png").write_bytes(content)
    assert succeed(*using(folder, *patients_in(views[0]))).record.synthesis.provenance.overlap == "some"
    assert succeed(*using(folder, *patients_in(views[1]))).record.synthesis.provenance.overlap == "unknown"


def test_overlap_none_with_a_run_without_guarantee_says_what_a_patient_in_both_would_have():
    seen = Provenance(
        epsilon=3.0, delta=1e-4, trained_on="others", overlap="none", generator_unit="patient", total_unit="patient"
    )
    assert "a patient in both would not be protected in all" in synthetic_sentence("folder", seen)


def test_overlap_of_a_generators_patients_and_those_held_out_is_told_by_gan_evaluate(
    cli, tiny, set_of_one_view, views, tmp_path
):
    """The table that the set is compared with keeps apart somebody whom the generator saw."""
    with Path(views[1]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shutil.copytree(Path(views[1]).parent / "png", tmp_path / "png")
    half = len(rows) // 2
    with (tmp_path / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "split": "train" if number < half else "val"} for number, row in enumerate(rows))
    masses = (*tiny, *patients_in(tmp_path / "table.csv"))
    code, out, err = cli("gan", "evaluate", set_of_one_view, *masses, "--json", "--side", "32", "--no-baselines")
    assert code == 0, err
    assert {row["name"]: row.get("held_out_seen") for row in json.loads(out)["sets"]} == {
        "real, held out": None,
        "real, train": None,
        "set": "some",
    }


def test_overlap_of_the_papers_set_with_its_training_patients_is_some():
    """By patient, whatever the images: the clone's numbering, with or without the data set's name."""
    paper = known("cbis-ddsm__P_00004", "cbis-ddsm__P_00009", source="mammo_dp")
    assert patient_overlap(paper, known("P_00004", source="mammo_dp")) == "some"
    assert patient_overlap(paper, known("cbis-ddsm__P_00001", source="mammo_dp")) == "none"
