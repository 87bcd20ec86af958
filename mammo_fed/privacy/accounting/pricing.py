"""What privacy events cost, by the accountant that was asked for.

| accountant | prices | tight | offers delta | patient price of sampled images |
|---|---|---|---|---|
| pld | every event | yes | yes | yes |
| gdp | full-batch events | exact | yes | no sampled events |
| rdp | every event | no (about 10 % above) | yes | no |
| prv | every event | within 0.02 | no | no |

None of these prices is a filter: they hold for events declared before the first output. A site that decides from round to
round whether to go on uses GDP or Renyi at one fixed order.

Prices by pld are google dp-accounting's, always on the safe side. Two things are added to the library. The grid is chosen per
schedule: fine enough that its pessimistic rounding adds about 1e-5 of epsilon, coarse enough to stay fast. And the
floating-point error of the FFT, which the library does not count and which can push epsilon below the true value (seen at delta
1e-10 after 1e5 steps), is taken off delta before epsilon is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.stats import binom

from mammo_fed.errors import InvalidSetting
from mammo_fed.extensions import kinds
from mammo_fed.privacy.accounting.accountants import PrvAccountant, RdpAccountant
from mammo_fed.privacy.accounting.composition import (
    LARGEST_LOSS,
    PrivacyAccountant,
    Protected,
    Release,
    coarse_epsilon,
    gaussian_delta,
    gaussian_epsilon,
    merge,
    reach,
)
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.names import AccountantName

__all__ = [
    "ACCOUNTANTS",
    "GdpAccountant",
    "PldAccountant",
    "accountant_named",
    "coarsely_priced",
    "delta_at",
    "epsilon",
    "is_coarse",
    "patient_epsilon",
    "pld_delta",
    "pld_epsilon",
]

# Points of the grid per standard deviation of one step's privacy loss: rounding then adds about 1e-5 to that deviation.
GRID_PER_DEVIATION: Final = 100
WIDEST_GRID: Final = 3e-3
FINEST_GRID: Final = 1e-6
# The library visits each grid point of a single step in Python, and each of the composition in an FFT.
MAX_POINTS: Final = 240_000
# Mixtures are inverted by bisection, which takes about this many times as long per point.
MIXTURE_COST: Final = 4
MAX_COMPOSED_POINTS: Final = 1_000_000
# Measured against exact Gaussian composition: the error of delta stays below a fifth of this for up to 1e5 steps.
FFT_ERROR: Final = 1e-15
FFT_ERROR_PER_STEP: Final = 1e-16
STEPS_AT_ONCE: Final = 4096


class PldAccountant(PrivacyAccountant):
    """Privacy loss distributions (google dp-accounting, pessimistic): tight for every event, and prices groups.

    Full-batch Gaussian events have an exact closed form (`GdpAccountant`); here they are discretised like any other.
    """

    name = "pld"

    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        return pld_epsilon(releases, delta=delta)

    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:
        return pld_delta(releases, epsilon=epsilon)


class GdpAccountant(PrivacyAccountant):
    """Gaussian differential privacy in closed form: exact for full-batch events, and for nothing else."""

    name = "gdp"

    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        return gaussian_epsilon(mu=self._mu(releases), delta=delta)

    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:
        return gaussian_delta(mu=self._mu(releases), epsilon=epsilon)

    def _mu(self, releases: Sequence[Release]) -> float:
        for release in releases:
            if not release.full_batch:
                # The central-limit formula for sampled steps is not a bound: 4.01 where the true epsilon is 5.15.
                raise InvalidSetting(
                    f"sample_rate={release.sample_rate} must be 1 for accountant='gdp'; "
                    "check privacy.accountant (pld prices sampled steps)"
                )
        return math.sqrt(math.fsum(release.steps / release.noise_multiplier**2 for release in releases))


ACCOUNTANTS: Final[dict[str, PrivacyAccountant]] = {
    each.name: each for each in (PldAccountant(), RdpAccountant(), GdpAccountant(), PrvAccountant())
}


class _AtLeastPld(PrivacyAccountant):
    """An accountant from outside that never shows less than PLD does.

    Guarantee: that of PLD, whatever the other one computes: the larger of the two is shown. Nothing sound is lost by it, as PLD
    is within a thousandth of the true price of every event that we have.
    """

    def __init__(self, other: PrivacyAccountant) -> None:
        self._other, self._pld = other, PldAccountant()

    def _epsilon(self, releases: Sequence[Release], delta: float) -> float:
        return _larger(self._pld._epsilon(releases, delta), self._other._epsilon(releases, delta))

    def _delta(self, releases: Sequence[Release], epsilon: float) -> float:
        return _larger(self._pld._delta(releases, epsilon), self._other._delta(releases, epsilon))


def _larger(ours: float, theirs: float) -> float:
    """The larger; infinity where the other is no number, which max() may pass over."""
    return math.inf if math.isnan(theirs) else max(ours, theirs)


def accountant_named(name: str) -> PrivacyAccountant:
    """The accountant of that name; one from outside is imported now, and never prices below PLD.

    Raises:
      InvalidSetting: If there is none, or it is none.
    """
    if name in ACCOUNTANTS:
        return ACCOUNTANTS[name]
    found = kinds.ACCOUNTANTS.load(name)
    if not isinstance(found, PrivacyAccountant):
        raise InvalidSetting(
            f"privacy.accountant={name} from {kinds.ACCOUNTANTS.origin(name)} must be an instance of PrivacyAccountant"
        )
    return _AtLeastPld(found)


def epsilon(events: Sequence[PrivacyEvent], *, delta: float, accountant: AccountantName) -> float:
    """Epsilon of all `events` together, for their own unit, rounded up.

    Guarantee: (epsilon, delta)-DP of everything in `events`, if they were declared before the first output; never below the
    true value (bounds are upper bounds, then raised by 1e-6 of themselves).
    Neighbouring datasets: one unit (`PrivacyEvent.unit`) contributes nothing, the cohort's size is public.
    Edge cases: no events cost 0, an event without noise costs infinity.

    Args:
      events: what was or will be released; order and grouping do not matter.
      delta: in (0, 1).
      accountant: who prices.

    Raises:
      InvalidSetting: If delta is out of range, the units differ, or the accountant is unknown or cannot price an event.

    >>> from mammo_fed.privacy.events import PrivacyEvent
    >>> step = PrivacyEvent(mechanism="gradient", noise_multiplier=15.0, steps=100, sample_rate=1.0, unit="patient",
    ...                     clipping_norm=1.0, max_images_per_patient=4)
    >>> round(epsilon([step], delta=1e-5, accountant="gdp"), 4)
    2.7534
    """
    return accountant_named(accountant).epsilon(events, delta=delta)


def delta_at(events: Sequence[PrivacyEvent], *, epsilon: float, accountant: AccountantName) -> float:
    """Delta of all `events` together at `epsilon`, for their own unit, rounded up; `prv` does not offer it.

    Raises:
      InvalidSetting: If epsilon is negative, the units differ, or the accountant is unknown or cannot say.
    """
    return accountant_named(accountant).delta(events, epsilon=epsilon)


def coarsely_priced(
    events: Sequence[PrivacyEvent], *, delta: float, accountant: AccountantName, protected: Protected = "unit"
) -> bool:
    """Whether the price is a loose upper bound here, far above the true one: losses too large for a grid (pld, prv)."""
    releases = merge(events, protected=protected) if accountant not in ("rdp", "gdp") else None
    return releases is not None and is_coarse(releases, delta=delta)


def patient_epsilon(events: Sequence[PrivacyEvent], *, delta: float, accountant: AccountantName) -> float:
    """Epsilon of all `events` together for one patient, whatever their unit, rounded up.

    Guarantee: as `epsilon`, with the unit replaced by a patient who has at most `max_images_per_patient` images.
    Neighbouring datasets: one patient contributes nothing, the numbers of images and patients are public.
    Image-level events in the full batch have sensitivity k times the clipping norm; with Poisson sampling over images the
    number that is drawn is Binomial(k, sample_rate), which only `pld` prices.

    Raises:
      InvalidSetting: If delta is out of range, or the accountant is unknown or cannot price an event.

    >>> from mammo_fed.privacy.events import PrivacyEvent
    >>> step = PrivacyEvent(mechanism="gradient", noise_multiplier=15.0, steps=100, sample_rate=1.0, unit="image",
    ...                     clipping_norm=1.0, max_images_per_patient=2)
    >>> epsilon([step], delta=1e-5, accountant="gdp") < patient_epsilon([step], delta=1e-5, accountant="gdp")
    True
    """
    return accountant_named(accountant).patient_epsilon(events, delta=delta)


def pld_epsilon(releases: Sequence[Release], *, delta: float) -> float:
    """Epsilon of `releases` at `delta`, an upper bound that is tight below 1,000.

    Guarantee: an upper bound for exactly these releases in an order fixed beforehand; what each one computes may depend on
    what the earlier ones showed. NOT for choosing the next one's noise or rate by it (arXiv:2602.15815).
    """
    loose = coarse_epsilon(releases, delta=delta)
    allowed = delta - _fft_error(releases)
    if not releases or reach(releases) > LARGEST_LOSS or allowed <= 0:
        return loose
    return min(loose, float(_compose(releases).get_epsilon_for_delta(allowed)))


def is_coarse(releases: Sequence[Release], *, delta: float) -> bool:
    """Whether `pld_epsilon` answers with the loose Renyi bound of order 2, because no grid holds these releases."""
    return bool(releases) and (reach(releases) > LARGEST_LOSS or delta <= _fft_error(releases))


def pld_delta(releases: Sequence[Release], *, epsilon: float) -> float:
    """Delta of `releases` at `epsilon` >= 0, an upper bound under the same conditions as `pld_epsilon`."""
    if not releases or math.isinf(epsilon):
        return 0.0
    if reach(releases) > LARGEST_LOSS:
        return _coarse_delta(releases, epsilon=epsilon)
    return float(_compose(releases).get_delta_for_epsilon(epsilon)) + _fft_error(releases)


def _compose(releases: Sequence[Release]) -> pld.PrivacyLossDistribution:
    """Distribution of all steps together; a balanced tree keeps the intermediate grids small."""
    grid = _grid(releases)
    parts = [_single(release.noise_multiplier, release.sample_rate, release.group, grid) for release in releases]
    parts = [_repeat(part, release.steps) for part, release in zip(parts, releases, strict=True)]
    while len(parts) > 1:
        pairs = [first.compose(second) for first, second in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    return parts[0]


@lru_cache(maxsize=32)
def _single(noise_multiplier: float, sample_rate: float, group: int, grid: float) -> pld.PrivacyLossDistribution:
    """Distribution of one step, with and without the unit's contribution, in both directions."""
    shared: dict[str, Any] = {"value_discretization_interval": grid, "pessimistic_estimate": True, "use_connect_dots": True}
    if group == 1:
        return pld.from_gaussian_mechanism(
            noise_multiplier, sampling_prob=sample_rate, neighboring_relation=NeighboringRelation.REPLACE_SPECIAL, **shared
        )
    items = np.arange(group + 1)
    return pld.from_mixture_gaussian_mechanism(noise_multiplier, items, binom.pmf(items, group, sample_rate), **shared)


