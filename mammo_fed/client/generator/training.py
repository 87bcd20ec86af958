"""A donor site: whose patients a generator learns from, what that is charged to, and the set that leaves the site."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from mammo_fed.client.charging import Charge, TrainingState, charged_once
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.policy import SiteFile
from mammo_fed.client.rounds.ledger_guard import site_ledger
from mammo_fed.common.private_files import held, kept_secret, write_private
from mammo_fed.common.serialization import build, plain
from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.data.cohort import Cohort, fingerprint
from mammo_fed.data.run_cohorts import limit_images_per_patient, load_pool
from mammo_fed.data.share import Share
from mammo_fed.data.sources.synthetic_set import (
    Donor,
    image_digests,
)
from mammo_fed.errors import DataError, InvalidSetting, LedgerError, PolicyRefused
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.ledger import Budget, Ledger
from mammo_fed.privacy.noise.source import NoiseSource
from mammo_fed.settings.gan import GanSettings
from mammo_fed.synthesis.adversarial import RealGradient, mcgan_spec
from mammo_fed.synthesis.checkpoints import checkpoint_steps, read_average
from mammo_fed.synthesis.mcgan import Generator
from mammo_fed.synthesis.real_gradients import gan_event, plain_gradients, private_gradients, real_images
from mammo_fed.synthesis.sampling import weights_sha256
from mammo_fed.synthesis.training import GanProgress, train_gan

__all__ = [
    "DonorCohort",
    "Training",
    "check_policy",
    "donor_cohort",
    "last_step",
    "load_average",
    "new_private_folder",
    "read_training",
    "settings_at",
    "share_of_donor",
    "start_training",
]

TRAINING_NAME: Final = "training.json"
LOCK_NAME: Final = ".lock"
LEDGER_NAME: Final = "ledger"
FORMAT: Final = "mammo-fed gan training 1"
RUN_PREFIX: Final = "gan-"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What was decided when a training began, and is kept beside it.

    Attributes:
      run_id: under which it is charged.
      settings_sha256: of the settings.
      donor: whose patients.
      public_images: the divisor, declared public.
      event: what it does to them, or None without privacy.
      injected: whether its noise can be drawn again.
      at_site: whether a site's own ledger is charged; else one beside the training.
      cohort: fingerprint of the patients' images, keyed where they are not public; it stays here.
    """

    run_id: str
    settings_sha256: str
    donor: Donor
    public_images: int
    event: PrivacyEvent | None
    injected: bool
    at_site: bool
    cohort: str

    @property
    def events(self) -> tuple[PrivacyEvent, ...]:
        """What is charged; nothing without privacy."""
        return () if self.event is None else (self.event,)

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        event = None if self.event is None else self.event.as_dict()
        return {**plain(replace(self, event=None)), "event": event, "format": FORMAT}


@dataclass(frozen=True, kw_only=True, eq=False)
class DonorCohort:
    """A donor's masses.

    Attributes:
      cohort: all of them.
      source: where they come from.
      fingerprint: of them, keyed with a secret of this place unless they are public.
    """

    cohort: Cohort
    source: str
    fingerprint: str


def donor_cohort(settings: GanSettings, site: SiteFile | None) -> DonorCohort:
    """The donor's masses.

    Raises:
      InvalidSetting: If the cohort is not public and no site answers for it.
      DataError: If it cannot be read, or a class is missing.
    """
    cache = ArrayCache(Path(site.cache if site else settings.cache or default_cache_root()).expanduser())
    data = site.data if site else settings.data
    share = site.share if site else share_of_donor(settings)
    pool = load_pool(data, share, cache=cache)
    if site is None and not pool.cohort.public:
        raise InvalidSetting(
            "data.public=false: a generator learns from patients who are not public under their site's own policy and ledger "
            "only; give --site FOLDER (see `site-client init`)"
        )
    rows = pool.rows[site.index if site else settings.donor.index]
    cohort = pool.cohort.select(rows, name=site.site if site else settings.donor.name)
    if len(np.unique(cohort.labels)) != 2:
        # Without its value: that a class is missing is told to whoever runs this, at the site.
        raise DataError("a conditional generator needs malignant and benign images; choose another donor")
    key = None if cohort.public else kept_secret(cache.root / "fingerprint.key")
    return DonorCohort(cohort=cohort, source=data.source, fingerprint=fingerprint(cohort, key=key))


