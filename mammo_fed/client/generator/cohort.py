"""Whose patients a generator learns from, and whether their site's policy allows it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mammo_fed.client.charging import withdrawn_at_site
from mammo_fed.client.policy import SiteFile
from mammo_fed.common.private_files import load_or_create_secret
from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.data.cohort import Cohort, fingerprint
from mammo_fed.data.known_patients import NOBODY_KNOWN, KnownPatients, known_patients
from mammo_fed.data.run_cohorts import load_pool
from mammo_fed.errors import DataError, InvalidSetting, PolicyRefused
from mammo_fed.settings.data import Partition
from mammo_fed.settings.gan import GanSettings

__all__ = ["TrainingCohort", "check_policy", "settings_at", "training_cohort", "training_partition", "without_withdrawn"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingCohort:
    """The masses that a generator learns from.

    Attributes:
      cohort: all of them, withdrawn patients' too: what is said of the cohort must not tell who withdrew.
      source: where they come from.
      fingerprint: of all of them, keyed with a secret of this place unless they are public.
      taking_part: those of patients who have not withdrawn.
      known: who the patients are, where they are public.
    """

    cohort: Cohort
    source: str
    fingerprint: str
    taking_part: Cohort
    known: KnownPatients


def training_cohort(settings: GanSettings, site: SiteFile | None) -> TrainingCohort:
    """The masses that a generator learns from: a site's, or those that the settings choose from a public cohort.

    Raises:
      InvalidSetting: If the cohort is not public and no site answers for it.
      DataError: If it cannot be read, or a class is missing.
    """
    cache = ArrayCache(Path(site.cache if site else settings.cache or default_cache_root()).expanduser())
    data = site.data if site else settings.data
    share = site.share if site else training_partition(settings)
    pool = load_pool(data, share, cache=cache)
    if site is None and not pool.cohort.public:
        raise InvalidSetting(
            "data.public=false: a generator learns from patients who are not public under their site's own policy and ledger "
            "only; give --site FOLDER (see `site-client init`)"
        )
    rows = pool.rows[site.index if site else settings.donor.index]
    cohort = pool.cohort.select(rows, name=site.site if site else settings.donor.name)
    taking_part = without_withdrawn(cohort, site)
    if len(np.unique(taking_part.labels)) != 2:
        # Without its value: only whoever runs this at the site reads that a class is missing.
        raise DataError("a conditional generator needs malignant and benign images; choose another cohort")
    key = None if cohort.public else load_or_create_secret(cache.root / "fingerprint.key")
    known = NOBODY_KNOWN
    if cohort.public:
        known = known_patients(cohort, source=data.source, drawn=data.train == "synthetic", seed=share.seed)
    content = fingerprint(cohort, key=key)
    return TrainingCohort(cohort=cohort, source=data.source, fingerprint=content, taking_part=taking_part, known=known)


def without_withdrawn(cohort: Cohort, site: SiteFile | None) -> Cohort:
    """The masses of all patients who have not withdrawn at their site; all of them where no site answers for them.

    Raises:
      DataError: If nobody is left.
      LedgerError: If the site's ledger cannot say who withdrew.
    """
    if site is None:
        return cohort
    gone = withdrawn_at_site(site, cohort.patients.tolist()).patients
    return cohort.select(~np.isin(cohort.patients, sorted(gone))) if gone else cohort


def training_partition(settings: GanSettings) -> Partition:
    """How the pool is split over the sites, one of which trains the generator."""
    donor = settings.donor
    return Partition(num_sites=donor.num_sites, how=donor.partition, alpha=donor.partition_alpha, seed=settings.seed)


def settings_at(settings: GanSettings, site: SiteFile | None) -> GanSettings:
    """The settings as they hold at a site: its file says what its cohort is, and how many images a patient may have."""
    if site is None:
        return settings
    limited = replace(settings.privacy, max_images_per_patient=site.policy.max_images_per_patient)
    return replace(settings, data=site.data, privacy=limited)


def check_policy(settings: GanSettings, site: SiteFile | None, cohort: Cohort) -> None:
    """Check the training against the policy of the patients' site; budgets are the ledger's matter.

    Raises:
      PolicyRefused: With every reason.
    """
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
        raise PolicyRefused("the site's policy refuses the training: " + "; ".join(complaints))
