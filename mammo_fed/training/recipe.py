"""Hyper-parameters left at "auto", filled in from small documented tables.

The values were chosen non-privately, by patient-grouped cross-validation on public patients (CBIS-DDSM train and val).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from mammo_fed.privacy.events import full_batch
from mammo_fed.privacy.schedule import auto_rounds
from mammo_fed.settings import Settings

__all__ = ["POISSON_LOCAL_STEPS", "POISSON_ROUNDS", "Recipe", "resolve"]

# Full-batch descent: few large steps while noise dominates, more and larger ones as it fades.
LEARNING_RATE_AT: Final = ((1.0, 80.0), (6.0, 150.0))
CLIPPING_NORM: Final = 0.45
# (largest target epsilon, components): the more noise, the fewer directions it may spread over.
COMPONENTS_UP_TO: Final = ((1.0, 100), (3.0, 200))
MOST_COMPONENTS: Final = 400
# Several sites each add their own noise.
FEWEST_COMPONENTS: Final = (0.7, 50)
# A patient of a mammography cohort has about two images of norm 1.
MEAN_CLIPPING_NORM: Final = {"image": 1.0, "patient": 2.0}
POISSON_ROUNDS: Final = 10
POISSON_LOCAL_STEPS: Final = 10
POISSON_LEARNING_RATE: Final = {"sgd": 20.0, "adamw": 0.02}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run uses where its settings said "auto".

    Attributes:
      rounds: training rounds after the private mean.
      local_steps: local steps in each round.
      clipping_norm: largest gradient norm of one unit.
      mean_clipping_norm: largest norm of one unit's sum of features.
      learning_rate: of the local steps.
      components: features that the whitening keeps.
    """

    rounds: int
    local_steps: int
    clipping_norm: float
    mean_clipping_norm: float
    learning_rate: float
    components: int


def resolve(settings: Settings) -> Recipe:
    """Fill in every "auto" of `settings`; explicit values pass through."""
    privacy, federation = settings.privacy, settings.federation
    in_full = full_batch(privacy.mechanism)
    rounds = auto_rounds(privacy.target_epsilon) if in_full else POISSON_ROUNDS
    steps = 1 if in_full else POISSON_LOCAL_STEPS
    rate = _interpolate(privacy.target_epsilon) if in_full else POISSON_LEARNING_RATE[privacy.optimizer]
    return Recipe(
        rounds=rounds if federation.rounds == "auto" else federation.rounds,
        local_steps=steps if federation.local_steps == "auto" else federation.local_steps,
        clipping_norm=CLIPPING_NORM if privacy.clipping_norm == "auto" else privacy.clipping_norm,
        mean_clipping_norm=(
            MEAN_CLIPPING_NORM[privacy.unit] if privacy.mean_clipping_norm == "auto" else privacy.mean_clipping_norm
        ),
        learning_rate=rate if privacy.learning_rate == "auto" else privacy.learning_rate,
        components=_components(settings) if settings.model.components == "auto" else settings.model.components,
    )


def _components(settings: Settings) -> int:
    """Number of features for a target, from the table."""
    target, (lowest, fewest) = settings.privacy.target_epsilon, FEWEST_COMPONENTS
    # With shared noise the sum carries the noise of one site.
    each_its_own = settings.federation.num_sites > 1 and settings.federation.secure.use != "shared_noise"
    if target <= lowest and each_its_own:
        return fewest
    return next((count for most, count in COMPONENTS_UP_TO if target <= most), MOST_COMPONENTS)


def _interpolate(target_epsilon: float) -> float:
    """Learning rate between the table's ends, linear in the logarithm of epsilon."""
    (low, rate_low), (high, rate_high) = LEARNING_RATE_AT
    if math.isinf(target_epsilon):
        return rate_high
    position = min(1.0, max(0.0, math.log(target_epsilon / low) / math.log(high / low)))
    return rate_low + position * (rate_high - rate_low)