def share_of_donor(settings: GanSettings) -> Share:
    """How the pool is split over the sites of whom the donor is one."""
    donor = settings.donor
    return Share(num_sites=donor.num_sites, how=donor.partition, alpha=donor.partition_alpha, seed=settings.seed)


def start_training(
    settings: GanSettings, folder: Path, *, site_folder: Path | None = None, progress: GanProgress = lambda *_: None
) -> Training:
    """Train a generator in `folder`, or go on where it stopped; charged before the networks see a patient's image.

    Guarantee: with a finite target, the generator, every checkpoint's networks, samples and losses together are
    (target_epsilon, delta)-DP towards each unit of the donor's cohort; the generator is post-processing of a discriminator of
    which every step is one Gaussian mechanism. Without, there is none.
    Neighbouring cohorts: one unit's images zeroed out, sizes public.

    Args:
      settings: of the training.
      folder: of the training; made here, readable by its owner only.
      site_folder: of the donor site, whose cohort, policy and ledger are used then.
      progress: called after every step.

    Raises:
      InvalidSetting: If the folder holds another training, or a setting does not fit.
      PrivacyRefused: If the site's policy or budget does not allow it.
      DataError: If the cohort cannot be read.
    """
    site = None if site_folder is None else SiteFolder.open(site_folder).file
    settings = settings_at(settings, site)
    donor = donor_cohort(settings, site)
    cohort = donor.cohort
    most = settings.privacy.max_images_per_patient
    cohort = cohort.select(limit_images_per_patient(cohort, np.arange(len(cohort)), most=most))
    check_policy(settings, site, cohort)
    new_private_folder(folder)
    with held(folder / LOCK_NAME, what="mammo-fed gan train"):
        training = _begun(settings, folder, cohort=cohort, donor=donor, site=site)
        real = real_images(cohort, image_size=settings.gan.image_size, unit=settings.privacy.unit)
        if training.event is None:
            train_gan(settings, plain_gradients(real, batch_size=settings.gan.batch_size), folder, progress=progress)
            return training
        gradients = private_gradients(
            real,
            charged=training.event,
            public_units=training.donor.patients if settings.privacy.unit == "patient" else training.public_images,
            noise=NoiseSource(injected_seed=settings.privacy.noise_seed),
            mode=settings.privacy.noise,
        )
        _charged(settings, folder, training, gradients, cohort=cohort, site=site, progress=progress)
    return training


def settings_at(settings: GanSettings, site: SiteFile | None) -> GanSettings:
    """The settings as they hold at a donor site: its file says what its cohort is, and how many images a patient may have."""
    if site is None:
        return settings
    limited = replace(settings.privacy, max_images_per_patient=site.policy.max_images_per_patient)
    return replace(settings, data=site.data, privacy=limited)


def _charged(
    settings: GanSettings,
    folder: Path,
    training: Training,
    gradients: RealGradient,
    *,
    cohort: Cohort,
    site: SiteFile | None,
    progress: GanProgress,
) -> None:
    """Declare the training, charge it once, and see that the folder holds the generator that was paid for."""
    events = training.events
    with _ledger(settings, folder, site) as ledger:
        account = {} if site is None else {"account": site.policy.account}
        ledger.declare(run_id=training.run_id, schedule=events, patients=sorted(set(cohort.patients.tolist())), **account)

        def train(_: TrainingState | None) -> bytes:
            adversaries = train_gan(settings, gradients, folder, progress=progress)
            return json.dumps({"generator_sha256": weights_sha256(adversaries.average)}).encode()

        # A training that was interrupted goes on from its last checkpoint, under the same reservation.
        reply = charged_once(
            ledger,
            Charge(run_id=training.run_id, round_index=0, task_hash=settings.sha256(), events=events),
            train=train,
            failed=None,
            state=None,
        )
    if load_average(settings, folder, last_step(settings, folder))[1] != json.loads(reply)["generator_sha256"]:
        raise LedgerError(f"{folder} does not hold the generator that was paid for; restore it from a backup")


@contextmanager
def _ledger(settings: GanSettings, folder: Path, site: SiteFile | None) -> Iterator[Ledger]:
    if site is not None:
        with site_ledger(site, usual="declared") as ledger:
            yield ledger
        return
    budget = Budget(max_epsilon=settings.privacy.target_epsilon, delta=settings.privacy.delta)
    with Ledger.open(folder / LEDGER_NAME, site="donor", budget=budget, filter="declared") as ledger:
        yield ledger


