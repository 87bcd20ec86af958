"""What one round releases at a site: in plaintext with all of its noise, or under masks with all of it or a noise share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mammo_fed.client.rounds.masked_sums import MaskedSums
from mammo_fed.errors import InvalidSetting, PolicyRefused
from mammo_fed.federation.protocol.payload import PublicPayload
from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.federation.secure_aggregation.double_masks import Roster
from mammo_fed.federation.secure_aggregation.opening import LARGEST, quantised, within_range
from mammo_fed.privacy.events import PrivacyEvent, full_batch
from mammo_fed.privacy.mechanisms.poisson_sgd import OptimizerState, PublicBatches
from mammo_fed.privacy.mechanisms.unit_descent import UnitGradient
from mammo_fed.privacy.noise.source import NoiseSource
from mammo_fed.privacy.schedule import Schedule
from mammo_fed.privacy.shared_noise import largest_share
from mammo_fed.training.local import LocalSteps, SiteFeatures, gradient_share, mean_share, release_mean, train_head

__all__ = ["Prepared", "Release", "check_arrays", "event_of", "mixed"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A run that the site has accepted; `optimizer` lives as long as the process, and never leaves it."""

    declaration: Declaration
    schedule: Schedule
    data: SiteFeatures
    public: PublicBatches | None
    optimizer: OptimizerState | None
    gradient: UnitGradient | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Release:
    """One round at one site, reserved in its ledger.

    Guarantee: that of `event`, for every unit of the prepared data; under shared noise, of the sum alone.

    Attributes:
      site: its name.
      images: its public number of images.
      prepared, task, event: of the round.
      feature_mean, arrays: float32, what the task starts from.
    """

    site: str
    images: int
    prepared: Prepared
    task: RoundTask
    event: PrivacyEvent
    feature_mean: NDArray[np.float32]
    arrays: NDArray[np.float32]

    def plain(self, optimizer: OptimizerState | None) -> NDArray[np.float32]:
        """The site's mean or trained head, float32, flat; `optimizer` is what is kept between rounds, changed in place."""
        prepared, task = self.prepared, self.task
        declaration = prepared.declaration
        source, mode = NoiseSource(injected_seed=declaration.noise_seed), declaration.noise
        noise = source.draws(mode, site=self.site, round_index=task.round_index, purpose="noise")
        if task.kind == "mean":
            return release_mean(prepared.data, event=self.event, noise=noise)
        return train_head(
            prepared.data,
            self.arrays,
            head=declaration.head,
            feature_mean=self.feature_mean,
            steps=LocalSteps(
                learning_rate=task.learning_rate,
                weight_decay=task.weight_decay,
                optimizer=task.optimizer,
                label_smoothing=task.label_smoothing,
                proximal=task.proximal,
            ),
            event=self.event,
            closed_form=full_batch(declaration.mechanism),
            noise=noise,
            sampling=source.draws(mode, site=self.site, round_index=task.round_index, purpose="sampling"),
            normalize=declaration.model.norm == "unit",
            public=prepared.public,
            state=optimizer,
            gradient=prepared.gradient,
        )

    def masked(self, sums: MaskedSums, roster: Roster, optimizer: OptimizerState | None) -> NDArray[np.uint64]:
        """What `plain` gives, or the site's sum with its noise share, as whole numbers under the round's masks."""
        sites = len(roster.members)
        if self.prepared.declaration.aggregation == "shared_noise":
            values = self._with_noise_share(sites)
        else:
            update = self.plain(optimizer).astype(np.float64) - self.arrays
            values = quantised(self.images * update, sites=sites)
        return sums.mask(roster.terms, values)

    def _with_noise_share(self, sites: int) -> NDArray[np.int64]:
        """The site's sum on the grid with its noise share; it may leave the site in a masked sum only."""
        declaration, task, images = self.prepared.declaration, self.task, self.images
        if largest_share(images=images, event=self.event) > LARGEST // sites:
            raise InvalidSetting(f"public_images={images} is too large to be summed over {sites} sites without overflow")
        source = NoiseSource(injected_seed=declaration.noise_seed)
        noise = source.on_grid(site=self.site, round_index=task.round_index, purpose="noise")
        if task.kind == "mean":
            values = mean_share(self.prepared.data, event=self.event, noise=noise)
        else:
            values = gradient_share(
                self.prepared.data,
                self.arrays,
                head=declaration.head,
                feature_mean=self.feature_mean,
                event=self.event,
                noise=noise,
                normalize=declaration.model.norm == "unit",
            )
        return within_range(values, sites=sites)


def event_of(schedule: Schedule, task: RoundTask) -> PrivacyEvent:
    """The declared event that a task spends."""
    if task.kind == "mean":
        if schedule.mean_event is None:
            raise PolicyRefused("the task asks for a mean that was not declared")
        return schedule.mean_event
    if task.round_index > schedule.rounds:
        raise PolicyRefused(f"round {task.round_index} was not declared: the schedule has {schedule.rounds}")
    return schedule.step_event


def check_arrays(
    declaration: Declaration, task: RoundTask, feature_mean: NDArray[np.float32], arrays: NDArray[np.float32]
) -> None:
    """Refuse arrays of the wrong length or not finite, before anything is reserved; no patient's data decides this."""
    wanted = declaration.dims if task.kind == "mean" else declaration.head.num_parameters
    if feature_mean.shape != (declaration.dims,) or arrays.shape != (wanted,):
        raise InvalidSetting(
            f"the task's arrays have {len(feature_mean)} and {len(arrays)} entries, not {declaration.dims} and {wanted}"
        )
    if not (np.isfinite(feature_mean).all() and np.isfinite(arrays).all()):
        raise InvalidSetting("the task's arrays are not finite; the server must send numbers")


def mixed(data: SiteFeatures, payload: PublicPayload) -> SiteFeatures:
    """The site's images and the synthetic ones in one draw, every synthetic image a unit of its own."""
    synthetic = payload.features
    if data.features.ndim == 3:
        synthetic = np.repeat(synthetic[:, None], data.features.shape[1], axis=1)
    first = int(data.units.max()) + 1
    return SiteFeatures(
        features=np.concatenate([data.features, synthetic]),
        labels=np.concatenate([data.labels, payload.labels]),
        units=np.concatenate([data.units, first + np.arange(len(payload.labels))]),
        public_count=data.public_count + len(payload.labels),
    )
