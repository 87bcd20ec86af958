"""Privacy filters: what a site may still release when later choices depend on earlier releases.

A filter stops before a cap that holds however the events were chosen; the running value it shows is the cost of the
schedule, not the guarantee (arXiv:1605.08294). Three kinds, fixed for an account when it opens:

gdp: sum of mu^2 over full-batch Gaussian steps (arXiv:2210.17520, arXiv:2209.15596). Refuses any other step.
rdp: Renyi divergence at one order chosen beforehand from the budget alone (arXiv:2008.11193).
declared: PLD, the tightest, over schedules declared whole before the account's first reservation. Everything declared is
  charged, run or not: whoever watches may pick which part to run, and the parts not run must not pay for something else.
  A PLD filter over adaptively chosen events would be unsound (arXiv:2602.15815, arXiv:2602.06756). So once anything is
  reserved, a further schedule is accepted only if all that was ever declared, with it, fits under the cap at the
  account's one Renyi order. Either that sum fits, and then it is an rdp filter's decision, or the schedules declared before
  the first release already exceed it, and then nothing is ever added to them: which of the two was settled before any output.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, get_args

import numpy as np
from scipy.special import gammaln, logsumexp

from mammo_fed.errors import InvalidSetting, PolicyRefused
from mammo_fed.privacy.accounting.composition import gaussian_epsilon
from mammo_fed.privacy.accounting.pricing import epsilon, patient_epsilon
from mammo_fed.privacy.events import PrivacyEvent, Unit
from mammo_fed.privacy.names import AccountantName, FilterKind

__all__ = [
    "PrivacyFilter",
    "Steps",
    "adaptive_epsilon",
    "as_steps",
    "open_filter",
    "patient_schedule_epsilon",
    "rdp_to_epsilon",
    "remaining_epsilon",
    "schedule_epsilon",
]

Steps = Counter[PrivacyEvent]
"""Number of steps of every event of one step: sequences that cost the same, whatever their order."""

# An order for budgets without a cap, where any order is sound.
NOMINAL_EPSILON: Final = 8.0
# Whole orders only: there the divergence of a sampled step is a finite sum, elsewhere libraries give series cut short.
ORDERS: Final = np.arange(2, 4097)
# Where the noise of a further release is looked for, as logarithms of its multiplier, and in how many steps.
LOG_NOISE: Final = (math.log(1e-6), math.log(1e6))
HALVINGS: Final = 50


@dataclass(frozen=True, kw_only=True)
class PrivacyFilter:
    """How an account's budget is enforced.

    Attributes:
      kind: "gdp", "rdp" or "declared"; see the module's text.
      order: the one Renyi order, >= 2; None for gdp.
    """

    kind: FilterKind
    order: int | None

    def __post_init__(self) -> None:
        if self.kind not in get_args(FilterKind):
            raise InvalidSetting(f"filter={self.kind!r} must be one of {get_args(FilterKind)}; check the site's policy")
        if (self.order is None) != (self.kind == "gdp") or (self.order is not None and self.order < 2):
            raise InvalidSetting(f"order={self.order} must be at least 2 for filter={self.kind}, None for gdp")


def open_filter(kind: FilterKind, *, max_epsilon: float, delta: float) -> PrivacyFilter:
    """The filter of an account that opens under this budget, chosen without looking at any data.

    The order is the one at which a Gaussian release may be largest: argmax over orders a of the cap at a divided by a.
    """
    if kind == "gdp":
        return PrivacyFilter(kind=kind, order=None)
    target = max_epsilon if math.isfinite(max_epsilon) else NOMINAL_EPSILON
    caps = target - np.array([_conversion(int(order), delta) for order in ORDERS])
    return PrivacyFilter(kind=kind, order=int(ORDERS[np.argmax(caps / ORDERS)]))


def as_steps(events: Iterable[PrivacyEvent]) -> Steps:
    """Steps of `events`, counted per event of one step."""
    steps: Steps = Counter()
    for event in events:
        steps[replace(event, steps=1)] += event.steps
    return steps


def adaptive_epsilon(privacy_filter: PrivacyFilter, steps: Steps, *, delta: float) -> float:
    """Epsilon of `steps` in the currency that bounds adaptive choices: stay below a cap in it, and the cap is the guarantee.

    Raises:
      PolicyRefused: If the currency is gdp and a step is not full batch.
    """
    if not +steps:
        return 0.0
    if any(event.noise_multiplier == 0 for event in +steps):
        return math.inf
    order = privacy_filter.order
    if order is None:
        if not all(event.full_batch for event in +steps):
            raise PolicyRefused(
                "filter=gdp takes full-batch steps only; a site that expects sampled steps too sets filter=rdp or declared in "
                "its policy before its account opens"
            )
        squares = sum(count * _inverse_square(event.noise_multiplier) for event, count in steps.items())
        return gaussian_epsilon(mu=math.sqrt(squares), delta=delta)
    divergence = sum(count * _divergence(event.noise_multiplier, event.sample_rate, order) for event, count in steps.items())
    return rdp_to_epsilon(divergence, order=order, delta=delta)


def remaining_epsilon(privacy_filter: PrivacyFilter, counted: Steps, *, unit: Unit, max_epsilon: float, delta: float) -> float:
    """Epsilon of the largest full-batch release that a filter still admits on top of the steps that it has counted.

    It is more than the difference of the epsilons, because privacy losses add up in squares.

    Args:
      privacy_filter: of the account.
      counted: by it so far.
      unit: whose privacy is charged.
      max_epsilon: the cap, >= 0.
      delta: in (0, 1).

    Returns:
      At most the cap; 0.0 if nothing fits, infinite without a cap.
    """
    # An rdp filter admits less than its cap from the start, for it converts at one order.
    untouched = privacy_filter.kind != "rdp" and not counted
    if untouched or math.isinf(max_epsilon):
        return max_epsilon

    def admitted(log_noise: float) -> bool:
        release = PrivacyEvent(
            mechanism="gradient",
            noise_multiplier=math.exp(log_noise),
            steps=1,
            sample_rate=1.0,
            unit=unit,
            clipping_norm=1.0,
            max_images_per_patient=1,
        )
        return adaptive_epsilon(privacy_filter, counted + Counter({release: 1}), delta=delta) <= max_epsilon

    low, high = LOG_NOISE
    if not admitted(high):
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if admitted(middle) else (middle, high)
    # The larger noise of the two is the one that was admitted.
    return min(max_epsilon, gaussian_epsilon(mu=math.exp(-high), delta=delta))


def schedule_epsilon(steps: Steps, *, delta: float, accountant: AccountantName = "pld") -> float:
    """Epsilon of a schedule fixed beforehand, in any order; says nothing about adaptive choices. 0 for no steps."""
    return _schedule_epsilon(frozenset((+steps).items()), delta, accountant)


def patient_schedule_epsilon(steps: Steps, *, delta: float) -> float:
    """As `schedule_epsilon`, for one patient with as many images as each step allows, by PLD: it alone prices every group."""
    return _patient_schedule_epsilon(frozenset((+steps).items()), delta)


def rdp_to_epsilon(divergence: float, *, order: int, delta: float) -> float:
    """Epsilon at `delta` of a release whose Renyi divergence at `order` is at most `divergence`.

    Source: arXiv:2004.00010, Prop. 12.
    """
    return max(0.0, divergence + _conversion(order, delta))


def _conversion(order: int, delta: float) -> float:
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


@lru_cache(maxsize=4096)
def _divergence(noise_multiplier: float, sample_rate: float, order: int) -> float:
    """Renyi divergence at `order` of one Gaussian step, the larger of the two directions.

    Source: arXiv:1908.10530, Sec. 3.3. Summands k = 0 and 1 of the moment make up 1 less the others' binomial weights, so that
    only positive terms remain to be added and small divergences keep all their digits.
    """
    if sample_rate == 1.0:
        return order * _inverse_square(noise_multiplier) / 2
    k = np.arange(2, order + 1)
    exponent = k * (k - 1) * _inverse_square(noise_multiplier) / 2
    weight = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    weight += k * math.log(sample_rate) + (order - k) * math.log1p(-sample_rate)
    with np.errstate(
        divide="ignore"
    ):  # noise beyond 1e150 gives exponents of 0: the step then costs nothing that floats can tell
        moment = logsumexp(weight + exponent + np.log(-np.expm1(-exponent)))
    return float(np.logaddexp(0.0, moment)) / (order - 1)


def _inverse_square(noise_multiplier: float) -> float:
    """1 / noise_multiplier^2; infinity or 0 where that is out of floats' range, never an error."""
    return (1 / noise_multiplier) * (1 / noise_multiplier)


@lru_cache(maxsize=256)
def _schedule_epsilon(steps: frozenset[tuple[PrivacyEvent, int]], delta: float, accountant: AccountantName) -> float:
    return epsilon(_as_events(steps), delta=delta, accountant=accountant) if steps else 0.0


@lru_cache(maxsize=256)
def _patient_schedule_epsilon(steps: frozenset[tuple[PrivacyEvent, int]], delta: float) -> float:
    return patient_epsilon(_as_events(steps), delta=delta, accountant="pld") if steps else 0.0


def _as_events(steps: frozenset[tuple[PrivacyEvent, int]]) -> list[PrivacyEvent]:
    return [event.repeated(count) for event, count in sorted(steps, key=repr)]
