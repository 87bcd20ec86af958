"""How much noise a run needs, decided before its first output.

A schedule declares every release of a run: the noisy mean of round 0 and the gradient steps of all later rounds. Its price is
therefore sound under tight (PLD) accounting, and a run that stops early has spent no more than was declared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from scipy.optimize import brentq

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.accounting import AccountantName, epsilon
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.gaussian import check_delta, gaussian_mu

__all__ = ["Schedule", "auto_rounds", "calibrate", "epsilon_curve", "noise_for", "plan_schedule", "remaining_epsilon"]

# Features have unit norm, and are clipped to it all the same: the guarantee never rests on what the features are.
MEAN_CLIPPING_NORM: Final = 1.0
# Calibration stops inside [1 - TOLERANCE, 1] times the target.
TOLERANCE: Final = 1e-6
SMALLEST_NOISE: Final = 1e-6
LARGEST_NOISE: Final = 1e6


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


def calibrate(
    make_events: Callable[[float], Sequence[PrivacyEvent]], *, target_epsilon: float, delta: float, accountant: AccountantName
) -> float:
    """Smallest noise multiplier whose events cost at most `target_epsilon`, rounded up.

    Guarantee: epsilon(make_events(result)) <= target_epsilon; and it is above target_epsilon (1 - 1e-6) wherever the
    accountant's price is a continuous function of the noise.

    Args:
      make_events: from a noise multiplier > 0 to the events it stands for; more noise must not cost more.
      target_epsilon: above 0; infinity gives 0.0, no noise.
      delta: in (0, 1).
      accountant: who prices.

    Raises:
      InvalidSetting: If a setting is out of its range, or no amount of noise reaches the target.
    """
    _check_target(target_epsilon)
    check_delta(delta)
    if math.isinf(target_epsilon):
        return 0.0
    aim = target_epsilon * (1 - TOLERANCE / 2)

    def excess(log_noise: float) -> float:
        price = epsilon(make_events(math.exp(log_noise)), delta=delta, accountant=accountant)
        # A root finder cannot use infinity; beyond ten times the target only the sign matters.
        return min(price, 10 * target_epsilon) - aim

    low, high = _bracket(excess, math.log(_guess(make_events, mu=gaussian_mu(epsilon=target_epsilon, delta=delta))))
    log_noise = high if low == high else float(brentq(excess, low, high, xtol=TOLERANCE / 20, rtol=1e-15))
    while excess(log_noise) > target_epsilon - aim:
        log_noise += TOLERANCE / 20
    return math.exp(log_noise)


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
) -> Schedule:
    """Noise for the mean and for every gradient step of a run, so that the whole run meets `target_epsilon`.

    Guarantee: epsilon(schedule.events()) <= target_epsilon for `unit`, all else as `mammo_fed.privacy.accounting.epsilon`.

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
      clipping_norm: of one unit's gradient, > 0; the mean is clipped at 1.
      max_images_per_patient: public bound.

    Raises:
      InvalidSetting: If a setting is out of its range, or the target cannot be met.
    """
    _check_target(target_epsilon)
    if not 0 <= mean_fraction < 1:
        raise InvalidSetting(f"mean_fraction={mean_fraction} must be at least 0 and below 1; check privacy.mean_fraction")

    def schedule(mean_noise: float, step_noise: float) -> Schedule:
        shared: _Shared = {"unit": unit, "max_images_per_patient": max_images_per_patient}
        mean = PrivacyEvent(
            mechanism="mean",
            noise_multiplier=mean_noise,
            steps=1,
            sample_rate=1.0,
            clipping_norm=MEAN_CLIPPING_NORM,
            **shared,
        )
        step = PrivacyEvent(
            mechanism="gradient",
            noise_multiplier=step_noise,
            steps=local_steps,
            sample_rate=sample_rate,
            clipping_norm=clipping_norm,
            **shared,
        )
        return Schedule(mean_event=mean if mean_fraction else None, step_event=step, rounds=rounds)
    ...
