"""A finished run as the audit sees it: its sites' data, what they ran, what they claim, and the model it released."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mammo_fed.audit.claims import Claim
from mammo_fed.audit.membership import Membership, infer_membership
from mammo_fed.audit.shadows import Model, Population
from mammo_fed.audit.subject import Subject
from mammo_fed.audit.trials import Progress
from mammo_fed.client.policy import SiteFile, read_site_file
from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.cohort import Cohort, fingerprint
from mammo_fed.data.run_cohorts import Pool, evaluation_cohorts, limit_images_per_patient, load_pool
from mammo_fed.errors import DataError, InvalidSetting, WeightsError
from mammo_fed.extensions.kinds import MECHANISMS
from mammo_fed.federation.protocol.site_schedule import plan_for_site
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.federation.public_start import make_public_start
from mammo_fed.models.classifier import MODEL_NAME, Classifier, extractor_spec, read_classifier
from mammo_fed.models.features import Extractor
from mammo_fed.models.whitening import contributing_rows
from mammo_fed.privacy.events import full_batch
from mammo_fed.privacy.patient_identity import normal_identifier, patient_index
from mammo_fed.privacy.schedule import Schedule
from mammo_fed.reporting.record.record import Record, read_record
from mammo_fed.settings import Settings
from mammo_fed.training.local import LocalSteps, SiteFeatures
from mammo_fed.training.recipe import resolve

__all__ = ["FinishedRun", "split_patients"]

# Held-out patients of the same kind as the members, in this order of preference; "external" is another population.
HELD_OUT: Final = ("test", "val")
# One grey value above black in an image of eight bits.
FAINTEST: Final = 1 / 255


class FinishedRun:
    """A run folder, read; features come from the cache or are made again.

    Raises:
      DataError: If the folder holds no finished run with its sites.
      InvalidSetting: If the run had no noise, or noise that was injected: it promised nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: Record = read_record(folder)
        if not self.record.privacy.guaranteed:
            raise InvalidSetting(
                f"the noise of {folder} is {self.record.privacy.noise!r}: a run without secret noise promises nothing to audit"
            )
        self.settings = _read_settings(folder / "config.yaml")
        _require_plain(self.settings)
        self._files = [read_site_file(path) for path in sorted((folder / "sites").glob("*.json"))]
        if not self._files:
            raise DataError(f"{folder}/sites has no site files; only a run whose sites lie in its folder can be audited")
        if self.settings.privacy.mechanism not in MECHANISMS.built_in:
            raise InvalidSetting(
                f"privacy.mechanism={self.settings.privacy.mechanism} must be one of {', '.join(MECHANISMS.built_in)} for an "
                "audit; for one from outside run the gate of mammo_fed.audit.gate, as docs/recipes.md shows"
            )
        self.recipe = resolve(self.settings)
        self._cache = ArrayCache(Path(self._files[0].cache))

    @cached_property
    def pool(self) -> Pool:
        """Training images of all sites."""
        return load_pool(self._files[0].data, self._files[0].share, cache=self._cache)

    @property
    def smallest(self) -> Subject:
        """The site with the fewest images, by its public count."""
        return min(self.sites.values(), key=lambda site: site.data.public_images)

    def site(self, name: str) -> Subject:
        """The site called `name`.

        Raises:
          InvalidSetting: If none of that name trained.
        """
        if name not in self.sites:
            raise InvalidSetting(f"site={name!r} must be one of {sorted(self.sites)}; check --site")
        return self.sites[name]

    @cached_property
    def sites(self) -> dict[str, Subject]:
        """Every site that trained, by name."""
        recorded = {site.site: site for site in self.record.privacy.sites}
        found = {
            file.site: self._subject(file, recorded[file.site].rounds, recorded[file.site].epsilon)
            for file in self._files
            if file.site in recorded and recorded[file.site].rounds > self._means
        }
        if not found:
            raise DataError(f"no site of {self.folder} has trained; there is nothing to audit")
        return found

    def membership(self, *, shadows: int, seed: int, progress: Progress) -> Membership:
        """Membership inference on the released model: every site's patients against held-out ones.

        Raises:
          DataError: If the run has no held-out patients of the same kind.
        """
        cohorts = evaluation_cohorts(self._files[0].data, self._files[0].share, cache=self._cache)
        held_out = next((cohorts[name] for name in HELD_OUT if name in cohorts), None)
        if held_out is None:
            raise DataError("the run has no test or val patients to hold its members against; give --shadows 0")
        rows = [self._rows(file) for file in self._files if file.site in self.sites]
        mine, count = np.concatenate(rows), len(held_out)
        cohort = self.pool.cohort.select(mine)
        patients = np.concatenate([cohort.patients, held_out.patients])
        owners = np.concatenate([np.full(len(part), number) for number, part in enumerate(rows)])
        population = Population(
            features=np.concatenate([self._features[mine], self._features_of(held_out)]),
            labels=np.concatenate([cohort.labels, held_out.labels]),
            patients=patient_index(patients),
            sites=np.concatenate([owners, np.zeros(count, np.int64)]),
            members=np.arange(len(mine) + count) < len(mine),
        )
        return infer_membership(
            population,
            tuple(self.sites.values()),
            Model(feature_mean=self._classifier.feature_mean, parameters=self._classifier.parameters),
            tail=self.settings.federation.tail,
            shadows=shadows,
            seed=seed,
            progress=progress,
        )

    def _subject(self, file: SiteFile, messages: int, epsilon: float) -> Subject:
        privacy, rows = self.settings.privacy, self._rows(file)
        cohort = self.pool.cohort.select(rows)
        schedule = replace(self._planned(file), rounds=messages - self._means)
        units = cohort.unit_index(privacy.unit)
        return Subject(
            site=file.site,
            data=SiteFeatures(
                features=self._features[rows],
                labels=cohort.labels,
                units=units,
                public_images=file.policy.public_images,
            ),
            blank=self._blank,
            schedule=schedule,
            claim=Claim(epsilon=epsilon, delta=privacy.delta, events=schedule.events(), accountant=privacy.accountant),
            head=self._classifier.head,
            closed_form=full_batch(privacy.mechanism),
            steps=self._steps,
            start=self._start,
            noise=privacy.noise,
            split_patients=split_patients(cohort.patients, units) if privacy.unit == "patient" else 0,
        )

    def _planned(self, file: SiteFile) -> Schedule:
        """What the site planned when it accepted the run, by the site's own code and from its own copy of the declaration."""
        path = Path(file.folder) / "runs" / self.record.run_id / "declaration.json"
        try:
            declaration = Declaration.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path} cannot be read: the site does not remember the run") from error
        most = file.policy.max_images_per_patient
        return plan_for_site(declaration, public_images=file.policy.public_images, max_images_per_patient=most)

    @property
    def _means(self) -> int:
        """Messages of each site that are not of training."""
        return int(self.settings.privacy.mean_fraction > 0)

    def _rows(self, file: SiteFile) -> NDArray[np.int64]:
        pool = self.pool
        return limit_images_per_patient(pool.cohort, pool.rows[file.index], most=file.policy.max_images_per_patient)

    @cached_property
    def _extractor(self) -> Extractor:
        extractor = Extractor(extractor_spec(self._classifier.model, seed=self._classifier.seed), cache=self._cache)
        if extractor.weights_sha256 != self._classifier.weights_sha256:
            raise WeightsError(
                f"the backbone weights here are not those of {self.folder}; install the versions in its record.json"
            )
        return extractor

    @cached_property
    def _classifier(self) -> Classifier:
        return read_classifier(self.folder / MODEL_NAME)

    @cached_property
    def _features(self) -> NDArray[np.float32]:
        """Whitened features of the whole pool, as its sites' releases take them."""
        cohort = self.pool.cohort
        blocks = self._extractor.blocks(cohort.pixels, fingerprint=self.pool.fingerprint)
        return contributing_rows(self._classifier.features(blocks), cohort.present)

    def _features_of(self, cohort: Cohort) -> NDArray[np.float32]:
        """Whitened features of a held-out set; only a public one has a fingerprint to be cached under."""
        if cohort.public:
            blocks = self._extractor.blocks(cohort.pixels, fingerprint=fingerprint(cohort, key=None))
        else:
            blocks = self._extractor.compute(cohort.pixels, flips=self.settings.model.flips)
        return contributing_rows(self._classifier.features(blocks), cohort.present)

    @cached_property
    def _blank(self) -> NDArray[np.float32]:
        pixels = np.zeros((1, *self.pool.cohort.image_size), np.float32)
        # An image that is black all over contributes nothing, and nobody could find it.
        pixels[0, 0, 0] = FAINTEST
        blank: NDArray[np.float32] = self._classifier.features(
            self._extractor.compute(pixels, flips=self.settings.model.flips)
        )[0]
        return blank

    @cached_property
    def _start(self) -> NDArray[np.float32]:
        return make_public_start(self.settings, self._extractor, cache=self._cache).parameters

    @property
    def _steps(self) -> LocalSteps:
        privacy, federation = self.settings.privacy, self.settings.federation
        return LocalSteps(
            learning_rate=self.recipe.learning_rate,
            weight_decay=privacy.weight_decay,
            optimizer=privacy.optimizer,
            label_smoothing=privacy.label_smoothing,
            proximal=federation.proximal_mu if federation.resolved_strategy == "FedProx" else 0.0,
        )


def split_patients(patients: NDArray[Any], units: NDArray[np.int64]) -> int:
    """How many patients are more than one unit, patients compared as the ledger compares them, whatever made the units.

    Args:
      patients: identifiers, shape (images,).
      units: int64, shape (images,).
    """
    of_patient: dict[str, set[int]] = {}
    for patient, unit in zip(patients.tolist(), units.tolist(), strict=True):
        of_patient.setdefault(normal_identifier(str(patient)), set()).add(unit)
    return sum(len(found) > 1 for found in of_patient.values())


def _require_plain(settings: Settings) -> None:
    """Refuse what the adversary does not know how to forecast, rather than report on another mechanism."""
    model, use = settings.model, settings.synthesis.use
    if model.flips == "random" or model.norm != "unit" or "augment" in use or settings.federation.keep_optimizer:
        raise InvalidSetting(
            "the audit knows one feature of norm 1 for each image and sites without memory: it cannot test a run with "
            "model.flips=random, model.norm=none, synthesis.use=[augment] or federation.keep_optimizer=true"
        )


def _read_settings(path: Path) -> Settings:
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise DataError(f"{path} cannot be read; give the folder of a finished run") from error
    return Settings.from_mapping(values)