def check_policy(settings: GanSettings, site: SiteFile | None, cohort: Cohort) -> None:
    """Hold the training against the donor's policy; budgets are the ledger's matter."""
    privacy, complaints = settings.privacy, []
    if not cohort.public:
        if not privacy.private:
            complaints.append("privacy.target_epsilon=inf trains without privacy on a cohort that is not declared public")
        if privacy.noise_seed is not None:
            complaints.append("privacy.noise_seed is set and the cohort is not declared public")
        if privacy.noise == "float":
            complaints.append("privacy.noise=float has gaps that can be read; secure is needed where the cohort is not public")
    if site is not None:
        policy = site.policy
        if privacy.private and privacy.unit not in policy.units:
            complaints.append(f"privacy.unit={privacy.unit} is not among {policy.units}")
        if privacy.private and privacy.delta > policy.delta:
            complaints.append(f"privacy.delta={privacy.delta} is above the policy's {policy.delta}")
        if cohort.num_patients < policy.min_patients:
            complaints.append(f"the cohort has fewer than min_patients={policy.min_patients}")
    if complaints:
        raise PolicyRefused("the donor's policy refuses the training: " + "; ".join(complaints))


def _begun(settings: GanSettings, folder: Path, *, cohort: Cohort, donor: DonorCohort, site: SiteFile | None) -> Training:
    """What was decided at the first start; decided now if this is it."""
    identity = settings.sha256()
    path = folder / TRAINING_NAME
    public_images = site.policy.public_images if site else len(cohort)
    if path.exists():
        found = read_training(folder)
        if found.settings_sha256 != identity or found.at_site != (site is not None):
            raise InvalidSetting(
                f"hydra.run.dir={folder} holds a training with other settings, or of another site: give those to go on with "
                "it, or another folder"
            )
        if found.cohort != donor.fingerprint:
            raise DataError(f"the donor's images are not those that {folder} began with; choose another folder")
        return found
    if checkpoint_steps(folder):
        raise LedgerError(
            f"{folder} has checkpoints and no {TRAINING_NAME}; restore it from a backup, or choose another folder"
        )
    training = Training(
        run_id=RUN_PREFIX + secrets.token_hex(8),
        settings_sha256=identity,
        donor=Donor(
            name=site.site if site else settings.donor.name,
            source=donor.source,
            public=cohort.public,
            patients=site.policy.public_patients if site else cohort.num_patients,
            images=public_images,
            fingerprint=donor.fingerprint if cohort.public else secrets.token_hex(32),
            image_digests=image_digests(donor.cohort) if cohort.public else (),
        ),
        public_images=public_images,
        event=gan_event(settings, public_images=public_images) if settings.privacy.private else None,
        injected=settings.privacy.noise_seed is not None,
        at_site=site is not None,
        cohort=donor.fingerprint,
    )
    write_private(path, (json.dumps(training.as_dict(), indent=2) + "\n").encode())
    return training


def read_training(folder: Path) -> Training:
    """What a training in `folder` decided at its start.

    Raises:
      DataError: If there is none, or it is damaged.
    """
    path = folder / TRAINING_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise DataError(f"{path} is of another version; train anew")
        event = values.pop("event")
        found = build(Training, {**values, "event": None}, path="")
        return replace(found, event=None if event is None else PrivacyEvent.from_dict(event))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give the folder of `mammo-fed gan train`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not what was written there; restore it from a backup") from error


def new_private_folder(folder: Path) -> None:
    """Make the folder of a training, readable by its owner only; one that is there is closed to others.

    Raises:
      InvalidSetting: If it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise InvalidSetting(f"hydra.run.dir={folder} cannot be made ({error.strerror}); choose another folder") from error


def load_average(settings: GanSettings, run: Path, step: int) -> tuple[Generator, str]:
    """The averaged generator of a step, and the hash of its weights."""
    average = Generator(mcgan_spec(settings.gan))
    read_average(run, step, average)
    return average, weights_sha256(average)


def last_step(settings: GanSettings, run: Path) -> int:
    """The step of the finished training.

    Raises:
      DataError: If it is not finished.
    """
    steps = checkpoint_steps(run)
    if not steps or steps[-1] != settings.gan.steps:
        reached = steps[-1] if steps else 0
        raise DataError(
            f"{run} has reached step {reached} of {settings.gan.steps}: go on with `mammo-fed gan train --resume {run}`"
        )
    return steps[-1]
