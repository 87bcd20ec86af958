"""`mammo-fed audit RUN` on small federations: the report, and the runs that it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.audit.canaries import CANARIES
from mammo_fed.audit.finished_run import FinishedRun, split_patients
from mammo_fed.audit.noise.adversary import NOISE_CHECKS
from mammo_fed.cli.options import CANARIES as CHOICES
from mammo_fed.data.cohort import Cohort
from mammo_fed.privacy.noise import discrete_gaussian

QUICK = ("--trials", "30", "--shadows", "8", "--jobs", "1")


@pytest.fixture(scope="module")
def finished(succeed):
    return succeed("seed=3")


def test_audit_reports_canaries_membership_and_the_gate(finished, cli):
    before = sorted(path for path in finished.folder.rglob("*") if path.is_file())
    code, out, err = cli("audit", finished.folder, *QUICK, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["passed"] is True
    assert report["site"] == "site-4"
    assert report["messages"] == 4
    assert report["epsilon"] == pytest.approx(finished.sites[3].epsilon)
    assert report["priced"] == pytest.approx(report["epsilon"], rel=1e-9)
    assert [found["canary"] for found in report["canaries"]] == list(CANARIES)
    assert {attack["name"] for attack in report["membership"]["attacks"]} == {"loss threshold", "likelihood ratio"}
    assert all(0.99 < move < 1 + 1e-4 for move in report["sensitivity"].values())
    assert json.loads((finished.folder / "audit.json").read_text()) == report
    after = sorted(path for path in finished.folder.rglob("*") if path.is_file())
    assert set(after) - set(before) == {finished.folder / "audit.json"}


def test_audit_charges_nothing(finished, cli):
    ledgers = {path: path.read_bytes() for path in finished.folder.rglob("head")}
    assert ledgers
    cli("audit", finished.folder, "--trials", "20", "--shadows", "0", "--canary", "blank", "--jobs", "1")
    assert {path: path.read_bytes() for path in finished.folder.rglob("head")} == ledgers


def test_audit_prints_its_claim_and_its_verdict(finished, cli, tmp_path):
    arguments = ("--site", "site-1", "--trials", "20", "--shadows", "8", "--canary", "mislabelled", "--jobs", "1")
    code, out, err = cli("audit", finished.folder, *arguments, "--output", tmp_path / "a.json", "--plot", tmp_path / "a.svg")
    assert code == 0, err
    words = " ".join(out.split())
    assert "epsilon 6 at delta 1e-04 for one patient of site-1" in words
    assert "Passed: nothing here refutes the claim." in words
    assert "allowed by the claim" in words
    assert json.loads((tmp_path / "a.json").read_text())["membership"]["members"] > 0
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.startswith("<svg")
    assert "likelihood ratio AUC" in drawn


def test_audit_fails_a_run_whose_record_states_too_little(finished, cli, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "model.safetensors", "sites"):
        (folder / name).symlink_to(finished.folder / name)
    record = json.loads((finished.folder / "record.json").read_text())
    for site in record["privacy"]["sites"]:
        site["epsilon"] = 1.0
    (folder / "record.json").write_text(json.dumps(record))
    code, out, _ = cli("audit", folder, *QUICK, "--canary", "gradient", "--shadows", "0", "--json")
    assert code == 1
    assert "below the price" in json.loads(out)["faults"][0]


def test_audit_sees_the_features_that_the_run_trained_on(finished):
    """The audit's site is the run's: the head that it would train without noise is the same, row for row."""
    run = FinishedRun(finished.folder)
    sizes = {name: (len(site.data.labels), len(set(site.data.units.tolist()))) for name, site in run.sites.items()}
    recorded = {site.site: (site.images, site.patients) for site in finished.record.data.sites}
    assert sizes == recorded
    assert run.smallest.site == "site-4"


def test_audit_fails_a_site_that_files_a_patients_later_images_under_another_identity(finished, cli, monkeypatch):
    """A fault on the way from the cohort to the mechanism: gate and canaries take the units as they are."""

    def split(cohort, unit):
        later = np.array([patient in cohort.patients[:row] for row, patient in enumerate(cohort.patients)])
        names = np.char.add(cohort.patients.astype(str), np.where(later, "/later", ""))
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    monkeypatch.setattr(Cohort, "unit_index", split)
    code, out, err = cli("audit", finished.folder, *QUICK, "--canary", "blank", "--shadows", "0", "--json")
    assert code == 1, err
    assert any("more than one privacy unit" in fault for fault in json.loads(out)["faults"])


@pytest.mark.parametrize(
    ("patients", "units", "split"),
    [
        (["P1", "P1", "P2"], [0, 0, 1], 0),
        (["P1", "P1", "P2"], [0, 1, 2], 1),
        (["DOE JANE", "DOE  JANE"], [0, 1], 1),
        (["P-1", "P-1\u200b", "p-1", "Q"], [0, 1, 0, 2], 1),
        (["P\u00ad1", "P1", "R", "R"], [0, 0, 1, 2], 1),
    ],
)
def test_identity_of_a_patient_in_two_units_is_counted_by_the_audit_as_the_ledger_compares(patients, units, split):
    assert split_patients(np.array(patients), np.array(units)) == split


def test_audit_shows_what_the_noise_looks_like_and_names_each_failed_relation(finished, cli, monkeypatch):
    code, out, _ = cli("audit", finished.folder, *QUICK, "--canary", "blank", "--shadows", "0")
    assert code == 0
    assert f"{len(NOISE_CHECKS)} checks of its size, shape, repeats and samples; all passed" in " ".join(out.split())

    def capped(count, *, sigma, words):
        noise = discrete_gaussian(count, sigma=sigma, words=words)
        while (beyond := np.abs(noise) > 2.5 * sigma).any():
            noise[beyond] = discrete_gaussian(int(beyond.sum()), sigma=sigma, words=words)
        return noise

    monkeypatch.setattr("mammo_fed.privacy.noise.discrete_gaussian", capped)
    code, out, _ = cli("audit", finished.folder, *QUICK, "--canary", "blank", "--shadows", "0", "--json")
    assert code == 1
    report = json.loads(out)
    assert any("check of its support" in fault for fault in report["faults"])
    assert [check["name"] for check in report["noise"]["checks"]] == list(NOISE_CHECKS)


def test_audit_of_sampled_steps_uses_their_own_curve(succeed, cli):
    run = succeed("privacy=dp_sgd", "privacy.batch_size=8", "federation.rounds=1", "privacy.noise=float")
    code, out, err = cli(
        "audit", run.folder, "--trials", "20", "--shadows", "0", "--canary", "gradient", "--jobs", "1", "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["mu"] is None
    assert report["canaries"][0]["mu_lower"] is None


def test_audit_refuses_patients_who_are_not_public_unless_it_stays_at_their_site(table, succeed, cli):
    run = succeed("data=csv", f"data.root={table.path}", "data.public=false", "federation.num_sites=2")
    code, _, err = cli("audit", run.folder, *QUICK)
    assert code == 3
    assert "--at-site" in err
    code, out, err = cli("audit", run.folder, *QUICK, "--canary", "blank", "--at-site", "--json")
    assert code == 0, err
    assert not any(name in out for name in table.planted)


@pytest.mark.parametrize("override", ["privacy.noise_seed=1", "privacy.target_epsilon=inf"])
def test_audit_refuses_a_run_that_promised_nothing(succeed, cli, override):
    code, _, err = cli("audit", succeed(override).folder, *QUICK)
    assert code == 2
    assert "promises nothing" in err


@pytest.mark.parametrize("option", [("--trials", "5"), ("--shadows", "3"), ("--jobs", "0")])
def test_audit_refuses_options_out_of_range(finished, cli, option):
    code, _, err = cli("audit", finished.folder, *QUICK, *option)
    assert code == 2
    assert option[0] in err


def test_audit_names_the_sites_that_it_could_take(finished, cli):
    code, _, err = cli("audit", finished.folder, "--site", "site-9", *QUICK)
    assert code == 2
    assert "site-9" in err
    assert "site-1" in err


def test_audit_needs_a_finished_run_with_its_sites(cli, tmp_path, finished):
    assert cli("audit", tmp_path, *QUICK)[0] == 2
    for name in ("config.yaml", "model.safetensors", "record.json"):
        (tmp_path / name).symlink_to(finished.folder / name)
    code, _, err = cli("audit", tmp_path, *QUICK)
    assert code == 2
    assert "site files" in err


def test_the_command_line_offers_every_canary():
    assert CHOICES == CANARIES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_audit_of_the_demo_is_tight_and_stands(cli, tmp_path: Path):
    """The acceptance run: every message of one site of the demo, judged on 1,500 runs a side."""
    code, _, err = cli("demo", f"hydra.run.dir={tmp_path / 'demo'}", "--json")
    assert code == 0, err
    code, out, err = cli("audit", tmp_path / "demo", "--json")
    assert code == 0, err
    report = json.loads(out)
    gradient = report["canaries"][0]
    assert gradient["trials"] >= 500
    assert gradient["epsilon_lower"] > 3
    assert gradient["epsilon_assumption_free"] > 0
    assert not gradient["rejected"]
    for attack in report["membership"]["attacks"]:
        assert attack["auc_ci"][0] < report["membership"]["auc_allowed"]
