"""The only place where a generator's training looks at real images: with noise, or plainly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mammo_fed.data.cohort import Cohort
from mammo_fed.models.features import resize
from mammo_fed.privacy.accounting.calibration import calibrate
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.mechanisms.per_unit_gradients import noisy_unit_gradients
from mammo_fed.privacy.names import AccountantName, NoiseMode
from mammo_fed.privacy.noise import NoiseSource
from mammo_fed.settings.gan import GanSettings
from mammo_fed.synthesis.adversarial import Adversaries, RealGradient, gradients_of, public_generator, real_loss
from mammo_fed.synthesis.mcgan import to_range

__all__ = ["RealImages", "gan_event", "plain_gradients", "private_gradients", "real_images"]

SITE: Final = "donor"


@dataclass(frozen=True, kw_only=True, eq=False)
class RealImages:
    """What the discriminator is shown.

    Attributes:
      images: float32 in [-1, 1], shape (images, 1, side, side).
      labels: int64, shape (images,).
      units: int64, shape (images,), dense index of the protected unit.
      present: bool, shape (images,): False for an image that is zero all over, which contributes nothing.
    """

    images: Tensor
    labels: Tensor
    units: NDArray[np.int64]
    present: NDArray[np.bool_]


def real_images(cohort: Cohort, *, image_size: int, unit: Unit) -> RealImages:
    """Patches of a cohort at the generator's size and range."""
    images = resize(torch.from_numpy(np.array(cohort.pixels)), image_size)
    return RealImages(
        images=to_range(images)[:, None],
        labels=torch.from_numpy(np.array(cohort.labels)),
        units=cohort.unit_index(unit),
        present=cohort.present,
    )


def gan_event(settings: GanSettings, *, public_images: int) -> PrivacyEvent:
    """Everything that the training does to its patients: one Gaussian mechanism for each step of the discriminator.

    Args:
      settings: of the training.
      public_images: number of images, declared public.

    Raises:
      InvalidSetting: If no noise meets the target.
    """
    privacy, gan = settings.privacy, settings.gan
    noiseless = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=0.0,
        steps=gan.steps * gan.discriminator_steps,
        sample_rate=min(1.0, gan.batch_size / public_images),
        unit=privacy.unit,
        clipping_norm=privacy.clipping_norm,
        max_images_per_patient=privacy.max_images_per_patient,
    )
    return calibrated(noiseless, target_epsilon=privacy.target_epsilon, delta=privacy.delta, accountant=privacy.accountant)


def calibrated(event: PrivacyEvent, *, target_epsilon: float, delta: float, accountant: AccountantName) -> PrivacyEvent:
    """`event` with the least noise that keeps it under the target."""
    values = event.as_dict()
    noise = calibrate(
        lambda multiplier: (PrivacyEvent.from_dict({**values, "noise_multiplier": multiplier}),),
        target_epsilon=target_epsilon,
        delta=delta,
        accountant=accountant,
    )
    return PrivacyEvent.from_dict({**values, "noise_multiplier": noise})


def private_gradients(
    real: RealImages, *, event: PrivacyEvent, public_units: int, noise: NoiseSource, mode: NoiseMode
) -> RealGradient:
    """Real gradients of which every unit's part is clipped and which carry noise; their loss is shown to nobody.

    Guarantee: step n is one step of `event` (see noisy_unit_gradients): a unit's loss is a function of its own images, the
    networks and draws that depend on seed, step and the unit's index; the divisor is public.
    Neighbouring cohorts: one unit contributes nothing, sizes public.

    Args:
      real: the donor's images.
      event: the one that the ledger has reserved.
      public_units: number of units, declared public.
      noise, mode: where noise and draws come from, afresh for every step.
    """
    order = np.argsort(real.units, kind="stable")
    num_units = int(real.units.max()) + 1 if len(real.units) else 0
    bounds = np.searchsorted(real.units[order], np.arange(num_units + 1))
    # A unit's part has one norm whatever the number of its images: the divisor counts units.
    batch = event.sample_rate * public_units

    def step(adversaries: Adversaries, number: int) -> tuple[list[Tensor], None]:
        def unit_loss(unit: int) -> Tensor | None:
            rows = order[bounds[unit] : bounds[unit + 1]]
            rows = rows[real.present[rows]]
            if not len(rows):
                return None
            losses = real_loss(adversaries, real.images[rows], real.labels[rows], number=number, purpose=f"{event.unit} {unit}")
            return losses.sum()

        gradients = noisy_unit_gradients(
            list(adversaries.discriminator.parameters()),
            unit_loss,
            num_units=num_units,
            event=event,
            batch=batch,
            noise=noise.draws(mode, site=SITE, round_index=number, purpose="noise"),
            sampling=noise.draws(mode, site=SITE, round_index=number, purpose="sampling"),
        )
        return gradients, None

    return RealGradient(step=step, clipping_norm=event.clipping_norm)


def plain_gradients(real: RealImages, *, batch_size: int) -> RealGradient:
    """Real gradients without any privacy: shuffled batches, every image once an epoch."""
    size = min(batch_size, len(real.labels))
    per_epoch = max(1, len(real.labels) // size)

    def step(adversaries: Adversaries, number: int) -> tuple[list[Tensor], float]:
        epoch, place = divmod(number, per_epoch)
        order = torch.randperm(len(real.labels), generator=public_generator(adversaries.seed, epoch, "order"))
        rows = order[place * size : (place + 1) * size]
        loss = real_loss(adversaries, real.images[rows], real.labels[rows], number=number, purpose="real").mean()
        return gradients_of(loss, list(adversaries.discriminator.parameters())), float(loss.detach())

    return RealGradient(step=step, clipping_norm=None)
