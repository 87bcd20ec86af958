"""Models trained as a federation trains its own, on patients of one's choice: what membership inference compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mammo_fed.audit.subject import Mechanism, Subject
from mammo_fed.privacy.noise import Draws, NoiseSource
from mammo_fed.training.local import SiteFeatures

__all__ = ["Model", "Population", "site_data", "train_shadow"]

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """What a federation releases: the aggregated mean that centres features, and the head."""

    feature_mean: Floats32
    parameters: Floats32


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """Everybody whose membership is asked for.

    Attributes:
      features: float32, shape (images, dims), whitened, not centred.
      labels: int64, shape (images,).
      patients: int64, shape (images,), dense over members and others.
      sites: int64, shape (images,): the site of each member; any number for the others, who are dealt out to the sites.
      members: bool, shape (images,): whether the patient was trained on; the others are held-out patients.
    """

    features: Floats32
    labels: NDArray[np.int64]
    patients: NDArray[np.int64]
    sites: NDArray[np.int64]
    members: NDArray[np.bool_]


def train_shadow(data: Sequence[SiteFeatures], sites: Sequence[Subject], *, tail: float) -> Model:
    """The model that `sites` would release if `data` were theirs, with fresh noise."""
    source, code = NoiseSource(injected_seed=None), Mechanism()
    weights = [each.public_images for each in data]
    pairs = list(zip(data, sites, strict=True))

    def draws(site: Subject, index: int, purpose: str) -> Draws:
        return source.draws(site.noise, site=site.site, round_index=index, purpose=purpose)

    feature_mean = np.zeros(sites[0].head.dims, np.float32)
    if all(site.schedule.mean_event is not None for site in sites):
        means = [code.mean(each, event=site.schedule.mean_event, noise=draws(site, 0, "noise")) for each, site in pairs]
        feature_mean = _average(means, weights)
    parameters, models = sites[0].start, []
    for index in range(1, max(site.schedule.rounds for site in sites) + 1):
        updates = [
            code.train(
                each,
                parameters,
                head=site.head,
                feature_mean=feature_mean,
                steps=site.steps,
                event=site.schedule.step_event,
                closed_form=site.closed_form,
                noise=draws(site, index, "noise"),
                sampling=draws(site, index, "sampling"),
            )
            for each, site in pairs
        ]
        parameters = _average(updates, weights)
        models.append(parameters)
    last = max(1, round(tail * len(models)))
    return Model(feature_mean=feature_mean, parameters=_average(models[-last:], [1] * last))


def site_data(population: Population, rows: NDArray[np.bool_], site: Subject) -> SiteFeatures:
    """`rows` (bool) of the population as the data of `site`."""
    by_patient = site.schedule.step_event.unit == "patient"
    units = population.patients[rows] if by_patient else np.arange(int(rows.sum()))
    return SiteFeatures(
        features=population.features[rows],
        labels=population.labels[rows],
        units=np.unique(units, return_inverse=True)[1].astype(np.int64),
        public_images=site.data.public_images,
    )


def _average(arrays: Sequence[Floats32], weights: Sequence[int]) -> Floats32:
    return np.average(np.stack(arrays).astype(np.float64), axis=0, weights=weights).astype(np.float32)
