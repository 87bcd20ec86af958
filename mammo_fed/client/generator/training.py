"""A generator's training at a site: declared, charged once, and resumed exactly where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from mammo_fed.client.charging import Charge, TrainingState, charged_once
from mammo_fed.client.folder import SiteFolder
from mammo_fed.client.generator.cohort import check_policy, settings_at, training_cohort
from mammo_fed.client.generator.custody import Settled, TrainingLease, check_paid, training_ledger
from mammo_fed.client.generator.training_folder import Training, begin_training, load_average, new_private_folder
from mammo_fed.client.generator.withdrawals import heeding_withdrawals
from mammo_fed.client.policy import SiteFile
from mammo_fed.common.private_files import file_lock
from mammo_fed.data.cohort import Cohort
from mammo_fed.data.run_cohorts import limit_images_per_patient
from mammo_fed.privacy.ledger.ledger import Ledger
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.settings.gan import GanSettings
from mammo_fed.synthesis.adversarial import Adversaries, RealGradient
from mammo_fed.synthesis.checkpoints import checkpoint_steps
from mammo_fed.synthesis.real_gradients import plain_gradients, private_gradients, real_images
from mammo_fed.synthesis.sampling import weights_sha256
from mammo_fed.synthesis.scalars import require_tensorboard
from mammo_fed.synthesis.training import GanProgress, train_gan

__all__ = ["start_training"]

LOCK_NAME: Final = ".lock"


def start_training(
    settings: GanSettings,
    folder: Path,
    *,
    site_folder: Path | None = None,
    progress: GanProgress = lambda *_: None,
    tensorboard: bool = False,
) -> Training:
    """Train a generator in `folder`, or resume it where it stopped; charged before the networks see a patient's image.

    Guarantee: with a finite target, the generator, every checkpoint's networks, samples and losses together are
    (target_epsilon, delta)-DP towards each unit of the cohort; the generator is post-processing of a discriminator of
    which every step is one Gaussian mechanism. Without, there is none.
    Neighbouring cohorts: one unit contributes nothing, sizes public.

    A patient who withdraws at the site has no part in any step from the next one on, whether the training runs, is resumed or
    begins; steps that were taken before stay in the generator, and stay charged.

    Args:
      settings: of the training.
      folder: of the training; made here, readable by its owner only.
      site_folder: of the site whose cohort, policy and ledger are used; None takes the public cohort of the settings.
      progress: called after every step, and told of what a checkpoint holds alone; as of `train_gan`.
      tensorboard: as of `train_gan`.

    Raises:
      InvalidSetting: If the folder holds another training, or a setting does not fit.
      PrivacyRefused: If the site's policy or budget does not allow it.
      DataError: If the cohort cannot be read.
    """
    if tensorboard:
        require_tensorboard()
    site = None if site_folder is None else SiteFolder.open(site_folder).file
    settings = settings_at(settings, site)
    source = training_cohort(settings, site)
    cohort = source.taking_part
    most = settings.privacy.max_images_per_patient
    cohort = cohort.select(limit_images_per_patient(cohort, np.arange(len(cohort)), most=most))
    check_policy(settings, site, cohort)
    new_private_folder(folder)
    train = partial(train_gan, settings, folder=folder, progress=progress, tensorboard=tensorboard)
    with file_lock(folder / LOCK_NAME, what="mammo-fed gan train"):
        training = begin_training(settings, folder, cohort=cohort, source=source, site=site, site_folder=site_folder)
        real = real_images(cohort, image_size=settings.gan.image_size, unit=settings.privacy.unit)
        if training.event is None:
            train(plain_gradients(real, batch_size=settings.gan.batch_size))
            return training
        gradients = private_gradients(
            real,
            event=training.event,
            public_units=training.donor.patients if settings.privacy.unit == "patient" else training.public_images,
            noise=NoiseSource(injected_seed=settings.privacy.noise_seed),
            mode=settings.privacy.noise,
        )
        heeded = partial(
            heeding_withdrawals,
            gradients,
            cohort=cohort,
            real=real,
            min_patients=0 if site is None else site.policy.min_patients,
        )
        _charged(settings, folder, training, train, gradients=heeded, cohort=cohort, site=site)
    return training


def _charged(
    settings: GanSettings,
    folder: Path,
    training: Training,
    train: Callable[..., Adversaries],
    *,
    gradients: Callable[[Ledger], RealGradient],
    cohort: Cohort,
    site: SiteFile | None,
) -> None:
    """Declare the training, charge it once, and see that the folder holds the generator that was paid for."""
    task = Charge(run_id=training.run_id, round_index=0, task_hash=settings.sha256(), events=training.events)
    with training_ledger(settings, folder, training, site) as (ledger, remember):
        reply = ledger.stored_reply(run_id=task.run_id, round_index=task.round_index, task_hash=task.task_hash)
        if reply is None:
            account = {} if site is None else {"account": site.policy.account}
            patients = sorted(set(cohort.patients.tolist()))
            ledger.declare(run_id=training.run_id, schedule=task.events, patients=patients, **account)
            lease = TrainingLease(folder, run_id=training.run_id, ledger=ledger, remember=remember)

            def train_to_the_end(_: TrainingState | None) -> bytes:
                last = weights_sha256(train(gradients(ledger), custody=lease).average)
                kept = {step: load_average(settings, folder, step)[1] for step in checkpoint_steps(folder)}
                return Settled(last=last, checkpoints=kept).reply()

            # A training that was interrupted goes on from its last checkpoint, under the same reservation.
            reply = charged_once(ledger, task, train=train_to_the_end, failed=None, state=None, holder=lease)
            remember()
    check_paid(settings, folder, Settled.from_reply(reply))
