"""A hospital whose patients are not public trains a generator: under its policy, charged to its ledger."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mammo_fed.client.charging import site_ledger
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.generator.cohort import settings_at
from mammo_fed.client.generator.export import sample_set
from mammo_fed.client.generator.training import start_training
from mammo_fed.client.generator.training_folder import read_training
from mammo_fed.data.sources.synthetic_set import read_provenance
from mammo_fed.errors import InvalidSetting, LedgerError, PolicyRefused, PrivacyRefused
from mammo_fed.settings.compose import compose_gan

TINY = (
    "gan.image_size=32",
    "gan.channels=4",
    "gan.latent=8",
    "gan.embedding=4",
    "gan.batch_size=8",
    "gan.steps=4",
    "gan.checkpoint_every=2",
    "threads=1",
)


@pytest.fixture
def hospital(make_site, table) -> SiteFolder:
    """A site with a table of patients who are not public."""
    return make_site("hospital-p", "data=csv", f"data.root={table.path}")


def settings(*overrides: str):
    return compose_gan([*TINY, *overrides]).settings


def test_gan_donor_site_is_charged_in_its_own_ledger_beside_its_runs(hospital, tmp_path):
    start_training(settings("privacy.target_epsilon=2"), tmp_path / "run", site_folder=hospital.path)
    training = read_training(tmp_path / "run")
    with site_ledger(hospital.file, usual="declared") as ledger:
        assert ledger.events() == training.events
        assert 1.99 < ledger.epsilon(accountant="pld") <= 2.0
    assert training.at_site
    # All runs of the site together stay below its cap of 6.
    start_training(settings("privacy.target_epsilon=2", "seed=1"), tmp_path / "second", site_folder=hospital.path)
    with pytest.raises(PrivacyRefused):
        start_training(settings("privacy.target_epsilon=5", "seed=2"), tmp_path / "third", site_folder=hospital.path)


def test_gan_donor_site_tells_of_its_patients_what_its_policy_declares(hospital, tmp_path, table):
    """Numbers of the policy, a random fingerprint, no digests: and none of the table's names anywhere in the set."""
    wanted = settings("privacy.target_epsilon=2")
    start_training(wanted, tmp_path / "run", site_folder=hospital.path)
    sample_set(settings_at(wanted, hospital.file), tmp_path / "run", tmp_path / "set", count=10, seed=0)
    provenance = read_provenance(tmp_path / "set")
    policy = hospital.file.policy
    assert (provenance.donor.patients, provenance.donor.images) == (policy.public_patients, policy.public_images)
    assert provenance.donor.image_digests == ()
    assert provenance.donor.fingerprint != read_training(tmp_path / "run").cohort
    assert provenance.kind == "dp"
    assert provenance.privacy is not None
    assert provenance.privacy.ledger == "site"
    told = (tmp_path / "set" / "provenance.json").read_text() + (tmp_path / "set" / "images.csv").read_text()
    rows = Path(table.path).read_text().splitlines()
    names = {value for row in rows[1:] for value in row.split(",") if len(value) > 6}
    names -= {"malignant", "benign"}
    assert names
    assert not [name for name in names if name in told]
    assert str(tmp_path) not in told


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ((), "target_epsilon=inf"),
        (("privacy.target_epsilon=2", "privacy.noise_seed=1"), "noise_seed"),
        (("privacy.target_epsilon=2", "privacy.noise=float"), "noise=float"),
        (("privacy.target_epsilon=2", "privacy.unit=image"), "unit=image"),
        (("privacy.target_epsilon=2", "privacy.delta=1e-3"), "delta"),
    ],
)
def test_gan_donor_site_refuses_what_its_policy_forbids(hospital, tmp_path, overrides, word):
    with pytest.raises(PolicyRefused, match=word):
        start_training(settings(*overrides), tmp_path / "run", site_folder=hospital.path)
    with site_ledger(hospital.file, usual="declared") as ledger:
        assert ledger.events() == ()


def test_gan_patients_who_are_not_public_need_their_site(table, tmp_path):
    wanted = settings("data=csv", f"data.root={table.path}", "data.public=false", "privacy.target_epsilon=2")
    with pytest.raises(InvalidSetting, match="--site"):
        start_training(wanted, tmp_path / "run")


