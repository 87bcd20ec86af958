"""What a shared synthetic set means for the patients of a run: whom its generator saw, and what that adds up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from mammo_fed.data.cache import ArrayCache
from mammo_fed.data.known_patients import Overlap, known_patients, patient_overlap
from mammo_fed.data.run_cohorts import load_pool, synthetic_cohort
from mammo_fed.data.sources.synthetic_set import SetProvenance, image_digests
from mammo_fed.errors import PolicyRefused
from mammo_fed.federation.public_start import PublicStart
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import events_from_json
from mammo_fed.privacy.names import AccountantName
from mammo_fed.reporting.record.provenance import Provenance
from mammo_fed.server.rounds.budget import SiteSpending
from mammo_fed.settings import Settings
from mammo_fed.settings.data import Partition

__all__ = ["check_synthesis", "overlap_of", "seen_by_generator"]

PAPER: Final = "CBIS-DDSM training images"


def overlap_of(start: PublicStart, settings: Settings, share: Partition, *, here: bool, cache: ArrayCache) -> Overlap:
    """Whether patients whom the generator saw train in this run.

    "some" where an image or a patient is in both, "none" only where the patients of both are known in one numbering and nobody
    and no image is in both; else "unknown".

    Args:
      start: of the run.
      settings, share: which patients train, where this process can see them.
      here: whether it can: in a simulation. Real sites' patients are their own matter, and the answer is "unknown".
      cache: of drawn phantoms.
    """
    if start.provenance == "procedural":
        return "none"
    if not here:
        return "unknown"
    data, pool = settings.data, load_pool(settings.data, share, cache=cache).cohort
    if not pool.public:
        return "unknown"
    images = set(image_digests(pool))
    # A set of images that were not drawn at all.
    drawn = synthetic_cohort(settings.synthesis, data, seed=settings.seed, cache=cache)
    if not images.isdisjoint(image_digests(drawn)):
        return "some"
    if start.origin is None:
        return "unknown"
    donor = start.origin.donor
    if not images.isdisjoint(donor.image_digests):
        return "some"
    return patient_overlap(
        donor.known, known_patients(pool, source=data.source, drawn=data.train == "synthetic", seed=share.seed)
    )


def check_synthesis(start: PublicStart, settings: Settings, overlap: Overlap) -> None:
    """Hold the set against `privacy.require_public_synthesis`.

    Raises:
      PolicyRefused: If it is on, and patients are behind the set without differential privacy, or may train in this run too.
    """
    if not settings.privacy.require_public_synthesis or start.provenance == "procedural":
        return
    if start.provenance != "dp":
        raise PolicyRefused(
            "privacy.require_public_synthesis=true: the generator of the synthetic set saw patients without differential "
            "privacy; use synthesis.source=phantom, or a set that was trained with it"
        )
    if overlap != "none":
        word = "train in this run too" if overlap == "some" else "may train in this run too"
        raise PolicyRefused(
            f"privacy.require_public_synthesis=true: patients whom the synthetic set's generator saw {word}, and would pay for "
            "both; use synthesis.source=phantom, or a set of other patients"
        )


def seen_by_generator(
    start: PublicStart,
    sites: Sequence[SiteSpending],
    *,
    overlap: Overlap,
    settings: Settings,
    run_alone: bool,
    patient_epsilons: Sequence[float],
) -> Provenance:
    """What the generator saw, and the guarantee in all for a patient who is in both cohorts.

    Two schedules of one unit that stand for themselves are composed exactly, at the run's delta. Otherwise (a cap over all
    runs, or two units) epsilons and deltas add up.

    Args:
      start: of the run.
      sites: that were charged.
      overlap: between the two cohorts.
      settings: of the run.
      run_alone: whether the run's guarantee is about it alone; else the sites' caps hold.
      patient_epsilons: of the same sites, towards a patient.
    """
    if start.provenance == "procedural":
        return Provenance(epsilon=0.0, delta=0.0, trained_on="no patient (procedural images)", overlap="none")
    origin = start.origin
    if origin is None:
        known = start.provenance == "no_dp"
        return Provenance(epsilon=math.inf, delta=0.0, trained_on=PAPER if known else "unknown data", overlap=overlap)
    promised = origin.privacy
    trained_on = f"{origin.donor.images:,} images of {origin.donor.patients:,} patients at {origin.donor.name}"
    if promised is None or start.provenance != "dp":
        return Provenance(epsilon=math.inf, delta=0.0, trained_on=trained_on, overlap=overlap, chosen=origin.generator.chosen)
    same = promised.unit == settings.privacy.unit
    if settings.privacy.noise_seed is not None or math.isinf(settings.privacy.target_epsilon) or not sites:
        total, total_delta = math.inf, 0.0
    elif run_alone and same:
        total_delta = max(settings.privacy.delta, promised.delta)
        total = max(_composed(origin, site, delta=total_delta, accountant=settings.privacy.accountant) for site in sites)
    else:
        mine = promised.epsilon if same else promised.patient_epsilon
        if same:
            theirs = [max(site.cap_epsilon, site.epsilon) for site in sites]
        else:
            theirs = list(patient_epsilons)
        total = mine + max(theirs)
        total_delta = promised.delta + max(max(site.cap_delta, settings.privacy.delta) for site in sites)
    return Provenance(
        epsilon=promised.epsilon,
        delta=promised.delta,
        trained_on=trained_on,
        overlap=overlap,
        generator_unit=promised.unit,
        generator_floating=promised.floating,
        total_epsilon=total,
        total_delta=total_delta,
        total_unit=promised.unit if same else "patient",
        chosen=origin.generator.chosen,
        events=events_from_json(promised.events),
        generator_accountant=promised.accountant,
    )


def _composed(origin: SetProvenance, site: SiteSpending, *, delta: float, accountant: AccountantName) -> float:
    """Epsilon of the generator's training and this site's part of the run together."""
    if origin.privacy is None:
        return math.inf
    trained = events_from_json(origin.privacy.events)
    together = epsilon((*trained, *site.events), delta=delta, accountant=accountant)
    # Prices are rounded up each for itself; the whole is never shown below a part.
    return max(together, site.epsilon, epsilon(trained, delta=delta, accountant=accountant))