def _repeat(part: pld.PrivacyLossDistribution, steps: int) -> pld.PrivacyLossDistribution:
    """`part` composed `steps` times, in two stages: the library raises its size to the power of `steps` as an integer."""
    if steps == 1:
        return part
    whole, rest = divmod(steps, STEPS_AT_ONCE)
    if whole == 0:
        return part.self_compose(rest)
    block = _repeat(part.self_compose(STEPS_AT_ONCE), whole)
    return block.compose(_repeat(part, rest)) if rest else block


def _grid(releases: Sequence[Release]) -> float:
    """Width of the grid of privacy losses; a continuous function of the noise, so that calibration sees no jumps.

    The full-batch release is a single step: next to thousands of sampled ones its rounding does not count.
    """
    counted = [release for release in releases if not release.full_batch] or releases
    steps = math.fsum(release.steps for release in counted)
    spread = math.fsum(
        release.steps * (release.sample_rate * release.group / release.noise_multiplier) ** 2 for release in counted
    )
    fine = math.sqrt(spread / steps) / GRID_PER_DEVIATION
    points = 2 * math.fsum(_largest_loss(each) * (MIXTURE_COST if each.group > 1 else 1) for each in releases)
    composed = 2 * reach(releases)
    return max(min(fine, WIDEST_GRID), FINEST_GRID, points / MAX_POINTS, composed / MAX_COMPOSED_POINTS)


def _largest_loss(release: Release) -> float:
    """About the largest privacy loss of one step outside tails of mass exp(-50)."""
    shift = release.group / release.noise_multiplier
    loss = 10 * shift + shift**2 / 2
    rate = release.participation
    return loss if rate == 1 else max(0.0, loss + math.log(rate)) - math.log1p(-rate)


def _fft_error(releases: Sequence[Release]) -> float:
    return FFT_ERROR + FFT_ERROR_PER_STEP * math.fsum(release.steps for release in releases)


def _coarse_delta(releases: Sequence[Release], *, epsilon: float) -> float:
    """Delta at `epsilon` by Renyi composition at order 2; the inverse of `coarse_epsilon`."""
    return min(1.0, math.exp(min(0.0, coarse_epsilon(releases, delta=0.25) - epsilon - math.log(4))))
