"""How much noise a run needs, decided before its first output.

A schedule declares every release of a run: the noisy mean of round 0 and the gradient steps of all later rounds. Its price is
therefore sound under tight (PLD) accounting, and a run that stops early has spent no more than was declared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting.calibration import calibrate, check_target, noise_for, remaining_epsilon
from mammo_fed.privacy.accounting.composition import check_delta, gaussian_mu
from mammo_fed.privacy.accounting.pricing import epsilon
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.names import AccountantName
from mammo_fed.privacy.shared_noise import with_shares

__all__ = ["Schedule", "auto_rounds", "calibrate", "epsilon_curve", "noise_for", "plan_schedule", "remaining_epsilon"]

# (rounds, target epsilon) at the two ends of the table of `auto_rounds`.
FEWEST_ROUNDS: Final = (3, 1.0)
MOST_ROUNDS: Final = (12, 6.0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """All that one site will release in a run, declared before the first output.

    Attributes:
      mean_event: the noisy mean of round 0, or None if no mean is released.
      step_event: the gradient steps of ONE later round.
      rounds: number of rounds with gradient steps, >= 1; they are numbered 1 to `rounds`.
    """

    mean_event: PrivacyEvent | None
    step_event: PrivacyEvent
    rounds: int

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InvalidSetting(f"rounds={self.rounds} must be at least 1; check federation.rounds")
        if self.mean_event is not None and self.mean_event.unit != self.step_event.unit:
            raise InvalidSetting(f"unit={self.mean_event.unit!r} of the mean must be that of the steps; check privacy.unit")

    def shared_by(self, sites: int) -> Schedule:
        """The same releases, their noise made up of the shares of `sites` sites (mammo_fed.privacy.shared_noise)."""
        if sites == 1:
            return self
        mean = None if self.mean_event is None else with_shares(self.mean_event, shares=sites)
        return replace(self, mean_event=mean, step_event=with_shares(self.step_event, shares=sites))

    def events(self) -> tuple[PrivacyEvent, ...]:
        """Everything the run will release, equal steps merged."""
        return self.events_through(self.rounds)

    def events_through(self, round_index: int) -> tuple[PrivacyEvent, ...]:
        """Everything released up to and including round `round_index`; round 0 is the mean alone.

        Raises:
          InvalidSetting: If `round_index` is not in [0, rounds].
        """
        if not 0 <= round_index <= self.rounds:
            raise InvalidSetting(f"round_index={round_index} must be in [0, {self.rounds}]; check federation.rounds")
        steps = (self.step_event.repeated(round_index),) if round_index else ()
        return steps if self.mean_event is None else (self.mean_event, *steps)


def plan_schedule(
    *,
    unit: Unit,
    target_epsilon: float,
    delta: float,
    accountant: AccountantName,
    rounds: int,
    local_steps: int,
    sample_rate: float,
    mean_fraction: float,
    clipping_norm: float,
    max_images_per_patient: int,
    mean_clipping_norm: float = 1.0,
) -> Schedule:
    """Noise for the mean and for every gradient step of a run, so that the whole run meets `target_epsilon`.

    Guarantee: epsilon(schedule.events()) <= target_epsilon for `unit`, all else as `pricing.epsilon`.

    Full batch: the mean gets `mean_fraction` of the run's mu^2, the steps share the rest. Poisson sampling: the mean gets the
    same share of the mu^2 that a Gaussian run of this epsilon and delta would have, and the steps are calibrated so that the
    whole meets the target.

    Args:
      unit: whose data is protected.
      target_epsilon: above 0; infinity plans a run without noise.
      delta: in (0, 1).
      accountant: who prices; "gdp" for full-batch schedules only.
      rounds: number of rounds with gradient steps, >= 1.
      local_steps: gradient steps of one round, >= 1.
      sample_rate: of the gradient steps, in (0, 1]; the mean always takes everyone.
      mean_fraction: in [0, 1); 0 releases no mean.
      clipping_norm: of one unit's gradient, > 0.
      max_images_per_patient: public bound.
      mean_clipping_norm: of one unit's sum of features, > 0; costs nothing, as noise is relative to it. Features have unit
        norm and are clipped all the same: the guarantee never rests on what they are.

    Raises:
      InvalidSetting: If a setting is out of its range, or the target cannot be met.
    """
    check_target(target_epsilon)
    check_delta(delta)
    if not 0 <= mean_fraction < 1:
        raise InvalidSetting(f"mean_fraction={mean_fraction} must be at least 0 and below 1; check privacy.mean_fraction")
    step = PrivacyEvent(
        mechanism="gradient",
        noise_multiplier=0.0,
        steps=local_steps,
        sample_rate=sample_rate,
        unit=unit,
        clipping_norm=clipping_norm,
        max_images_per_patient=max_images_per_patient,
    )
    mean = replace(step, mechanism="mean", steps=1, sample_rate=1.0, clipping_norm=mean_clipping_norm)
    silent = Schedule(mean_event=mean if mean_fraction else None, step_event=step, rounds=rounds)
    if math.isinf(target_epsilon):
        return silent
    noisy = _noise_shape(silent, mean_fraction=mean_fraction, mu=gaussian_mu(epsilon=target_epsilon, delta=delta))
    noise = calibrate(lambda x: noisy(x).events(), target_epsilon=target_epsilon, delta=delta, accountant=accountant)
    return noisy(noise)


def epsilon_curve(schedule: Schedule, *, delta: float, accountant: AccountantName) -> list[float]:
    """Epsilon spent after round 0, 1, ..., `schedule.rounds`; never falls, and ends at the price of the whole schedule.

    Raises:
      InvalidSetting: If `delta` is out of range or the events cannot be priced.
    """
    rounds = range(schedule.rounds + 1)
    return list(accumulate((epsilon(schedule.events_through(r), delta=delta, accountant=accountant) for r in rounds), max))


def auto_rounds(target_epsilon: float) -> int:
    """Number of rounds of one full-batch step for a target: 3 up to epsilon 1, 12 from 6, linear in log(epsilon) between.

    The two ends were chosen by patient-grouped cross-validation of the default recipe on 1,104 public patches.

    Raises:
      InvalidSetting: If `target_epsilon` is not above 0.

    >>> [auto_rounds(x) for x in (0.5, 1.0, 2.0, 3.0, 6.0, 60.0)]
    [3, 3, 6, 9, 12, 12]
    """
    check_target(target_epsilon)
    (few, low), (many, high) = FEWEST_ROUNDS, MOST_ROUNDS
    position = math.log(min(max(target_epsilon, low), high) / low) / math.log(high / low)
    return round(few + (many - few) * position)


def _noise_shape(silent: Schedule, *, mean_fraction: float, mu: float) -> Callable[[float], Schedule]:
    """Schedules as a function of one number, more of which is more noise.

    In the full batch that number is 1 / mu of the whole run, split between mean and steps; with Poisson sampling it is the
    noise multiplier of the steps, the mean's being fixed by the target's `mu`.
    """
    steps = silent.rounds * silent.step_event.steps

    def noisy(number: float) -> Schedule:
        full_batch = silent.step_event.full_batch
        mean_event = silent.mean_event
        if mean_event is not None:
            mean_noise = (number if full_batch else 1 / mu) / math.sqrt(mean_fraction)
            mean_event = replace(mean_event, noise_multiplier=mean_noise)
        step_noise = number * math.sqrt(steps / (1 - mean_fraction)) if full_batch else number
        return replace(silent, mean_event=mean_event, step_event=replace(silent.step_event, noise_multiplier=step_noise))

    return noisy
