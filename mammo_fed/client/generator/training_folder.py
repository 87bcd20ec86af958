"""What a generator's training keeps in its folder: what was decided when it began, and its generators."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mammo_fed.client.generator.cohort import TrainingCohort
from mammo_fed.client.policy import SiteFile
from mammo_fed.common.private_files import write_private
from mammo_fed.common.serialization import build, plain
from mammo_fed.data.cohort import Cohort
from mammo_fed.data.sources.synthetic_set import Donor, image_digests
from mammo_fed.errors import DataError, InvalidSetting, LedgerError
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.settings.gan import GanSettings
from mammo_fed.synthesis.adversarial import mcgan_spec
from mammo_fed.synthesis.checkpoints import checkpoint_steps, read_average
from mammo_fed.synthesis.mcgan import Generator
from mammo_fed.synthesis.real_gradients import gan_event
from mammo_fed.synthesis.sampling import weights_sha256

__all__ = ["Training", "begin_training", "last_step", "load_average", "new_private_folder", "read_training"]

TRAINING_NAME: Final = "training.json"
FORMAT: Final = "mammo-fed gan training 1"
RUN_PREFIX: Final = "gan-"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What was decided when a training began, and is kept next to it.

    Attributes:
      run_id: under which it is charged.
      settings_sha256: of the settings.
      donor: whose patients, as a set's provenance says it.
      public_images: the divisor, declared public.
      event: what it does to them, or None without privacy.
      injected: whether its noise can be drawn again.
      at_site: whether a site's own ledger is charged; else one in the training's folder.
      cohort: fingerprint of the patients' images, keyed where they are not public; it stays here.
      site_folder: of that site when the training was resumed last, "" where it is none or not known; it stays here.
    """

    run_id: str
    settings_sha256: str
    donor: Donor
    public_images: int
    event: PrivacyEvent | None
    injected: bool
    at_site: bool
    cohort: str
    site_folder: str = ""

    @property
    def events(self) -> tuple[PrivacyEvent, ...]:
        """What is charged; nothing without privacy."""
        return () if self.event is None else (self.event,)

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        event = None if self.event is None else self.event.as_dict()
        return {**plain(replace(self, event=None)), "event": event, "format": FORMAT}


def begin_training(
    settings: GanSettings,
    folder: Path,
    *,
    cohort: Cohort,
    source: TrainingCohort,
    site: SiteFile | None,
    site_folder: Path | None,
) -> Training:
    """What was decided when the training in `folder` began; decided now where it holds none.

    Args:
      settings: of the training.
      folder: of the training.
      cohort: the masses that it learns from, after the limit on a patient's images.
      source: where they come from.
      site: whose they are, or None.
      site_folder: of that site.

    Raises:
      InvalidSetting: If the folder holds another training.
      DataError: If the training there began with other images.
      LedgerError: If its record is gone.
    """
    identity = settings.sha256()
    path = folder / TRAINING_NAME
    place = "" if site_folder is None else str(site_folder.absolute())
    public_images = site.policy.public_images if site else len(cohort)
    if path.exists():
        found = read_training(folder)
        if found.settings_sha256 != identity or found.at_site != (site is not None):
            raise InvalidSetting(
                f"hydra.run.dir={folder} holds a training with other settings, or of another site: give those to go on with "
                "it, or another folder"
            )
        if found.cohort != source.fingerprint:
            raise DataError(f"the images are not those that {folder} began with; choose another folder")
        if found.site_folder != place:
            found = replace(found, site_folder=place)
            _write(path, found)
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
            source=source.source,
            public=cohort.public,
            patients=site.policy.public_patients if site else cohort.num_patients,
            images=public_images,
            fingerprint=source.fingerprint if cohort.public else secrets.token_hex(32),
            image_digests=image_digests(source.cohort) if cohort.public else (),
            numbering=source.known.numbering,
            patient_digests=source.known.digests,
        ),
        public_images=public_images,
        event=gan_event(settings, public_images=public_images) if settings.privacy.private else None,
        injected=settings.privacy.noise_seed is not None,
        at_site=site is not None,
        cohort=source.fingerprint,
        site_folder=place,
    )
    _write(path, training)
    return training


def _write(path: Path, training: Training) -> None:
    write_private(path, (json.dumps(training.as_dict(), indent=2) + "\n").encode())


def read_training(folder: Path) -> Training:
    """What a training in `folder` decided at its start.

    Raises:
      DataError: If there is none, or it is damaged.
    """
    path = folder / TRAINING_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise DataError(f"{path} is of another version; train again in another folder")
        event = values.pop("event")
        # Trainings of an earlier version do not say where their site was, nor who their patients are.
        values["donor"] = {"numbering": "", "patient_digests": [], **values["donor"]}
        found = build(Training, {"site_folder": "", **values, "event": None}, path="")
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
