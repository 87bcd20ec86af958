"""Patients who withdraw where a generator is to be trained, trains, or is resumed: no later step sees their images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.client.charging import site_ledger
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.generator.cohort import settings_at
from mammo_fed.client.generator.evaluation import evaluate_sets
from mammo_fed.client.generator.export import sample_set
from mammo_fed.client.generator.training import start_training
from mammo_fed.client.generator.training_folder import load_average
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import PolicyRefused
from mammo_fed.privacy.ledger.report import show_ledger
from mammo_fed.settings.compose import compose_gan
from mammo_fed.synthesis import real_gradients

TINY = (
    "gan.image_size=32",
    "gan.channels=4",
    "gan.latent=8",
    "gan.embedding=4",
    "gan.batch_size=24",
    "gan.steps=4",
    "gan.checkpoint_every=1",
    "threads=1",
    "privacy.target_epsilon=2",
)
STEPS = 4


class Interrupted(RuntimeError):
    pass


def settings(*overrides: str):
    return compose_gan([*TINY, *overrides]).settings


@pytest.fixture
def hospital(make_site, phantom, make_table, tmp_path):
    """`hospital("name", without=patients)`: a site with a public table; its public sizes do not depend on who is in it."""
    whole = make_table(tmp_path / "table", [("train", site) for site in phantom.sites] + [("val", phantom.external)])

    def make(name: str, *, without: tuple[str, ...] = (), least: int = 1) -> SiteFolder:
        table = whole.path.with_name(f"{name}.csv")
        with whole.path.open(encoding="utf-8", newline="") as lines, table.open("w", encoding="utf-8", newline="") as kept:
            csv.writer(kept).writerows(row for row in csv.reader(lines) if row[0] not in without)
        sizes = ("--public-patients", "40", "--public-images", "60", "--min-patients", str(least))
        return make_site(name, *sizes, "data=csv", f"data.root={table}", "data.public=true")

    return make


def pool_of(site: SiteFolder):
    return load_pool(site.file.data, site.file.share, cache=ArrayCache(Path(site.file.cache))).cohort


@pytest.fixture
def leaving(hospital) -> str:
    """A patient with several images."""
    patients, counts = np.unique(pool_of(hospital("count")).patients, return_counts=True)
    return str(patients[np.argmax(counts)])


@pytest.fixture
def seen(monkeypatch) -> list[bytes]:
    """Every real image that a discriminator is shown."""
    shown: list[bytes] = []
    loss = real_gradients.real_loss

    def watched(adversaries, images, labels, **named):
        shown.extend(image.numpy().tobytes() for image in images)
        return loss(adversaries, images, labels, **named)

    monkeypatch.setattr(real_gradients, "real_loss", watched)
    return shown


def images_of(site: SiteFolder, patient: str) -> set[bytes]:
    cohort = pool_of(site)
    own = cohort.select(cohort.patients == patient)
    return {image.numpy().tobytes() for image in real_gradients.real_images(own, image_size=32, unit="patient").images}


def withdraw(site: SiteFolder, patient: str) -> None:
    with site_ledger(site.file, usual="declared") as ledger:
        ledger.withdraw([[patient]])


@pytest.mark.parametrize("target", ["2", "inf"])
def test_a_generator_begun_after_a_patient_withdrew_is_that_of_a_cohort_without_them(hospital, leaving, tmp_path, target):
    here, never = hospital("here"), hospital("never", without=(leaving,))
    wanted = settings(f"privacy.target_epsilon={target}", *(["privacy.noise_seed=5"] if target == "2" else []))
    withdraw(here, leaving)
    made = []
    for site in (here, never):
        start_training(wanted, tmp_path / f"{site.file.site}-run", site_folder=site.path)
        made.append(load_average(settings_at(wanted, site.file), tmp_path / f"{site.file.site}-run", STEPS)[1])
    assert made[0] == made[1]
    if target == "2":
        patients = [show_ledger(Path(site.file.ledger), delta=None).accounts[0].patients for site in (here, never)]
        assert patients[0] == patients[1]


def test_a_patient_who_withdraws_while_a_generator_trains_is_in_no_later_step(hospital, leaving, tmp_path, seen):
    here = hospital("here")
    own = images_of(here, leaving)
    assert len(own) > 1

    def leave_after_two(step: int, *_: object) -> None:
        if step == 2:
            assert own & set(seen)
            withdraw(here, leaving)
            seen.clear()

    start_training(settings("gan.batch_size=60"), tmp_path / "run", site_folder=here.path, progress=leave_after_two)
    assert seen
    assert not own & set(seen)
    sample_set(settings_at(settings("gan.batch_size=60"), here.file), tmp_path / "run", tmp_path / "set", count=4, seed=0)


def test_a_generator_that_is_resumed_after_a_patient_withdrew_goes_on_without_them(hospital, leaving, tmp_path, seen):
    here, wanted = hospital("here"), settings("gan.batch_size=60")
    own = images_of(here, leaving)

    def stop_after_two(step: int, *_: object) -> None:
        if step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        start_training(wanted, tmp_path / "run", site_folder=here.path, progress=stop_after_two)
    assert own & set(seen)
    seen.clear()
    withdraw(here, leaving)
    start_training(wanted, tmp_path / "run", site_folder=here.path)
    assert seen
    assert not own & set(seen)


def test_a_generator_stops_when_withdrawals_leave_too_few_patients(hospital, leaving, tmp_path):
    here = hospital("here", least=len(np.unique(pool_of(hospital("counted")).patients)))

    def leave(step: int, *_: object) -> None:
        withdraw(here, leaving)

    with pytest.raises(PolicyRefused, match=r"withdrawals until .* the training stops"):
        start_training(settings(), tmp_path / "run", site_folder=here.path, progress=leave)
    with pytest.raises(PolicyRefused, match="fewer than min_patients"):
        start_training(settings(), tmp_path / "run", site_folder=here.path)


def test_synthetic_sets_are_compared_with_the_images_of_patients_who_did_not_withdraw(hospital, leaving, tmp_path):
    here, wanted = hospital("here"), settings()
    start_training(wanted, tmp_path / "run", site_folder=here.path)
    sample_set(settings_at(wanted, here.file), tmp_path / "run", tmp_path / "set", count=32, seed=0)
    withdraw(here, leaving)

    def first_line(line: str) -> None:
        raise Interrupted(line)

    images = int((pool_of(here).patients != leaving).sum())
    with pytest.raises(Interrupted, match=f"real masses: {images} to learn from"):
        evaluate_sets(
            wanted,
            [tmp_path / "set"],
            site_folder=here.path,
            name="efficientnet",
            radiomics=False,
            side=None,
            baselines=False,
            progress=first_line,
        )
