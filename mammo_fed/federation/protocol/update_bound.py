"""How far an honest site's update can be from the model it was sent, by what it declared; nothing here is about a patient.

Every unit's part in a step is clipped, and the noise is Gaussian of a known scale: so the norm of what a site releases has a
bound that both sides can work out from public numbers. Whatever is longer was not made by the declared steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi

from mammo_fed.federation.protocol.task import Declaration, RoundTask
from mammo_fed.privacy.events import PrivacyEvent, full_batch

__all__ = ["update_bound"]

# Probability that an honest update is longer than its bound, for the noise and for the sampling each.
CHANCE: Final = 1e-9
# PyTorch's defaults for AdamW.
BETA_1, BETA_2 = 0.9, 0.999
# Sites compute in single precision.
ROUNDING: Final = 1e-4
STEP_ROUNDING: Final = 1e-6


def update_bound(
    declaration: Declaration,
    task: RoundTask,
    events: Sequence[PrivacyEvent],
    *,
    public_images: int,
    public_patients: int,
    parameters: NDArray[np.float32],
) -> float:
    """Largest norm of (update - `parameters`) that the declared steps of one round can have, up to a chance of 2e-9.

    The signal is bounded in the worst case (every unit at the clipping norm, all in one direction; as many units as Poisson
    sampling may draw), the noise by the quantile of its norm. It is a bound on honest sites: a hostile site stays below it at
    will, and has then no more say than one whose patients all pull the same way.

    Args:
      declaration, task: of the round.
      events: what the round spends, as the site declared it; one event.
      public_images, public_patients: public size of the site.
      parameters: float32, what the site was sent: the head, or zeros for the mean.

    Returns:
      The bound, >= 0; infinity where synthetic images are trained on next to the site's own and their gradient has no bound
      (another head than the linear one, or features of any norm, with plain steps).

    Source: quantiles of the chi and binomial distributions; for AdamW the Cauchy-Schwarz inequality, coordinate by coordinate.
    """
    (event,) = events
    images_in_all = public_images + declaration.mixed_images
    units = (public_patients if event.unit == "patient" else public_images) + declaration.mixed_images
    if task.kind == "mean":
        signal = event.clipping_norm * units / images_in_all
        if declaration.model.norm == "unit":
            signal = min(signal, 1.0)
        noise = event.noise_multiplier * event.clipping_norm / images_in_all
        return (signal + noise * _noise_bound(len(parameters))) * (1 + ROUNDING)
    if declaration.mechanism == "dp_sgd" and task.optimizer == "adamw":
        length = _adamw_bound(declaration, task, event, parameters)
    else:
        length = _descent_bound(declaration, task, event, units=units, images_in_all=images_in_all, parameters=parameters)
    return length * (1 + ROUNDING) + STEP_ROUNDING * event.steps * float(np.linalg.norm(parameters))


def _descent_bound(
    declaration: Declaration,
    task: RoundTask,
    event: PrivacyEvent,
    *,
    units: int,
    images_in_all: int,
    parameters: NDArray[np.float32],
) -> float:
    """Bound of plain steps: every gradient enters with the factor that later steps leave of it."""
    # Full-batch descent knows no weight decay.
    decay = task.weight_decay if declaration.mechanism == "dp_sgd" else 0.0
    factors = _factors(task, event.steps, decay=decay)
    step = task.learning_rate * event.clipping_norm / (event.sample_rate * images_in_all)
    drawn = units * event.steps
    if event.sample_rate < 1:
        drawn = int(binom.isf(CHANCE, drawn, event.sample_rate))
        signal = float(factors.max()) * drawn
    else:
        signal = units * float(factors.sum())
    noise = event.noise_multiplier * math.sqrt(float(factors @ factors)) * _noise_bound(len(parameters))
    pulled = task.learning_rate * (decay * float(np.linalg.norm(parameters)) + _public_gradient(declaration))
    return step * (signal + noise) + pulled * float(factors.sum())


def _adamw_bound(declaration: Declaration, task: RoundTask, event: PrivacyEvent, parameters: NDArray[np.float32]) -> float:
    """Bound of AdamW's steps, which bound every coordinate whatever the gradient is."""
    first = (task.round_index - 1) * event.steps if declaration.keep_optimizer else 0
    # A site that missed rounds, or lost its optimizer, has taken fewer steps.
    ratio = max(_largest_ratio(step) for step in range(1, first + event.steps + 1))
    pulled = task.weight_decay * float(np.linalg.norm(parameters))
    factors = _factors(task, event.steps, decay=task.weight_decay)
    return task.learning_rate * (ratio * math.sqrt(len(parameters)) + pulled) * float(factors.sum())


def _largest_ratio(step: int) -> float:
    """Bound on AdamW's first moment over the root of its second, both corrected for their start, at the given step from 1."""
    quotient = BETA_1**2 / BETA_2
    weights = (1 - quotient**step) / (1 - quotient)
    second = (1 - BETA_2**step) / (1 - BETA_2)
    return (1 - BETA_1) / (1 - BETA_1**step) * math.sqrt(second * weights)


def _factors(task: RoundTask, steps: int, *, decay: float) -> NDArray[np.float64]:
    """What the last step leaves of every step's own change, from the last step to the first."""
    kept = abs(1 - task.learning_rate * decay)
    pull = 1 / (1 + task.learning_rate * task.proximal)
    factors: NDArray[np.float64] = pull * np.power(kept * pull, np.arange(steps), dtype=np.float64)
    return factors


def _public_gradient(declaration: Declaration) -> float:
    """Largest norm of the gradient that synthetic images add to every step next to that of the site's own."""
    if not declaration.synthetic_images or declaration.mixed_images or declaration.augment_weight == 0:
        return 0.0
    if full_batch(declaration.mechanism):
        return 0.0
    if declaration.head.kind != "linear" or declaration.model.norm != "unit":
        return math.inf
    return declaration.augment_weight * math.hypot(1.0, declaration.head.bias_scale)


def _noise_bound(dims: int) -> float:
    """Norm that `dims` standard normal draws pass with a probability of CHANCE."""
    return float(chi.isf(CHANCE, dims))