def test_gan_donor_site_enforces_its_number_of_images(hospital, tmp_path):
    limited = replace(hospital.file, policy=replace(hospital.file.policy, max_images_per_patient=1))
    assert settings_at(settings("privacy.max_images_per_patient=9"), limited).privacy.max_images_per_patient == 1


def test_gan_training_at_a_site_goes_on_there_only(hospital, tmp_path):
    wanted = settings("privacy.target_epsilon=2")
    start_training(wanted, tmp_path / "run", site_folder=hospital.path)
    values = json.loads((tmp_path / "run" / "training.json").read_text())
    assert values["at_site"]
    with pytest.raises(InvalidSetting, match="another site"):
        start_training(wanted, tmp_path / "run")


def test_gan_resume_twice_at_a_site_is_refused_to_the_second_copy_by_its_ledger(hospital, tmp_path):
    """No copy of the ledger lies in the folder: both copies ask the site's."""

    class Stopped(Exception):
        pass

    def stop(done, steps, losses):
        if done == 3:
            raise Stopped

    wanted, run, other = settings("privacy.target_epsilon=2"), tmp_path / "run", tmp_path / "copy"
    with pytest.raises(Stopped):
        start_training(wanted, run, site_folder=hospital.path, progress=stop)
    shutil.copytree(run, other)
    with pytest.raises(Stopped):
        start_training(wanted, run, site_folder=hospital.path, progress=stop)
    with pytest.raises(LedgerError, match="went on in another copy"):
        start_training(wanted, other, site_folder=hospital.path)
    start_training(wanted, run, site_folder=hospital.path)
    for refused in (
        lambda: start_training(wanted, other, site_folder=hospital.path),
        lambda: sample_set(wanted, other, tmp_path / "other-set", count=4, seed=0),
    ):
        with pytest.raises(LedgerError, match="another copy"):
            refused()
    sample_set(wanted, run, tmp_path / "set", count=4, seed=0)


def test_gan_resume_twice_sampling_asks_the_ledger_of_the_site_wherever_it_is(hospital, tmp_path):
    wanted, run = settings("privacy.target_epsilon=2"), tmp_path / "run"
    start_training(wanted, run, site_folder=hospital.path)
    moved = hospital.path.rename(hospital.path.with_name("moved"))
    site = moved / "site.toml"
    site.write_text(site.read_text().replace(str(hospital.path), str(moved)))
    with pytest.raises(InvalidSetting, match="--site FOLDER"):
        sample_set(wanted, run, tmp_path / "set", count=4, seed=0)
    sample_set(wanted, run, tmp_path / "set", count=4, seed=0, site_folder=moved)
    start_training(settings(), tmp_path / "public")
    with pytest.raises(InvalidSetting, match="no site's"):
        sample_set(settings(), tmp_path / "public", tmp_path / "again", count=4, seed=0, site_folder=moved)


def test_resume_twice_is_refused_where_the_sites_folder_was_copied_with_the_trainings(hospital, tmp_path):
    """A copied ledger knows nothing of what the other one has been charged since."""
    wanted = settings("privacy.target_epsilon=2")

    def stop(done, steps, losses):
        if done == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        start_training(wanted, tmp_path / "run", site_folder=hospital.path, progress=stop)
    other_site = shutil.copytree(hospital.path, tmp_path / "other-hospital")
    other_run = shutil.copytree(tmp_path / "run", tmp_path / "other-run")
    assert Path(SiteFolder.open(other_site).file.ledger) != Path(hospital.file.ledger)
    start_training(wanted, tmp_path / "run", site_folder=hospital.path)
    with pytest.raises(LedgerError, match="went on in another copy"):
        start_training(wanted, other_run, site_folder=other_site)
    at = settings_at(wanted, hospital.file)
    assert sample_set(at, tmp_path / "run", tmp_path / "set", count=4, seed=0).kind == "dp"
    with pytest.raises(LedgerError):
        sample_set(at, other_run, tmp_path / "other-set", count=4, seed=0, site_folder=other_site)
